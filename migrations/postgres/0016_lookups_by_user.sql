CREATE INDEX study_group_members_by_user ON study_group_members (tenant_id, user_id);
