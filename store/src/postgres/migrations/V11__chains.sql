-- Entries of the audit are chained by hashes, from now on: `number` grows over all three tables, and `id` has no gaps.
ALTER TABLE audit_changes ADD COLUMN number bigint, ADD COLUMN serial bytea, ADD COLUMN replaced bytea,
    ADD COLUMN event text, ADD COLUMN hash bytea;
ALTER TABLE audit_others ADD COLUMN number bigint, ADD COLUMN serial bytea, ADD COLUMN replaced bytea,
    ADD COLUMN event text, ADD COLUMN hash bytea;
-- What operators did.
CREATE TABLE audit_acts (
    id          bigint PRIMARY KEY,
    time_us     bigint NOT NULL,
    client      text NOT NULL,
    action      text NOT NULL,
    ek_id       bytea,
    device_id   text,
    is_proven   boolean NOT NULL,
    code        bigint,
    detail      text,
    duration_us bigint NOT NULL,
    number      bigint,
    serial      bytea,
    replaced    bytea,
    event       text,
    hash        bytea
);
-- The last entry of each chain that was forgotten, so that the rest can be verified.
CREATE TABLE audit_cuts (
    chain  text PRIMARY KEY,
    id     bigint NOT NULL,
    number bigint NOT NULL,
    hash   bytea NOT NULL
);
INSERT INTO audit_cuts SELECT 'changes', max(id), 0, decode(repeat('00', 32), 'hex') FROM audit_changes HAVING max(id) > 0;
INSERT INTO audit_cuts SELECT 'others', max(id), 0, decode(repeat('00', 32), 'hex') FROM audit_others HAVING max(id) > 0;
-- How far the audit was told as events, and which worker tells it until when (in milliseconds since 1970).
CREATE TABLE event_cursor (acts bigint NOT NULL, changes bigint NOT NULL, others bigint NOT NULL, teller bytea, until bigint NOT NULL);
INSERT INTO event_cursor SELECT 0, coalesce((SELECT max(id) FROM audit_changes), 0), coalesce((SELECT max(id) FROM audit_others), 0), NULL, 0;
