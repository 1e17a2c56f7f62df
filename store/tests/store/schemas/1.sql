-- Times are seconds since 1970-01-01T00:00:00Z. An EK id is SHA-256 of the EK's SubjectPublicKeyInfo.

CREATE TABLE anchors (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE,   -- SHA-256 of the certificate
    certificate BLOB NOT NULL,
    subject     TEXT NOT NULL,
    root        INTEGER NOT NULL,       -- self-signed; others only help to build a path
    not_after   INTEGER NOT NULL,
    added_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE enrolments (
    ek_id      BLOB PRIMARY KEY,
    device_id  TEXT UNIQUE,
    recognised TEXT NOT NULL,           -- the encoding that the operator's file had
    disabled   INTEGER NOT NULL DEFAULT 0,
    added_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE devices (
    device_id     TEXT PRIMARY KEY,
    ek_id         BLOB NOT NULL UNIQUE,
    assurance     TEXT NOT NULL,        -- what made the CA trust the EK
    disabled      INTEGER NOT NULL DEFAULT 0,
    registered_at INTEGER NOT NULL
) STRICT;

CREATE TABLE certificates (
    serial     BLOB PRIMARY KEY,
    device_id  TEXT NOT NULL REFERENCES devices,
    ik_id      BLOB NOT NULL,           -- SHA-256 of the IK's SubjectPublicKeyInfo
    status     TEXT NOT NULL CHECK (status IN ('active', 'superseded')),
    not_before INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    issued_at  INTEGER NOT NULL,
    der        BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX one_active_certificate ON certificates (device_id) WHERE status = 'active';
CREATE INDEX certificates_by_device ON certificates (device_id);

CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    time        INTEGER NOT NULL,
    client      TEXT NOT NULL,          -- MQTT client id
    action      TEXT NOT NULL,          -- challenge, certify, unreadable
    ek_id       BLOB,
    device_id   TEXT,
    code        INTEGER,                -- of the problem, if it was refused
    detail      TEXT,
    duration_us INTEGER NOT NULL        -- from receipt to decision
) STRICT;

-- Counts what may end a live connection, so that a broker notices without reading the tables.
CREATE TABLE revocations (count INTEGER NOT NULL) STRICT;
INSERT INTO revocations VALUES (0);

CREATE TRIGGER device_disabled AFTER UPDATE OF disabled ON devices WHEN new.disabled
BEGIN UPDATE revocations SET count = count + 1; END;
CREATE TRIGGER enrolment_disabled AFTER UPDATE OF disabled ON enrolments WHEN new.disabled
BEGIN UPDATE revocations SET count = count + 1; END;
CREATE TRIGGER certificate_revoked AFTER UPDATE OF status ON certificates WHEN new.status <> 'active'
BEGIN UPDATE revocations SET count = count + 1; END;
