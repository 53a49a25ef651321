-- Notifications, and how many members a room has: who is not there is told, in rooms small enough.

CREATE TABLE notifications (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    type TEXT NOT NULL,
    title TEXT NOT NULL,
    message TEXT NOT NULL,
    data TEXT,
    is_read INTEGER NOT NULL DEFAULT 0,
    priority TEXT NOT NULL DEFAULT 'normal' CHECK (priority IN ('low', 'normal', 'high', 'urgent')),
    action_url TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, user_id, id)
) STRICT, WITHOUT ROWID;

ALTER TABLE chat_rooms ADD COLUMN member_count INTEGER NOT NULL DEFAULT 0;
UPDATE chat_rooms SET member_count = (
    SELECT count(*) FROM chat_members m
    WHERE m.tenant_id = chat_rooms.tenant_id AND m.room_id = chat_rooms.id
);
