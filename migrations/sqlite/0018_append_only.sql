-- The audit log's rows are not replaced either: that deletes them without a trigger's word.
CREATE TRIGGER audit_log_is_not_replaced BEFORE INSERT ON audit_log
    WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'audit_log is append only'); END;

-- The time as every version of SQLite knows it: users may be changed by other programs.
DROP TRIGGER user_changes_of_gone;
CREATE TRIGGER user_changes_of_gone AFTER DELETE ON users BEGIN
    INSERT INTO user_changes (tenant_id, user_id, changed_at) VALUES
        (OLD.tenant_id, OLD.id, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER));
END;
DROP TRIGGER user_changes_of_changed;
CREATE TRIGGER user_changes_of_changed AFTER UPDATE ON users
WHEN OLD.name <> NEW.name OR OLD.avatar IS NOT NEW.avatar OR OLD.role <> NEW.role
    OR OLD.status <> NEW.status OR OLD.tokens_valid_from IS NOT NEW.tokens_valid_from
    OR OLD.token_version <> NEW.token_version OR OLD.deleted_at IS NOT NEW.deleted_at BEGIN
    INSERT INTO user_changes (tenant_id, user_id, changed_at) VALUES
        (OLD.tenant_id, OLD.id, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER));
END;
