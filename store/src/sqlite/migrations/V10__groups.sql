-- Who is admitted: the first rule that an EK fits decides. Until now, every EK was admitted that was
-- enrolled or that a trusted vendor certified, and that stays so.
CREATE TABLE admission_groups (
    place  INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    answer TEXT NOT NULL CHECK (answer IN ('admit', 'ask', 'refuse')),
    rule   TEXT NOT NULL
) STRICT;
INSERT INTO admission_groups VALUES (1, 'enrolled', 'admit', '{"enrolled":true}'), (2, 'vendors', 'admit', '{}');
CREATE TABLE admission_version (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL) STRICT;
INSERT INTO admission_version VALUES (1, 0);
CREATE TABLE places (
    ek_id      BLOB PRIMARY KEY,
    group_name TEXT NOT NULL,
    taken_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX places_by_group ON places (group_name);
CREATE TABLE pending (
    ek_id      BLOB PRIMARY KEY,
    flow       TEXT NOT NULL,
    device_id  TEXT,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    facts      TEXT NOT NULL
) STRICT;
CREATE INDEX pending_by_last_seen ON pending (last_seen);
CREATE TABLE former_eks (
    device_id TEXT NOT NULL,
    ek_id     BLOB NOT NULL,
    since     INTEGER NOT NULL,
    until     INTEGER NOT NULL
) STRICT;
CREATE INDEX former_eks_by_device ON former_eks (device_id);
ALTER TABLE enrolments ADD COLUMN facts TEXT;
PRAGMA user_version = 10;
