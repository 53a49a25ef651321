-- What a client needs to go on as the same socket after its connection was lost, also to another
-- node and after a crash: written when the socket comes, not when it is lost.

CREATE TABLE recovery_sessions (
    -- SHA-256 of the client's private id.
    pid TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    connection_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    -- The run of the server that holds the socket.
    node_id TEXT NOT NULL,
    -- Raised whenever somebody goes on with it.
    generation INTEGER NOT NULL DEFAULT 0,
    -- The tenant's offset when the socket came.
    since INTEGER NOT NULL,
    -- When the socket was lost; null while it is connected.
    lost_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX recovery_sessions_by_connection ON recovery_sessions (tenant_id, connection_id);
CREATE INDEX recovery_sessions_by_loss ON recovery_sessions (lost_at) WHERE lost_at IS NOT NULL;
-- Whose runs of the server are gone is looked for by them.
CREATE INDEX recovery_sessions_by_node ON recovery_sessions (node_id) WHERE lost_at IS NULL;
CREATE INDEX joined_rooms_by_node ON joined_rooms (node_id) WHERE lost_at IS NULL;

-- The tenant's offset up to which a room was shown when it was joined.
ALTER TABLE joined_rooms ADD COLUMN shown_offset INTEGER NOT NULL DEFAULT 0;
