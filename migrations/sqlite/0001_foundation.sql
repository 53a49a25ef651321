-- Tenants, users, rooms, messages, and the outbox from which durable events are published.
-- Times are UTC milliseconds; ids of other systems are opaque text.

-- One row per tenant: the offset of its newest durable event. Raised, never lowered.
CREATE TABLE lanes (
    tenant_id TEXT PRIMARY KEY,
    head INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Durable events, kept for a day.
CREATE TABLE outbox (
    tenant_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    event TEXT NOT NULL,
    address TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_by_age ON outbox (created_at);

CREATE TABLE users (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    email TEXT,
    role TEXT NOT NULL DEFAULT 'STUDENT',
    avatar TEXT,
    status TEXT NOT NULL DEFAULT 'VERIFIED' CHECK (status IN ('VERIFIED', 'PENDING', 'SUSPENDED')),
    target_specialty TEXT,
    -- When the token this row was made from was issued; null for rows managed elsewhere.
    claims_issued_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX users_suspended ON users (tenant_id, id) WHERE status = 'SUSPENDED';

CREATE TABLE chat_rooms (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL CHECK (type IN ('DIRECT', 'MENTOR', 'STUDY_GROUP', 'EXAM')),
    metadata TEXT NOT NULL DEFAULT '{}',
    last_seq INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE chat_members (
    tenant_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    -- The room's newest message when the member came.
    joined_seq INTEGER NOT NULL,
    last_read_seq INTEGER NOT NULL,
    joined_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, room_id, user_id),
    FOREIGN KEY (tenant_id, room_id) REFERENCES chat_rooms (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX chat_members_by_user ON chat_members (tenant_id, user_id, joined_at);

CREATE TABLE chat_messages (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    sender_id TEXT NOT NULL,
    sender_name TEXT NOT NULL,
    sender_avatar TEXT,
    message TEXT NOT NULL,
    message_type TEXT NOT NULL,
    file_url TEXT,
    file_name TEXT,
    file_size INTEGER,
    is_read INTEGER NOT NULL DEFAULT 0,
    client_msg_id TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, room_id, seq),
    FOREIGN KEY (tenant_id, room_id) REFERENCES chat_rooms (tenant_id, id) ON DELETE CASCADE
) STRICT;
CREATE UNIQUE INDEX chat_messages_by_id ON chat_messages (tenant_id, id);
CREATE UNIQUE INDEX chat_messages_by_client_msg_id
    ON chat_messages (tenant_id, sender_id, client_msg_id) WHERE client_msg_id IS NOT NULL;
