-- Certificates that are sealed, shared keys, and locking out EKs that are not registered.
DROP TRIGGER device_disabled;
DROP TRIGGER enrolment_disabled;
DROP TRIGGER certificate_revoked;
DROP INDEX one_active_certificate;
DROP INDEX certificates_by_device;
ALTER TABLE certificates RENAME TO old_certificates;
ALTER TABLE devices RENAME TO old_devices;
ALTER TABLE enrolments RENAME TO old_enrolments;
ALTER TABLE revocations RENAME TO old_revocations;

CREATE TABLE enrolments (
    ek_id         BLOB PRIMARY KEY,
    device_id     TEXT UNIQUE,
    recognised    TEXT NOT NULL,
    reprovision   TEXT NOT NULL CHECK (reprovision IN ('reissue', 'reuse', 'never')),
    legacy_dps_ek INTEGER NOT NULL,
    added_at      INTEGER NOT NULL
) STRICT;
INSERT INTO enrolments
    SELECT ek_id, device_id, recognised, 'reissue', 0, added_at FROM old_enrolments ORDER BY rowid;

CREATE TABLE devices (
    device_id     TEXT PRIMARY KEY,
    ek_id         BLOB NOT NULL UNIQUE,
    assurance     TEXT NOT NULL,
    registered_at INTEGER NOT NULL
) STRICT;
INSERT INTO devices SELECT device_id, ek_id, assurance, registered_at FROM old_devices ORDER BY rowid;

CREATE TABLE disabled_eks (
    ek_id BLOB PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT;
INSERT INTO disabled_eks
    SELECT ek_id, unixepoch() FROM old_enrolments WHERE disabled
    UNION SELECT ek_id, unixepoch() FROM old_devices WHERE disabled;

CREATE TABLE certificates (
    serial       BLOB PRIMARY KEY,
    device_id    TEXT NOT NULL,
    ek_id        BLOB NOT NULL,
    ik_id        BLOB NOT NULL,
    assurance    TEXT NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('unconfirmed', 'active', 'superseded', 'revoked')),
    not_before   INTEGER NOT NULL,
    not_after    INTEGER NOT NULL,
    issued_at    INTEGER NOT NULL,
    confirm_by   INTEGER,
    confirmed_at INTEGER,
    ended_at     INTEGER,
    der          BLOB NOT NULL
) STRICT;
-- A certificate ended when the next one was issued.
INSERT INTO certificates
    SELECT c.serial, c.device_id, d.ek_id, c.ik_id, d.assurance, c.status, c.not_before, c.not_after, c.issued_at, NULL, c.issued_at,
           iif(c.status = 'active', NULL, coalesce((SELECT min(n.issued_at) FROM old_certificates n
               WHERE n.device_id = c.device_id AND n.rowid > c.rowid), c.issued_at)), c.der
    FROM old_certificates c JOIN old_devices d USING (device_id) ORDER BY c.rowid;

CREATE UNIQUE INDEX one_active_certificate ON certificates (device_id) WHERE status = 'active';
CREATE INDEX certificates_by_ek ON certificates (ek_id);
CREATE INDEX certificates_ended ON certificates (not_after) WHERE status IN ('superseded', 'revoked');
CREATE INDEX certificates_to_confirm ON certificates (confirm_by) WHERE status = 'unconfirmed';

CREATE TABLE shared_keys (
    ek_id      BLOB PRIMARY KEY,
    device_id  TEXT NOT NULL,
    assurance  TEXT NOT NULL,
    generation INTEGER NOT NULL,
    is_used    INTEGER NOT NULL,
    day        INTEGER NOT NULL DEFAULT 0,
    today      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX shared_keys_by_device ON shared_keys (device_id);

CREATE TABLE revocations (connections INTEGER NOT NULL, list INTEGER NOT NULL) STRICT;
INSERT INTO revocations SELECT count, count FROM old_revocations;
CREATE TABLE revocation_lists (number INTEGER NOT NULL) STRICT;
INSERT INTO revocation_lists VALUES (0);

DROP TABLE old_certificates;
DROP TABLE old_devices;
DROP TABLE old_enrolments;
DROP TABLE old_revocations;

CREATE TRIGGER ek_disabled AFTER INSERT ON disabled_eks
BEGIN UPDATE revocations SET connections = connections + 1, list = list + 1; END;
CREATE TRIGGER ek_enabled AFTER DELETE ON disabled_eks
BEGIN UPDATE revocations SET list = list + 1; END;
CREATE TRIGGER certificate_ended AFTER UPDATE OF status ON certificates WHEN new.status IN ('superseded', 'revoked')
BEGIN UPDATE revocations SET connections = connections + 1, list = list + 1; END;
CREATE TRIGGER shared_key_retired AFTER UPDATE OF generation ON shared_keys WHEN new.generation <> old.generation
BEGIN UPDATE revocations SET connections = connections + 1; END;
PRAGMA user_version = 2;
