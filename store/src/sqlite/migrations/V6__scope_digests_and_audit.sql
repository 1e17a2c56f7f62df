-- The scope, digests of certificates, plain storage root keys, and an audit in two parts.
CREATE TABLE scope (name TEXT NOT NULL) STRICT;

ALTER TABLE enrolments RENAME TO old_enrolments;
CREATE TABLE enrolments (
    ek_id         BLOB PRIMARY KEY,
    device_id     TEXT UNIQUE,
    recognised    TEXT NOT NULL,
    reprovision   TEXT NOT NULL CHECK (reprovision IN ('reissue', 'reuse', 'never')),
    legacy_dps_ek INTEGER NOT NULL,
    added_at      INTEGER NOT NULL,
    tags          TEXT NOT NULL,
    plain_srk     INTEGER NOT NULL
) STRICT;
INSERT INTO enrolments
    SELECT ek_id, device_id, recognised, reprovision, legacy_dps_ek, added_at, tags, 0 FROM old_enrolments ORDER BY rowid;
DROP TABLE old_enrolments;

DROP TRIGGER certificate_ended;
DROP TRIGGER credential_revoked;
DROP INDEX one_active_certificate;
DROP INDEX certificates_ended;
DROP INDEX certificates_to_confirm;
ALTER TABLE certificates RENAME TO old_certificates;
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
    sha256       BLOB NOT NULL,
    der          BLOB NOT NULL
) STRICT;
-- What waits stands in clear, where it must not, and only the CA has the key to encrypt it: it is revoked, and its device asks again.
INSERT INTO certificates
    SELECT serial, device_id, ek_id, ik_id, assurance, iif(status = 'unconfirmed', 'revoked', status), not_before, not_after, issued_at,
           confirm_by, confirmed_at, iif(status = 'unconfirmed', unixepoch(), ended_at), assay_sha256(der),
           iif(confirmed_at IS NULL, x'', der)
    FROM old_certificates ORDER BY rowid;
DROP TABLE old_certificates;
CREATE UNIQUE INDEX one_active_certificate ON certificates (ek_id, iif(status = 'active', 1, NULL));
CREATE INDEX certificates_ended ON certificates (not_after) WHERE status IN ('superseded', 'revoked');
CREATE INDEX certificates_never_confirmed ON certificates (not_after) WHERE status = 'revoked' AND confirmed_at IS NULL;
CREATE INDEX certificates_to_confirm ON certificates (confirm_by) WHERE status = 'unconfirmed';
UPDATE revocations SET list = list + 1;

ALTER TABLE shared_keys ADD COLUMN plain_srk_generation INTEGER NOT NULL DEFAULT 0;

CREATE TABLE audit_changes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    time_us     INTEGER NOT NULL,
    client      TEXT NOT NULL,
    action      TEXT NOT NULL,
    ek_id       BLOB,
    device_id   TEXT,
    is_proven   INTEGER NOT NULL,
    code        INTEGER,
    detail      TEXT,
    duration_us INTEGER NOT NULL
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
    duration_us INTEGER NOT NULL
) STRICT;
INSERT INTO audit_changes
    SELECT id, time * 1000000, client, action, ek_id, device_id, 1, code, detail, duration_us
    FROM audit WHERE action IN ('certify', 'confirm') AND code IS NULL ORDER BY id;
INSERT INTO audit_others
    SELECT id, time * 1000000, client, action, ek_id, device_id, action IN ('certify', 'confirm'), code, detail, duration_us
    FROM audit WHERE action NOT IN ('certify', 'confirm') OR code IS NOT NULL ORDER BY id;
DROP TABLE audit;

CREATE TRIGGER certificate_ended AFTER UPDATE OF status ON certificates WHEN new.status IN ('superseded', 'revoked')
BEGIN UPDATE revocations SET connections = connections + (old.status = 'active'), list = list + 1; END;
CREATE TRIGGER credential_revoked AFTER UPDATE OF revoked_at ON credentials
BEGIN UPDATE revocations SET connections = connections + 1; END;
PRAGMA user_version = 6;
