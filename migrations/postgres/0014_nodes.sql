-- Where the nodes of a cluster reach each other: a polling session has one owner, and a balancer
-- that knows nothing of sessions sends its requests to any node.

CREATE TABLE nodes (
    -- Of one run of a node; engine session ids begin with it.
    tag TEXT COLLATE "C" PRIMARY KEY,
    -- A URL: scheme, host and port.
    address TEXT COLLATE "C" NOT NULL,
    -- What the others prove themselves with, to this run only.
    secret TEXT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- By the database's clock: the nodes' own may differ.
    seen_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
