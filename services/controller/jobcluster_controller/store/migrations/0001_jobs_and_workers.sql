-- Jobs in the order in which they came; number is what lists and cursors go by.
CREATE TABLE jobs (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id    TEXT NOT NULL UNIQUE,
    state     TEXT NOT NULL,
    worker_id TEXT,
    name      TEXT,
    array_id  TEXT,
    status    TEXT NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE INDEX jobs_by_worker ON jobs (worker_id, number) WHERE worker_id IS NOT NULL;
CREATE INDEX jobs_by_name ON jobs (name, number) WHERE name IS NOT NULL;
CREATE INDEX jobs_by_array ON jobs (array_id, number) WHERE array_id IS NOT NULL;

-- Apart from jobs, because a spec may hold megabytes and never changes, and a job's row is rewritten at each change.
CREATE TABLE specs (
    number INTEGER PRIMARY KEY,
    spec   TEXT NOT NULL
);

CREATE TABLE labels (
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (key, value, number)
) WITHOUT ROWID;
CREATE INDEX labels_by_number ON labels (number);

CREATE TABLE idempotency_keys (
    caller     TEXT NOT NULL,
    route      TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  TEXT NOT NULL,
    job_id     TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    PRIMARY KEY (caller, route, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_us);

CREATE TABLE workers (
    worker_id TEXT PRIMARY KEY,
    document  TEXT NOT NULL
) WITHOUT ROWID;
