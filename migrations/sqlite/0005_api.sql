-- The server API: keys, replies kept for requests that are repeated, and who did what; and since
-- when a user's tokens count.

ALTER TABLE users ADD COLUMN tokens_valid_from INTEGER;

CREATE TABLE api_keys (
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    -- SHA-256 in hexadecimal digits; the key itself is nowhere.
    hash TEXT NOT NULL UNIQUE,
    -- Separated by commas; `*` for all.
    scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER,
    PRIMARY KEY (tenant_id, name)
) STRICT, WITHOUT ROWID;

-- Kept for a day.
CREATE TABLE idempotency_keys (
    tenant_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    key TEXT NOT NULL,
    -- A hash of what was asked for.
    fingerprint TEXT NOT NULL,
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, actor, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, id);
CREATE TRIGGER audit_log_is_not_changed BEFORE UPDATE ON audit_log
    BEGIN SELECT RAISE(ABORT, 'audit_log is append only'); END;
CREATE TRIGGER audit_log_is_not_shortened BEFORE DELETE ON audit_log
    BEGIN SELECT RAISE(ABORT, 'audit_log is append only'); END;
