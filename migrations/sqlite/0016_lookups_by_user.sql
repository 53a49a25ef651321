CREATE INDEX study_group_members_by_user ON study_group_members (tenant_id, user_id);

-- Without statistics SQLite takes a tenant for some ten rows, and walks all of them by the primary
-- key where an index leads to those of one user. https://sqlite.org/fileformat2.html#stat1tab
ANALYZE sqlite_schema;
DELETE FROM sqlite_stat1 WHERE tbl IN ('joined_rooms', 'study_group_members');
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('joined_rooms', 'joined_rooms', '100000 100000 10 1'),
    ('joined_rooms', 'joined_rooms_by_user', '100000 100000 10'),
    ('joined_rooms', 'joined_rooms_by_loss', '100000 10'),
    ('joined_rooms', 'joined_rooms_by_node', '100000 100000'),
    ('study_group_members', 'study_group_members', '100000 100000 50 1'),
    ('study_group_members', 'study_group_members_by_user', '100000 100000 10');
ANALYZE sqlite_schema;
