-- How many users have a score, also in buckets of 64 and of 4,096 scores: a rank is then a sum
-- over at most 63 single scores, 63 buckets of 64, and the buckets of 4,096 above, however many
-- scores there are. Kept by triggers, so that it is right whoever writes entries.

DROP TRIGGER leaderboard_scores_of_new;
DROP TRIGGER leaderboard_scores_of_gone;
DROP TRIGGER leaderboard_scores_of_moved;
DROP TABLE leaderboard_scores;
CREATE TABLE leaderboard_scores (
    tenant_id TEXT NOT NULL,
    period TEXT NOT NULL,
    period_start TEXT NOT NULL,
    -- Empty: of all specialties.
    specialty TEXT NOT NULL,
    level INTEGER NOT NULL CHECK (level BETWEEN 0 AND 2),
    -- The total score without its last 6 bits per level.
    bucket INTEGER NOT NULL,
    users INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, period, period_start, specialty, level, bucket)
) STRICT, WITHOUT ROWID;
INSERT INTO leaderboard_scores
    (tenant_id, period, period_start, specialty, level, bucket, users)
    SELECT e.tenant_id, e.period, e.period_start, e.specialty, l.column1,
        e.total_score >> (6 * l.column1), count(*)
    FROM (SELECT tenant_id, period, period_start, total_score, '' AS specialty
            FROM leaderboard_entries
        UNION ALL SELECT tenant_id, period, period_start, total_score, specialty
            FROM leaderboard_entries WHERE specialty <> '') e
    CROSS JOIN (VALUES (0), (1), (2)) l
    GROUP BY 1, 2, 3, 4, 5, 6;
CREATE TRIGGER leaderboard_scores_of_new AFTER INSERT ON leaderboard_entries BEGIN
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, level, bucket, users)
        SELECT NEW.tenant_id, NEW.period, NEW.period_start, board.specialty, l.column1,
            NEW.total_score >> (6 * l.column1), 1
        FROM (SELECT '' AS specialty UNION SELECT COALESCE(NEW.specialty, '')) board
        CROSS JOIN (VALUES (0), (1), (2)) l WHERE TRUE
        ON CONFLICT (tenant_id, period, period_start, specialty, level, bucket)
        DO UPDATE SET users = leaderboard_scores.users + excluded.users;
END;
CREATE TRIGGER leaderboard_scores_of_gone AFTER DELETE ON leaderboard_entries BEGIN
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, level, bucket, users)
        SELECT OLD.tenant_id, OLD.period, OLD.period_start, board.specialty, l.column1,
            OLD.total_score >> (6 * l.column1), -1
        FROM (SELECT '' AS specialty UNION SELECT COALESCE(OLD.specialty, '')) board
        CROSS JOIN (VALUES (0), (1), (2)) l WHERE TRUE
        ON CONFLICT (tenant_id, period, period_start, specialty, level, bucket)
        DO UPDATE SET users = leaderboard_scores.users + excluded.users;
    DELETE FROM leaderboard_scores
        WHERE tenant_id = OLD.tenant_id AND period = OLD.period
          AND period_start = OLD.period_start AND specialty IN ('', COALESCE(OLD.specialty, ''))
          AND (level, bucket) IN (VALUES (0, OLD.total_score), (1, OLD.total_score >> 6),
              (2, OLD.total_score >> 12))
          AND users = 0;
END;
CREATE TRIGGER leaderboard_scores_of_moved AFTER UPDATE ON leaderboard_entries
WHEN OLD.total_score <> NEW.total_score OR OLD.specialty IS NOT NEW.specialty BEGIN
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, level, bucket, users)
        SELECT NEW.tenant_id, NEW.period, NEW.period_start, board.specialty, l.column1,
            NEW.total_score >> (6 * l.column1), 1
        FROM (SELECT '' AS specialty UNION SELECT COALESCE(NEW.specialty, '')) board
        CROSS JOIN (VALUES (0), (1), (2)) l WHERE TRUE
        ON CONFLICT (tenant_id, period, period_start, specialty, level, bucket)
        DO UPDATE SET users = leaderboard_scores.users + excluded.users;
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, level, bucket, users)
        SELECT OLD.tenant_id, OLD.period, OLD.period_start, board.specialty, l.column1,
            OLD.total_score >> (6 * l.column1), -1
        FROM (SELECT '' AS specialty UNION SELECT COALESCE(OLD.specialty, '')) board
        CROSS JOIN (VALUES (0), (1), (2)) l WHERE TRUE
        ON CONFLICT (tenant_id, period, period_start, specialty, level, bucket)
        DO UPDATE SET users = leaderboard_scores.users + excluded.users;
    DELETE FROM leaderboard_scores
        WHERE tenant_id = OLD.tenant_id AND period = OLD.period
          AND period_start = OLD.period_start AND specialty IN ('', COALESCE(OLD.specialty, ''))
          AND (level, bucket) IN (VALUES (0, OLD.total_score), (1, OLD.total_score >> 6),
              (2, OLD.total_score >> 12))
          AND users = 0;
END;
