-- What the whole cluster does once, such as making attempts final, one node does: the holder of a
-- lease. A node that has slept still takes itself for the holder; the fence tells it that it is not.

CREATE TABLE leases (
    name TEXT COLLATE "C" PRIMARY KEY,
    -- A run of a node.
    holder TEXT COLLATE "C" NOT NULL,
    -- Raised whenever the holder changes.
    fence BIGINT NOT NULL,
    -- By the database's clock: the nodes' own may differ.
    expires_at TIMESTAMPTZ NOT NULL,
    -- Makes the fence part of a key: a transaction that has locked the row FOR KEY SHARE holds up
    -- whoever raises the fence, and not the holder, who renews the lease meanwhile.
    UNIQUE (name, fence)
);
