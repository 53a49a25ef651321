-- Which rooms a socket has joined, so that a client that was cut off and does not join again by
-- itself is put back, also after a crash: rows are written when a room is joined, not when the
-- socket is lost.

CREATE TABLE joined_rooms (
    tenant_id TEXT NOT NULL,
    connection_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    -- The run of the server that holds the socket.
    node_id TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    -- When the socket was lost; null while it is connected.
    lost_at INTEGER,
    -- When the user was first put back; a page comes back with two sockets.
    returned_at INTEGER,
    PRIMARY KEY (tenant_id, connection_id, room_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX joined_rooms_by_user ON joined_rooms (tenant_id, user_id);
CREATE INDEX joined_rooms_by_loss ON joined_rooms (lost_at) WHERE lost_at IS NOT NULL;
