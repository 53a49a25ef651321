-- What a user's tokens must be, that users can be deleted, and a list of users whose rights have
-- changed: whoever holds their sockets reads it, whoever changed the row.

-- Tokens of a lower version are refused; raised, never lowered.
ALTER TABLE users ADD COLUMN token_version BIGINT NOT NULL DEFAULT 0;
-- Deleted users are suspended, too; the row stays, so that no token makes it again.
ALTER TABLE users ADD COLUMN deleted_at TIMESTAMPTZ;

CREATE TABLE user_changes (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX user_changes_by_time ON user_changes (changed_at);
CREATE FUNCTION user_changes_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO user_changes (tenant_id, user_id, changed_at)
        VALUES (OLD.tenant_id, OLD.id, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER user_changes_of_gone AFTER DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION user_changes_follow();
CREATE TRIGGER user_changes_of_changed AFTER UPDATE ON users
    FOR EACH ROW WHEN (
        (OLD.name, OLD.avatar, OLD.role, OLD.status, OLD.tokens_valid_from, OLD.token_version,
            OLD.deleted_at)
        IS DISTINCT FROM
        (NEW.name, NEW.avatar, NEW.role, NEW.status, NEW.tokens_valid_from, NEW.token_version,
            NEW.deleted_at))
    EXECUTE FUNCTION user_changes_follow();
DROP INDEX users_suspended;
