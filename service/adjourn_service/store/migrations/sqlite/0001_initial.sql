-- Moments are microseconds since the epoch. A live task is in exactly one of scheduled, ready and lease; a kept one has
-- a state. So the row of a task is written once and removed once, and what moves is narrow.

CREATE TABLE queue (
    queue_id   INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    policy     TEXT NOT NULL,              -- JSON of model.QueuePolicy
    paused     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
);

-- Counters, written with the commit that changes them; never counted from rows.
CREATE TABLE queue_stats (
    queue_id              INTEGER PRIMARY KEY,
    scheduled             INTEGER NOT NULL,
    ready                 INTEGER NOT NULL,
    leased                INTEGER NOT NULL,
    dead                  INTEGER NOT NULL,
    retained              INTEGER NOT NULL,
    created_total         INTEGER NOT NULL,
    succeeded_total       INTEGER NOT NULL,
    failed_attempts_total INTEGER NOT NULL,
    dead_total            INTEGER NOT NULL,
    tokens                REAL,            -- the token bucket; NULL: full
    tokens_at             INTEGER
);

CREATE TABLE task (
    seq              INTEGER PRIMARY KEY,  -- queue_id << 43, plus the order of creation in the queue
    uid              BLOB NOT NULL,
    queue_id         INTEGER NOT NULL,
    rank             INTEGER NOT NULL,     -- minus priority
    due_at           INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    attempts         INTEGER NOT NULL DEFAULT 0,
    history          INTEGER NOT NULL DEFAULT 0,  -- rows ever written to attempt
    first_attempt_at INTEGER,
    name             TEXT,
    tag              TEXT,
    key              TEXT,
    retain_us        INTEGER,
    retry            TEXT,                 -- JSON of model.RetryPolicy; NULL: the queue's
    state            INTEGER,              -- model.TaskState of a task that has ended and is kept; NULL: it lives
    ended_at         INTEGER,
    expires_at       INTEGER,
    result           BLOB,
    body             BLOB NOT NULL         -- last: a row is read without it where it is long
);
CREATE INDEX task_ended ON task (state, seq) WHERE state IS NOT NULL;
CREATE INDEX task_expiry ON task (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE scheduled (
    due_at INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (due_at, seq)
) WITHOUT ROWID;

CREATE TABLE ready (
    queue_id INTEGER NOT NULL,
    rank     INTEGER NOT NULL,
    due_at   INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    PRIMARY KEY (queue_id, rank, due_at, seq)
) WITHOUT ROWID;

-- Ready tasks that have a tag or a key once more, by it. A label is 't' or 'k' and the tag or key.
CREATE TABLE ready_label (
    queue_id INTEGER NOT NULL,
    label    TEXT NOT NULL,
    rank     INTEGER NOT NULL,
    due_at   INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    PRIMARY KEY (queue_id, label, rank, due_at, seq)
) WITHOUT ROWID;

CREATE TABLE lease (
    seq         INTEGER PRIMARY KEY,
    nonce       INTEGER NOT NULL,          -- with seq, the lease id
    queue_id    INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    special     INTEGER NOT NULL,          -- 0: a success only needs its rows removed, if its queue retains nothing
    deadline_at INTEGER NOT NULL,
    leased_at   INTEGER NOT NULL,
    worker_id   TEXT NOT NULL
);
CREATE INDEX lease_deadline ON lease (deadline_at);

-- Every uid that was created lately, whether its task still exists or not: the memory that makes creates idempotent, and
-- the index by uid. A row outlives its task until its own time is past the window, so a task that runs soon costs
-- nothing more than this one row, and rows are dropped from the left edge.
CREATE TABLE task_uid (
    uid BLOB PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE task_name (
    queue_id   INTEGER NOT NULL,
    name       TEXT NOT NULL,
    seq        INTEGER,                    -- NULL: a tombstone
    expires_at INTEGER,                    -- of a tombstone
    PRIMARY KEY (queue_id, name)
) WITHOUT ROWID;
CREATE INDEX task_name_expiry ON task_name (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE attempt (
    seq             INTEGER NOT NULL,
    ordinal         INTEGER NOT NULL,
    number          INTEGER NOT NULL,
    worker_id       TEXT NOT NULL,
    leased_at       INTEGER NOT NULL,
    ended_at        INTEGER NOT NULL,
    outcome         INTEGER NOT NULL,
    error_type      TEXT,
    error_message   TEXT,
    error_traceback TEXT,
    PRIMARY KEY (seq, ordinal)
) WITHOUT ROWID;
