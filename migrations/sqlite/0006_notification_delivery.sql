-- Whether a notification has been handed to its user, when it stops mattering, and the keys under
-- which one replaces or equals another.

-- Null until sockets of the user were sent it: what is missed is delivered when they come.
ALTER TABLE notifications ADD COLUMN delivered_at INTEGER;
-- From then on it is neither counted nor delivered.
ALTER TABLE notifications ADD COLUMN expires_at INTEGER;
-- The same key again is the same notification.
ALTER TABLE notifications ADD COLUMN dedupe_key TEXT;
-- What happens under one key while it is unread is one row, and how often it happened.
ALTER TABLE notifications ADD COLUMN collapse_key TEXT;
ALTER TABLE notifications ADD COLUMN occurrences INTEGER NOT NULL DEFAULT 1;

CREATE UNIQUE INDEX notifications_by_dedupe_key
    ON notifications (tenant_id, user_id, dedupe_key) WHERE dedupe_key IS NOT NULL;
CREATE UNIQUE INDEX notifications_by_collapse_key
    ON notifications (tenant_id, user_id, collapse_key)
    WHERE collapse_key IS NOT NULL AND NOT is_read;
-- A user's unread ones, and among them those not delivered. It covers what is asked of it: a user
-- may have thousands that are read.
CREATE INDEX notifications_unread
    ON notifications (tenant_id, user_id, is_read, delivered_at, expires_at, created_at);
-- Who waits for a delivery since an instant.
CREATE INDEX notifications_undelivered
    ON notifications (tenant_id, created_at, user_id, is_read) WHERE delivered_at IS NULL;
