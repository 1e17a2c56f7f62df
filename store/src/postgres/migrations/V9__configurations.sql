-- Documents that operators attach to devices or to the scope. A row outlives its document, so that the revision never goes back.
CREATE TABLE configurations (
    device_id text COLLATE "C" PRIMARY KEY,  -- empty for the scope
    revision  bigint NOT NULL,
    document  bytea,                         -- NULL once it was removed
    set_at    bigint NOT NULL
);
CREATE INDEX configurations_by_revision ON configurations (revision);
-- The newest revision that was given.
CREATE TABLE configuration_revisions (newest bigint NOT NULL);
INSERT INTO configuration_revisions VALUES (0);
