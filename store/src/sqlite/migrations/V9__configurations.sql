-- Documents that operators attach to devices or to the scope.
CREATE TABLE configurations (
    device_id TEXT PRIMARY KEY,
    revision  INTEGER NOT NULL,
    document  BLOB,
    set_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX configurations_by_revision ON configurations (revision);
CREATE TABLE configuration_revisions (newest INTEGER NOT NULL) STRICT;
INSERT INTO configuration_revisions VALUES (0);
PRAGMA user_version = 9;
