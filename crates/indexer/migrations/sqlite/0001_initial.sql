-- Version 1 of the Indexer's database. Times are milliseconds since 1970; hashes and keys are 32 bytes.

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);

CREATE TABLE accounts (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL
);

-- Only a hash of each token is kept.
CREATE TABLE tokens (
    hash       BLOB NOT NULL PRIMARY KEY,
    account_id BIGINT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT
);
CREATE INDEX tokens_by_account ON tokens (account_id);

CREATE TABLE bucket_references (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    account_id BIGINT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    bucket     BLOB NOT NULL,
    is_public  INTEGER NOT NULL,
    length     BIGINT NOT NULL,
    log_bytes  BIGINT NOT NULL,
    head       BLOB NOT NULL,
    created_ms BIGINT NOT NULL,
    UNIQUE (account_id, name)
);

CREATE TABLE entries (
    reference_id BIGINT NOT NULL REFERENCES bucket_references (id) ON DELETE CASCADE,
    sequence     BIGINT NOT NULL,
    entry        BLOB NOT NULL,
    PRIMARY KEY (reference_id, sequence)
);

-- What the logs say, for one look-up per request: accounts of this Indexer that may read, and snapshots there are.
CREATE TABLE grants (
    reference_id BIGINT NOT NULL REFERENCES bucket_references (id) ON DELETE CASCADE,
    account      TEXT NOT NULL,
    PRIMARY KEY (reference_id, account)
);
CREATE TABLE snapshots (
    reference_id BIGINT NOT NULL REFERENCES bucket_references (id) ON DELETE CASCADE,
    snapshot     BLOB NOT NULL,
    PRIMARY KEY (reference_id, snapshot)
);

CREATE TABLE providers (
    reference_id BIGINT NOT NULL REFERENCES bucket_references (id) ON DELETE CASCADE,
    snapshot     BLOB NOT NULL,
    endpoint     BLOB NOT NULL,
    account_id   BIGINT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    complete     INTEGER NOT NULL,
    expires_ms   BIGINT NOT NULL,
    PRIMARY KEY (reference_id, snapshot, endpoint)
);
CREATE INDEX providers_by_account ON providers (account_id);
CREATE INDEX providers_by_expiry ON providers (expires_ms);

CREATE TABLE endpoints (
    endpoint   BLOB NOT NULL PRIMARY KEY,
    account_id BIGINT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    sequence   BIGINT NOT NULL,
    record     BLOB NOT NULL,
    updated_ms BIGINT NOT NULL
);
CREATE INDEX endpoints_by_account ON endpoints (account_id);

CREATE TABLE audit (
    id      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    time_ms BIGINT NOT NULL,
    account TEXT NOT NULL,
    action  TEXT NOT NULL,
    target  TEXT NOT NULL
);
