-- What a user's tokens must be, that users can be deleted, and a list of users whose rights have
-- changed: whoever holds their sockets reads it, whoever changed the row.

-- Tokens of a lower version are refused; raised, never lowered.
ALTER TABLE users ADD COLUMN token_version INTEGER NOT NULL DEFAULT 0;
-- Deleted users are suspended, too; the row stays, so that no token makes it again.
ALTER TABLE users ADD COLUMN deleted_at INTEGER;

CREATE TABLE user_changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;
CREATE INDEX user_changes_by_time ON user_changes (changed_at);
CREATE TRIGGER user_changes_of_gone AFTER DELETE ON users BEGIN
    INSERT INTO user_changes (tenant_id, user_id, changed_at)
        VALUES (OLD.tenant_id, OLD.id, CAST(unixepoch('subsec') * 1000 AS INTEGER));
END;
CREATE TRIGGER user_changes_of_changed AFTER UPDATE ON users
WHEN OLD.name <> NEW.name OR OLD.avatar IS NOT NEW.avatar OR OLD.role <> NEW.role
    OR OLD.status <> NEW.status OR OLD.tokens_valid_from IS NOT NEW.tokens_valid_from
    OR OLD.token_version <> NEW.token_version OR OLD.deleted_at IS NOT NEW.deleted_at BEGIN
    INSERT INTO user_changes (tenant_id, user_id, changed_at)
        VALUES (OLD.tenant_id, OLD.id, CAST(unixepoch('subsec') * 1000 AS INTEGER));
END;
DROP INDEX users_suspended;
