-- When somebody was last here: who was a moment ago may come back with a token that has expired
-- meanwhile, also to a server that was restarted.

CREATE TABLE online_users (
    tenant_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    last_seen TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
);
