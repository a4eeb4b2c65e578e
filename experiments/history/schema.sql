-- A run is a folder of results. Its id, start and host identify it. Recording the same run again replaces its records.
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL,      -- name of the run's folder
    started_at TEXT NOT NULL,  -- UTC, ISO 8601
    suite TEXT NOT NULL,
    card TEXT NOT NULL,        -- GPU model that the rows target
    size TEXT NOT NULL,        -- full or tiny
    length TEXT NOT NULL,      -- as-taught, verdict or peak
    gpus_per_node INTEGER,     -- rows that need more GPUs were scaled down to this number; NULL: no limit
    host TEXT NOT NULL,        -- processor and GPUs of the machine
    git_commit TEXT,           -- commit of the checkout; NULL: the code was not in a checkout
    digest TEXT NOT NULL UNIQUE -- SHA-256 of the results; a copy of a folder is the same run
);
-- A figure of a row: a measured quantity, named as in the labs' statements, with its unit in the name.
CREATE TABLE IF NOT EXISTS figures (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    row TEXT NOT NULL,
    quantity TEXT NOT NULL,
    value REAL NOT NULL,
    spread REAL,               -- standard error of the value over the steps of the run; NULL: not known
    PRIMARY KEY (run, row, quantity)
);
-- A fact of a row: its outcome, its settings, and the device, versions, code and data that it was made with.
CREATE TABLE IF NOT EXISTS facts (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    row TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run, row, name)
);
-- A verdict: the status of one statement of the lab.
CREATE TABLE IF NOT EXISTS verdicts (
    run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    statement TEXT NOT NULL,
    says TEXT NOT NULL,        -- the statement in a sentence
    rows TEXT NOT NULL,        -- ids of its rows, separated by spaces
    expected TEXT NOT NULL,    -- values for which it passes
    status TEXT NOT NULL,      -- pass, fail, not evaluated or error
    grade TEXT,                -- measured, emulated, predicted or miniature; NULL without a verdict
    value TEXT NOT NULL,       -- measured or predicted value
    reason TEXT NOT NULL,
    PRIMARY KEY (run, statement)
);
-- Every figure with its run, the newest first.
CREATE VIEW IF NOT EXISTS trends AS
    SELECT suite, row, quantity, value, started_at, run_id, card, size, git_commit
    FROM figures JOIN runs USING (run) ORDER BY suite, row, quantity, started_at DESC;
