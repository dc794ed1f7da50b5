-- Accounts, their keys and what they used. Only the gateway (and `kb keys`) writes these tables. Times are microseconds since
-- the epoch.

CREATE TABLE accounts (
    created_us bigint NOT NULL,
    id         text   PRIMARY KEY,
    name       text   NOT NULL UNIQUE,
    plan       text   NOT NULL
);

-- The key itself is nowhere: `hash` is its SHA-256, `shown` its first characters.
CREATE TABLE api_keys (
    created_us bigint NOT NULL,
    revoked_us bigint,
    id         text   PRIMARY KEY,
    account_id text   NOT NULL REFERENCES accounts (id),
    hash       bytea  NOT NULL UNIQUE,
    shown      text   NOT NULL
);
CREATE INDEX api_keys_account ON api_keys (account_id);

-- One row a billed call, from kb.usage.v1. The primary key makes a repeated event harmless. No foreign keys: an event whose
-- account were missing must be kept, not refused.
CREATE TABLE usage_ledger (
    at_us      bigint   NOT NULL,
    credits    integer  NOT NULL,
    status     smallint NOT NULL,      -- of the answer; 101 for a stream
    usage_id   text     PRIMARY KEY,
    account_id text     NOT NULL,
    key_id     text     NOT NULL,
    endpoint   text     NOT NULL
);
CREATE INDEX usage_ledger_account ON usage_ledger (account_id, at_us);
