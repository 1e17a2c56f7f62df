-- Anchors that may be narrow, and what an operator's list says besides.
ALTER TABLE anchors RENAME TO old_anchors;
CREATE TABLE anchors (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE,
    certificate BLOB NOT NULL,
    subject     TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('root', 'issuer', 'anchor')),
    allowances  TEXT NOT NULL,
    not_after   INTEGER NOT NULL,
    added_at    INTEGER NOT NULL
) STRICT;
INSERT INTO anchors
    SELECT id, fingerprint, certificate, subject, iif(root, 'root', 'issuer'), '', not_after, added_at FROM old_anchors;
DROP TABLE old_anchors;

ALTER TABLE enrolments RENAME TO old_enrolments;
CREATE TABLE enrolments (
    ek_id         BLOB PRIMARY KEY,
    device_id     TEXT UNIQUE,
    recognised    TEXT NOT NULL,
    reprovision   TEXT NOT NULL CHECK (reprovision IN ('reissue', 'reuse', 'never')),
    legacy_dps_ek INTEGER NOT NULL,
    added_at      INTEGER NOT NULL,
    tags          TEXT NOT NULL
) STRICT;
INSERT INTO enrolments
    SELECT ek_id, device_id, recognised, reprovision, legacy_dps_ek, added_at, '{}' FROM old_enrolments ORDER BY rowid;
DROP TABLE old_enrolments;
PRAGMA user_version = 4;
