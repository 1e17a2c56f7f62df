-- Certificates of operators and workers. None is on record yet: whoever upgrades gives them new ones.
CREATE TABLE credentials (
    sha256     BLOB PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    role       TEXT NOT NULL CHECK (role IN ('operator', 'worker')),
    serial     BLOB NOT NULL,
    issued_at  INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE TRIGGER credential_revoked AFTER UPDATE OF revoked_at ON credentials
BEGIN UPDATE revocations SET connections = connections + 1, list = list + 1; END;
PRAGMA user_version = 5;
