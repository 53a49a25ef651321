-- Leaderboards: what the released results of a user add up to, by week, by month and ever.

CREATE TABLE leaderboard_entries (
    tenant_id TEXT COLLATE "C" NOT NULL,
    period TEXT COLLATE "C" NOT NULL CHECK (period IN ('weekly', 'monthly', 'all_time')),
    -- The local date on which the period begins; the same for everybody where there is none.
    period_start TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    -- The user's own; their name and picture are read from users.
    specialty TEXT COLLATE "C",
    total_score BIGINT NOT NULL,
    exams_completed BIGINT NOT NULL CHECK (exams_completed > 0),
    -- Millionths of a percent, of all exams together; hundredths of a percent of one.
    percent_sum BIGINT NOT NULL,
    average BIGINT NOT NULL,
    -- When the exam was completed that made the total what it is.
    reached_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant_id, period, period_start, user_id)
);
CREATE INDEX leaderboard_entries_by_rank ON leaderboard_entries
    (tenant_id, period, period_start, total_score DESC, average DESC, reached_at, user_id);
CREATE INDEX leaderboard_entries_by_rank_of_specialty ON leaderboard_entries
    (tenant_id, period, period_start, specialty, total_score DESC, average DESC, reached_at, user_id)
    WHERE specialty IS NOT NULL;
CREATE INDEX leaderboard_entries_by_user ON leaderboard_entries (tenant_id, user_id);

-- Raised with every change of a tenant's entries: who shows boards looks here.
CREATE TABLE leaderboard_revisions (
    tenant_id TEXT COLLATE "C" PRIMARY KEY,
    revision BIGINT NOT NULL
);
