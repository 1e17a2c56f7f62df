-- Until then every shared key was sent to a plain storage root key, and the next one may have been.

ALTER TABLE enrolments ADD COLUMN plain_srk INTEGER NOT NULL DEFAULT 0;
ALTER TABLE shared_keys ADD COLUMN plain_srk_generation INTEGER NOT NULL DEFAULT 0;
UPDATE shared_keys SET plain_srk_generation = generation + 1;
