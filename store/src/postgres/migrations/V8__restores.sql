-- How often the CA was restored from a backup. While it is not resumed, nobody may serve with it.
CREATE TABLE restores (
    epoch        bigint PRIMARY KEY,
    backed_up_at bigint NOT NULL,
    restored_at  bigint NOT NULL,
    resumed_at   bigint
);
-- The latest time at which a worker was at work, and how often an operator accepted another one.
CREATE TABLE clock (latest bigint NOT NULL, accepted bigint NOT NULL);
INSERT INTO clock VALUES (0, 0);
