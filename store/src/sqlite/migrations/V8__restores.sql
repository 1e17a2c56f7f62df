-- How often the CA was restored from a backup.
CREATE TABLE restores (
    epoch        INTEGER PRIMARY KEY,
    backed_up_at INTEGER NOT NULL,
    restored_at  INTEGER NOT NULL,
    resumed_at   INTEGER
) STRICT;
PRAGMA user_version = 8;
