-- Leaderboards: what the released results of a user add up to, by week, by month and ever.

CREATE TABLE leaderboard_entries (
    tenant_id TEXT NOT NULL,
    period TEXT NOT NULL CHECK (period IN ('weekly', 'monthly', 'all_time')),
    -- The local date on which the period begins; the same for everybody where there is none.
    period_start TEXT NOT NULL,
    user_id TEXT NOT NULL,
    -- The user's own; their name and picture are read from users.
    specialty TEXT,
    total_score INTEGER NOT NULL,
    exams_completed INTEGER NOT NULL CHECK (exams_completed > 0),
    -- Millionths of a percent, of all exams together; hundredths of a percent of one.
    percent_sum INTEGER NOT NULL,
    average INTEGER NOT NULL,
    -- When the exam was completed that made the total what it is.
    reached_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, period, period_start, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX leaderboard_entries_by_rank ON leaderboard_entries
    (tenant_id, period, period_start, total_score DESC, average DESC, reached_at, user_id);
CREATE INDEX leaderboard_entries_by_rank_of_specialty ON leaderboard_entries
    (tenant_id, period, period_start, specialty, total_score DESC, average DESC, reached_at, user_id)
    WHERE specialty IS NOT NULL;
CREATE INDEX leaderboard_entries_by_user ON leaderboard_entries (tenant_id, user_id);

-- Raised with every change of a tenant's entries: who shows boards looks here.
CREATE TABLE leaderboard_revisions (
    tenant_id TEXT PRIMARY KEY,
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How many users have a score: a rank is a sum over the scores above, of which there are few, and
-- not a count of users. Kept by triggers, so that it is right whoever writes entries.
CREATE TABLE leaderboard_scores (
    tenant_id TEXT NOT NULL,
    period TEXT NOT NULL,
    period_start TEXT NOT NULL,
    -- Empty: of all specialties.
    specialty TEXT NOT NULL,
    total_score INTEGER NOT NULL,
    users INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, period, period_start, specialty, total_score)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER leaderboard_scores_of_new AFTER INSERT ON leaderboard_entries BEGIN
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, total_score, users)
        SELECT NEW.tenant_id, NEW.period, NEW.period_start, board.specialty, NEW.total_score, 1
        FROM (SELECT '' AS specialty UNION SELECT COALESCE(NEW.specialty, '')) board WHERE TRUE
        ON CONFLICT (tenant_id, period, period_start, specialty, total_score)
        DO UPDATE SET users = leaderboard_scores.users + 1;
END;
CREATE TRIGGER leaderboard_scores_of_gone AFTER DELETE ON leaderboard_entries BEGIN
    UPDATE leaderboard_scores SET users = users - 1
        WHERE tenant_id = OLD.tenant_id AND period = OLD.period
          AND period_start = OLD.period_start AND total_score = OLD.total_score
          AND specialty IN ('', COALESCE(OLD.specialty, ''));
    DELETE FROM leaderboard_scores
        WHERE tenant_id = OLD.tenant_id AND period = OLD.period
          AND period_start = OLD.period_start AND total_score = OLD.total_score
          AND specialty IN ('', COALESCE(OLD.specialty, '')) AND users = 0;
END;
CREATE TRIGGER leaderboard_scores_of_moved AFTER UPDATE ON leaderboard_entries
WHEN OLD.total_score <> NEW.total_score OR OLD.specialty IS NOT NEW.specialty BEGIN
    UPDATE leaderboard_scores SET users = users - 1
        WHERE tenant_id = OLD.tenant_id AND period = OLD.period
          AND period_start = OLD.period_start AND total_score = OLD.total_score
          AND specialty IN ('', COALESCE(OLD.specialty, ''));
    DELETE FROM leaderboard_scores
        WHERE tenant_id = OLD.tenant_id AND period = OLD.period
          AND period_start = OLD.period_start AND total_score = OLD.total_score
          AND specialty IN ('', COALESCE(OLD.specialty, '')) AND users = 0;
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, total_score, users)
        SELECT NEW.tenant_id, NEW.period, NEW.period_start, board.specialty, NEW.total_score, 1
        FROM (SELECT '' AS specialty UNION SELECT COALESCE(NEW.specialty, '')) board WHERE TRUE
        ON CONFLICT (tenant_id, period, period_start, specialty, total_score)
        DO UPDATE SET users = leaderboard_scores.users + 1;
END;
