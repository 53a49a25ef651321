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

-- How many users have a score: a rank is a sum over the scores above, of which there are few, and
-- not a count of users. Kept by triggers, so that it is right whoever writes entries.
CREATE TABLE leaderboard_scores (
    tenant_id TEXT COLLATE "C" NOT NULL,
    period TEXT COLLATE "C" NOT NULL,
    period_start TEXT COLLATE "C" NOT NULL,
    -- Empty: of all specialties.
    specialty TEXT COLLATE "C" NOT NULL,
    total_score BIGINT NOT NULL,
    users BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, period, period_start, specialty, total_score)
);
CREATE FUNCTION leaderboard_scores_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE leaderboard_scores SET users = users - 1
            WHERE tenant_id = OLD.tenant_id AND period = OLD.period
              AND period_start = OLD.period_start AND total_score = OLD.total_score
              AND specialty IN ('', COALESCE(OLD.specialty, ''));
        DELETE FROM leaderboard_scores
            WHERE tenant_id = OLD.tenant_id AND period = OLD.period
              AND period_start = OLD.period_start AND total_score = OLD.total_score
              AND specialty IN ('', COALESCE(OLD.specialty, '')) AND users = 0;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO leaderboard_scores
            (tenant_id, period, period_start, specialty, total_score, users)
            SELECT NEW.tenant_id, NEW.period, NEW.period_start, board.specialty, NEW.total_score, 1
            FROM (SELECT '' AS specialty UNION SELECT COALESCE(NEW.specialty, '')) board WHERE TRUE
            ON CONFLICT (tenant_id, period, period_start, specialty, total_score)
            DO UPDATE SET users = leaderboard_scores.users + 1;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER leaderboard_scores_of_new_and_gone AFTER INSERT OR DELETE ON leaderboard_entries
    FOR EACH ROW EXECUTE FUNCTION leaderboard_scores_follow();
CREATE TRIGGER leaderboard_scores_of_moved AFTER UPDATE ON leaderboard_entries
    FOR EACH ROW WHEN (OLD.total_score <> NEW.total_score
        OR OLD.specialty IS DISTINCT FROM NEW.specialty)
    EXECUTE FUNCTION leaderboard_scores_follow();
