-- Who wrote the database, and since when an offer of a shared key waits.
CREATE TABLE writer (version TEXT NOT NULL) STRICT;
ALTER TABLE shared_keys ADD COLUMN offered_at INTEGER NOT NULL DEFAULT 0;
UPDATE shared_keys SET offered_at = unixepoch();
CREATE INDEX shared_keys_unused ON shared_keys (offered_at) WHERE is_used = 0 AND generation = 1 AND plain_srk_generation = 0;
PRAGMA user_version = 7;
