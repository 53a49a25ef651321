-- When somebody was last here: who was a moment ago may come back with a token that has expired
-- meanwhile, also to a server that was restarted.

CREATE TABLE online_users (
    tenant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    last_seen INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
) STRICT, WITHOUT ROWID;
