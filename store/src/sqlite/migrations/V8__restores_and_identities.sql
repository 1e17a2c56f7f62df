-- How often the CA was restored from a backup.
CREATE TABLE restores (
    epoch        INTEGER PRIMARY KEY,
    backed_up_at INTEGER NOT NULL,
    restored_at  INTEGER NOT NULL,
    resumed_at   INTEGER
) STRICT;
-- The latest time at which a worker was at work, and how often an operator accepted another one.
CREATE TABLE clock (latest INTEGER NOT NULL, accepted INTEGER NOT NULL) STRICT;
INSERT INTO clock VALUES (0, 0);

-- Identities with rights and several certificates each, in place of credentials.
CREATE TABLE identities (
    name      TEXT PRIMARY KEY,
    role      TEXT NOT NULL CHECK (role IN ('broker', 'worker', 'operator', 'backend')),
    publish   TEXT NOT NULL,
    subscribe TEXT NOT NULL
) STRICT;
CREATE TABLE identity_certificates (
    sha256     BLOB PRIMARY KEY,
    name       TEXT NOT NULL,
    serial     BLOB NOT NULL,
    issued_at  INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX identity_certificates_by_name ON identity_certificates (name);
INSERT INTO identities SELECT name, role, '', '' FROM credentials ORDER BY rowid;
INSERT INTO identity_certificates
    SELECT sha256, name, serial, issued_at, not_after, revoked_at FROM credentials ORDER BY rowid;
DROP TABLE credentials;
CREATE TRIGGER identity_certificate_revoked AFTER UPDATE OF revoked_at ON identity_certificates
BEGIN UPDATE revocations SET connections = connections + 1; END;
CREATE TRIGGER identity_rights_changed AFTER UPDATE OF publish, subscribe ON identities
WHEN new.publish <> old.publish OR new.subscribe <> old.subscribe
BEGIN UPDATE revocations SET connections = connections + 1; END;
PRAGMA user_version = 8;
