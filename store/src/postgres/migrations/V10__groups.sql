-- Who is admitted: the first rule that an EK fits decides.
CREATE TABLE admission_groups (
    place  bigint PRIMARY KEY,
    name   text COLLATE "C" NOT NULL UNIQUE,
    answer text NOT NULL CHECK (answer IN ('admit', 'ask', 'refuse')),
    rule   text NOT NULL                     -- conditions and terms: a JSON object
);
-- A CA that is there admitted every EK that was enrolled or that a trusted vendor certified, and that stays so.
INSERT INTO admission_groups
    SELECT * FROM (VALUES (1, 'enrolled', 'admit', '{"enrolled":true}'), (2, 'vendors', 'admit', '{}')) v
    WHERE EXISTS (SELECT FROM identities);
-- Grows with each change of these.
CREATE TABLE admission_version (id bigint PRIMARY KEY CHECK (id = 1), number bigint NOT NULL);
INSERT INTO admission_version VALUES (1, 0);

-- Who has a place in a group that has so many and no more.
CREATE TABLE places (
    ek_id      bytea PRIMARY KEY,
    group_name text COLLATE "C" NOT NULL,
    taken_at   bigint NOT NULL
);
CREATE INDEX places_by_group ON places (group_name);

-- EKs about which an operator is asked. Strangers make these rows, so their number is limited.
CREATE TABLE pending (
    ek_id      bytea PRIMARY KEY,
    flow       text NOT NULL,                -- that was asked for last
    device_id  text COLLATE "C",
    first_seen bigint NOT NULL,
    last_seen  bigint NOT NULL,
    facts      text NOT NULL                 -- what the certificate says of the TPM: a JSON object
);
CREATE INDEX pending_by_last_seen ON pending (last_seen);

-- What a certificate said of the TPM of an EK that is enrolled: a JSON object.
ALTER TABLE enrolments ADD COLUMN facts text;
