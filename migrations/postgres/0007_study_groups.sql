-- Study groups, who is in them and who may come into private ones. What is said in a group is in
-- the chat tables, under its room.

CREATE TABLE study_groups (
    tenant_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    room_id TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    specialty TEXT,
    creator_id TEXT COLLATE "C" NOT NULL,
    -- The one owner; a member as long as there are any.
    owner_id TEXT COLLATE "C" NOT NULL,
    max_members BIGINT NOT NULL CHECK (max_members BETWEEN 2 AND 500),
    member_count BIGINT NOT NULL DEFAULT 0 CHECK (member_count >= 0),
    -- Places given out so far: the order in which members came.
    last_place BIGINT NOT NULL DEFAULT 0,
    is_public BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    -- Set when the last member has left: absent to everybody, and never undone.
    deleted_at TIMESTAMPTZ,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, room_id)
);

CREATE TABLE study_group_members (
    tenant_id TEXT COLLATE "C" NOT NULL,
    group_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    place BIGINT NOT NULL,
    is_admin BOOLEAN NOT NULL DEFAULT FALSE,
    joined_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant_id, group_id, user_id),
    UNIQUE (tenant_id, group_id, place),
    FOREIGN KEY (tenant_id, group_id) REFERENCES study_groups (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE study_group_invitations (
    tenant_id TEXT COLLATE "C" NOT NULL,
    group_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    invited_by TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant_id, group_id, user_id),
    FOREIGN KEY (tenant_id, group_id) REFERENCES study_groups (tenant_id, id) ON DELETE CASCADE
);
