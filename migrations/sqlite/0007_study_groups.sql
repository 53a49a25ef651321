-- Study groups, who is in them and who may come into private ones. What is said in a group is in
-- the chat tables, under its room.

CREATE TABLE study_groups (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    specialty TEXT,
    creator_id TEXT NOT NULL,
    -- The one owner; a member as long as there are any.
    owner_id TEXT NOT NULL,
    max_members INTEGER NOT NULL CHECK (max_members BETWEEN 2 AND 500),
    member_count INTEGER NOT NULL DEFAULT 0 CHECK (member_count >= 0),
    -- Places given out so far: the order in which members came.
    last_place INTEGER NOT NULL DEFAULT 0,
    is_public INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- Set when the last member has left: absent to everybody, and never undone.
    deleted_at INTEGER,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, room_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE study_group_members (
    tenant_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    place INTEGER NOT NULL,
    is_admin INTEGER NOT NULL DEFAULT 0,
    joined_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, group_id, user_id),
    UNIQUE (tenant_id, group_id, place),
    FOREIGN KEY (tenant_id, group_id) REFERENCES study_groups (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE study_group_invitations (
    tenant_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    invited_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, group_id, user_id),
    FOREIGN KEY (tenant_id, group_id) REFERENCES study_groups (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
