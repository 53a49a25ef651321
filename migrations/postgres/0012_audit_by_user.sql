-- The audit log is asked for what a user did and what was done to them.
CREATE INDEX audit_log_by_actor ON audit_log (tenant_id, actor, id);
CREATE INDEX audit_log_by_subject ON audit_log (tenant_id, subject, id);
