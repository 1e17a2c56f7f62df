-- Entries of the audit are chained by hashes, from now on.
ALTER TABLE audit_changes ADD COLUMN number INTEGER;
ALTER TABLE audit_changes ADD COLUMN serial BLOB;
ALTER TABLE audit_changes ADD COLUMN replaced BLOB;
ALTER TABLE audit_changes ADD COLUMN event TEXT;
ALTER TABLE audit_changes ADD COLUMN hash BLOB;
ALTER TABLE audit_others ADD COLUMN number INTEGER;
ALTER TABLE audit_others ADD COLUMN serial BLOB;
ALTER TABLE audit_others ADD COLUMN replaced BLOB;
ALTER TABLE audit_others ADD COLUMN event TEXT;
ALTER TABLE audit_others ADD COLUMN hash BLOB;
CREATE TABLE audit_acts (
    id          INTEGER PRIMARY KEY,
    time_us     INTEGER NOT NULL,
    client      TEXT NOT NULL,
    action      TEXT NOT NULL,
    ek_id       BLOB,
    device_id   TEXT,
    is_proven   INTEGER NOT NULL,
    code        INTEGER,
    detail      TEXT,
    duration_us INTEGER NOT NULL,
    number      INTEGER,
    serial      BLOB,
    replaced    BLOB,
    event       TEXT,
    hash        BLOB
) STRICT;
CREATE TABLE audit_cuts (
    chain  TEXT PRIMARY KEY,
    id     INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hash   BLOB NOT NULL
) STRICT;
INSERT INTO audit_cuts SELECT 'changes', max(id), 0, zeroblob(32) FROM audit_changes HAVING max(id) > 0;
INSERT INTO audit_cuts SELECT 'others', max(id), 0, zeroblob(32) FROM audit_others HAVING max(id) > 0;
CREATE TABLE event_cursor (acts INTEGER NOT NULL, changes INTEGER NOT NULL, others INTEGER NOT NULL, teller BLOB, until INTEGER NOT NULL) STRICT;
INSERT INTO event_cursor SELECT 0, coalesce((SELECT max(id) FROM audit_changes), 0), coalesce((SELECT max(id) FROM audit_others), 0), NULL, 0;
PRAGMA user_version = 11;
