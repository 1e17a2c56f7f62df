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
PRAGMA user_version = 8;
