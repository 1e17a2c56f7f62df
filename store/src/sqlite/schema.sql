-- Times are seconds since 1970-01-01T00:00:00Z. An EK id is SHA-256 of the EK's SubjectPublicKeyInfo.

-- The version of Assay that gave the database this schema.
CREATE TABLE writer (version TEXT NOT NULL) STRICT;

-- What devices know the CA by, once there are any: their topics and certificates say it.
CREATE TABLE scope (name TEXT NOT NULL) STRICT;

CREATE TABLE anchors (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE,   -- SHA-256 of the certificate
    certificate BLOB NOT NULL,
    subject     TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('root', 'issuer', 'anchor')),  -- an issuer only helps to build a path
    allowances  TEXT NOT NULL,          -- what EK certificates under an anchor may lack, with commas in between
    not_after   INTEGER NOT NULL,
    added_at    INTEGER NOT NULL
) STRICT;

-- Who is admitted: the first rule that an EK fits decides.
CREATE TABLE admission_groups (
    place  INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    answer TEXT NOT NULL CHECK (answer IN ('admit', 'ask', 'refuse')),
    rule   TEXT NOT NULL                -- conditions and terms: a JSON object
) STRICT;
-- Grows with each change of these.
CREATE TABLE admission_version (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL) STRICT;
INSERT INTO admission_version VALUES (1, 0);

