-- The most telling column first: before a table's first statistics PostgreSQL takes any two indexes
-- that begin with the tenant for equally good, and may read all the tenant's rows through the
-- wrong one.

DROP INDEX exam_sessions_by_attempt;
CREATE UNIQUE INDEX exam_sessions_by_attempt
    ON exam_sessions (exam_id, user_id, tenant_id, attempt_no);
DROP INDEX exam_results_by_session;
CREATE UNIQUE INDEX exam_results_by_session ON exam_results (session_id, tenant_id);