-- Who has a place in a group that has so many and no more.
CREATE TABLE places (
    ek_id      BLOB PRIMARY KEY,
    group_name TEXT NOT NULL,
    taken_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX places_by_group ON places (group_name);

-- EKs about which an operator is asked. Strangers make these rows, so their number is limited.
CREATE TABLE pending (
    ek_id      BLOB PRIMARY KEY,
    flow       TEXT NOT NULL,           -- that was asked for last
    device_id  TEXT,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    facts      TEXT NOT NULL            -- what the certificate says of the TPM: a JSON object
) STRICT;
CREATE INDEX pending_by_last_seen ON pending (last_seen);

CREATE TABLE enrolments (
    ek_id         BLOB PRIMARY KEY,
    device_id     TEXT UNIQUE,
    recognised    TEXT NOT NULL,        -- the encoding that the operator's file had
    reprovision   TEXT NOT NULL CHECK (reprovision IN ('reissue', 'reuse', 'never')),
    legacy_dps_ek INTEGER NOT NULL,     -- an EK of Azure's SDKs, which no vendor certified
    added_at      INTEGER NOT NULL,
    tags          TEXT NOT NULL,        -- what the operator's list says besides: a JSON object of strings
    plain_srk     INTEGER NOT NULL,     -- its shared key may be sent to a plain storage root key
    facts         TEXT                  -- what a certificate said of the TPM: a JSON object
) STRICT;

-- EKs whose TPM proved itself: by a ticket, a confirmation, or a token.
CREATE TABLE devices (
    device_id     TEXT PRIMARY KEY,
    ek_id         BLOB NOT NULL UNIQUE,
    assurance     TEXT NOT NULL,        -- what made the CA trust the EK
    registered_at INTEGER NOT NULL
) STRICT;

-- EKs that were registered under a device id, and were removed or replaced.
CREATE TABLE former_eks (
    device_id TEXT NOT NULL,
    ek_id     BLOB NOT NULL,
    since     INTEGER NOT NULL,
    until     INTEGER NOT NULL
) STRICT;
CREATE INDEX former_eks_by_device ON former_eks (device_id);

-- EKs that an operator locked out, enrolled and registered or not: an enrolment would make them trusted once they are enabled again.
CREATE TABLE disabled_eks (
    ek_id BLOB PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT;

CREATE TABLE certificates (
    serial       BLOB PRIMARY KEY,
    device_id    TEXT NOT NULL,
    ek_id        BLOB NOT NULL,
    ik_id        BLOB NOT NULL,         -- SHA-256 of the IK's SubjectPublicKeyInfo
    assurance    TEXT NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('unconfirmed', 'active', 'superseded', 'revoked')),
    not_before   INTEGER NOT NULL,
    not_after    INTEGER NOT NULL,
    issued_at    INTEGER NOT NULL,
    confirm_by   INTEGER,               -- of a certificate that was sealed
    confirmed_at INTEGER,               -- since when it is its device's
    ended_at     INTEGER,               -- since when it is superseded or revoked
    sha256       BLOB NOT NULL,         -- of the certificate
    der          BLOB NOT NULL          -- while it waits for its confirmation, encrypted; nothing if it was not confirmed
) STRICT;

-- One active certificate per EK, and so per device, for an EK has one device id; SQLite lets any number of rows share a NULL. It finds an
-- EK's certificates as well: each index over values in no order costs a page that is written anew for every certificate.
CREATE UNIQUE INDEX one_active_certificate ON certificates (ek_id, iif(status = 'active', 1, NULL));
CREATE INDEX certificates_ended ON certificates (not_after) WHERE status IN ('superseded', 'revoked');
CREATE INDEX certificates_never_confirmed ON certificates (not_after) WHERE status = 'revoked' AND confirmed_at IS NULL;
CREATE INDEX certificates_to_confirm ON certificates (confirm_by) WHERE status = 'unconfirmed';

-- Who has certificates of the service CA.
CREATE TABLE identities (
    name      TEXT PRIMARY KEY,
    role      TEXT NOT NULL CHECK (role IN ('broker', 'worker', 'operator', 'backend')),
    publish   TEXT NOT NULL,            -- of a backend: topic filters without version and scope, with spaces in between
    subscribe TEXT NOT NULL
) STRICT;

-- An identity has several while it is renewed.
CREATE TABLE identity_certificates (
    sha256     BLOB PRIMARY KEY,        -- of the certificate
    name       TEXT NOT NULL,           -- of the identity
    serial     BLOB NOT NULL,
    issued_at  INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX identity_certificates_by_name ON identity_certificates (name);

-- Outlives device and enrolment, so that a generation that was retired never returns.
CREATE TABLE shared_keys (
    ek_id      BLOB PRIMARY KEY,
    device_id  TEXT NOT NULL,           -- the registration it was last offered to
    assurance  TEXT NOT NULL,
    generation INTEGER NOT NULL,
    is_used    INTEGER NOT NULL,        -- a token of this generation was accepted
    day        INTEGER NOT NULL DEFAULT 0,  -- when the first of `today` generations was taken into use
    today      INTEGER NOT NULL DEFAULT 0,
    plain_srk_generation INTEGER NOT NULL DEFAULT 0,  -- the last that was offered to a plain storage root key, else 0
    offered_at INTEGER NOT NULL DEFAULT 0   -- when it was last offered
) STRICT;

CREATE INDEX shared_keys_by_device ON shared_keys (device_id);
-- Offers that nobody used, and that nothing must be remembered of.
CREATE INDEX shared_keys_unused ON shared_keys (offered_at) WHERE is_used = 0 AND generation = 1 AND plain_srk_generation = 0;

-- Decisions that changed what a device has, of which a device gets some a day. Each of these tables keeps its newest, so that those who ask
-- without end, which fills audit_others, push none of these out. Each is a hash chain; entries without hash are from before there were chains.
CREATE TABLE audit_changes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- without gaps
    time_us     INTEGER NOT NULL,       -- microseconds since 1970: the order within a second counts
    client      TEXT NOT NULL,          -- MQTT client id
    action      TEXT NOT NULL,          -- challenge, certify, enroll, confirm, register, check, unreadable
    ek_id       BLOB,
    device_id   TEXT,
    is_proven   INTEGER NOT NULL,       -- the device had proved itself; else the id is due to an EK that somebody showed
    code        INTEGER,                -- of the problem, if it was refused
    detail      TEXT,
    duration_us INTEGER NOT NULL,       -- from receipt to decision
    number      INTEGER,                -- grows over all three tables
    serial      BLOB,                   -- of the certificate that came into force
    replaced    BLOB,                   -- serial of the certificate that it superseded
    event       TEXT,                   -- what became of it, in a word
    hash        BLOB                    -- over all of this and the hash before
) STRICT;

CREATE TABLE audit_others (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
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

-- What operators did.
CREATE TABLE audit_acts (
    id          INTEGER PRIMARY KEY,
    time_us     INTEGER NOT NULL,
    client      TEXT NOT NULL,          -- who, e.g. unix:root
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

-- The last entry of each chain that was forgotten, so that the rest can be verified.
CREATE TABLE audit_cuts (
    chain  TEXT PRIMARY KEY,            -- acts, changes, others
    id     INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hash   BLOB NOT NULL
) STRICT;

-- How far the audit was told as events, and which worker tells it until when (in milliseconds since 1970).
CREATE TABLE event_cursor (acts INTEGER NOT NULL, changes INTEGER NOT NULL, others INTEGER NOT NULL, teller BLOB, until INTEGER NOT NULL) STRICT;
INSERT INTO event_cursor VALUES (0, 0, 0, NULL, 0);

-- Counts what may end a live connection, and what changes the revocation list, so that brokers and workers notice without reading the
-- tables.
CREATE TABLE revocations (connections INTEGER NOT NULL, list INTEGER NOT NULL) STRICT;
INSERT INTO revocations VALUES (0, 0);

-- How often the CA was restored from a backup. While it is not resumed, nobody may serve with it.
CREATE TABLE restores (
    epoch        INTEGER PRIMARY KEY,
    backed_up_at INTEGER NOT NULL,
    restored_at  INTEGER NOT NULL,
    resumed_at   INTEGER
) STRICT;

-- The latest time at which a worker was at work, and how often an operator accepted another one.
CREATE TABLE clock (latest INTEGER NOT NULL, accepted INTEGER NOT NULL) STRICT;
INSERT INTO clock VALUES (0, 0);

-- Documents that operators attach to devices or to the scope. A row outlives its document, so that the revision never goes back.
CREATE TABLE configurations (
    device_id TEXT PRIMARY KEY,         -- empty for the scope
    revision  INTEGER NOT NULL,
    document  BLOB,                     -- NULL once it was removed
    set_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX configurations_by_revision ON configurations (revision);
-- The newest revision that was given.
CREATE TABLE configuration_revisions (newest INTEGER NOT NULL) STRICT;
INSERT INTO configuration_revisions VALUES (0);

-- The number of the last revocation list (RFC 5280, 5.2.3).
CREATE TABLE revocation_lists (number INTEGER NOT NULL) STRICT;
INSERT INTO revocation_lists VALUES (0);

CREATE TRIGGER ek_disabled AFTER INSERT ON disabled_eks
BEGIN UPDATE revocations SET connections = connections + 1, list = list + 1; END;
CREATE TRIGGER ek_enabled AFTER DELETE ON disabled_eks
BEGIN UPDATE revocations SET list = list + 1; END;
CREATE TRIGGER certificate_ended AFTER UPDATE OF status ON certificates WHEN new.status IN ('superseded', 'revoked')
BEGIN UPDATE revocations SET connections = connections + (old.status = 'active'), list = list + 1; END;
CREATE TRIGGER shared_key_retired AFTER UPDATE OF generation ON shared_keys WHEN new.generation <> old.generation
BEGIN UPDATE revocations SET connections = connections + 1; END;
CREATE TRIGGER identity_certificate_revoked AFTER UPDATE OF revoked_at ON identity_certificates
BEGIN UPDATE revocations SET connections = connections + 1; END;
CREATE TRIGGER identity_rights_changed AFTER UPDATE OF publish, subscribe ON identities
WHEN new.publish <> old.publish OR new.subscribe <> old.subscribe
BEGIN UPDATE revocations SET connections = connections + 1; END;
