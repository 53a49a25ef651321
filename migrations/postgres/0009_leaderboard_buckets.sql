-- How many users have a score, also in buckets of 64 and of 4,096 scores: a rank is then a sum
-- over at most 63 single scores, 63 buckets of 64, and the buckets of 4,096 above, however many
-- scores there are. Kept by triggers, so that it is right whoever writes entries.

DROP TRIGGER leaderboard_scores_of_new_and_gone ON leaderboard_entries;
DROP TRIGGER leaderboard_scores_of_moved ON leaderboard_entries;
DROP FUNCTION leaderboard_scores_follow();
DROP TABLE leaderboard_scores;
CREATE TABLE leaderboard_scores (
    tenant_id TEXT COLLATE "C" NOT NULL,
    period TEXT COLLATE "C" NOT NULL,
    period_start TEXT COLLATE "C" NOT NULL,
    -- Empty: of all specialties.
    specialty TEXT COLLATE "C" NOT NULL,
    level INTEGER NOT NULL CHECK (level BETWEEN 0 AND 2),
    -- The total score without its last 6 bits per level.
    bucket BIGINT NOT NULL,
    users BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, period, period_start, specialty, level, bucket)
);
INSERT INTO leaderboard_scores
    (tenant_id, period, period_start, specialty, level, bucket, users)
    SELECT e.tenant_id, e.period, e.period_start, board.specialty, l.level,
        e.total_score >> (6 * l.level), count(*)
    FROM leaderboard_entries e
    CROSS JOIN LATERAL (SELECT '' AS specialty UNION SELECT COALESCE(e.specialty, '')) board
    CROSS JOIN (VALUES (0), (1), (2)) l(level)
    GROUP BY 1, 2, 3, 4, 5, 6;

CREATE FUNCTION leaderboard_scores_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    -- What leaves a bucket and comes back into it cancels out. One order, so that nobody waits in
    -- a circle.
    INSERT INTO leaderboard_scores
        (tenant_id, period, period_start, specialty, level, bucket, users)
        SELECT tenant_id, period, period_start, specialty, level, total_score >> (6 * level),
            sum(change)
        FROM (
            SELECT NEW.tenant_id, NEW.period, NEW.period_start, NEW.total_score, 1 AS change,
                unnest(CASE WHEN NEW.specialty <> '' THEN ARRAY['', NEW.specialty]
                    ELSE ARRAY[''] END) AS specialty
                WHERE TG_OP <> 'DELETE'
            UNION ALL
            SELECT OLD.tenant_id, OLD.period, OLD.period_start, OLD.total_score, -1,
                unnest(CASE WHEN OLD.specialty <> '' THEN ARRAY['', OLD.specialty]
                    ELSE ARRAY[''] END)
                WHERE TG_OP <> 'INSERT'
        ) changes CROSS JOIN (VALUES (0), (1), (2)) l(level)
        GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(change) <> 0
        ORDER BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (tenant_id, period, period_start, specialty, level, bucket)
        DO UPDATE SET users = leaderboard_scores.users + excluded.users;
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM leaderboard_scores s
            USING (VALUES (0), (1), (2)) l(level)
            WHERE s.tenant_id = OLD.tenant_id AND s.period = OLD.period
              AND s.period_start = OLD.period_start
              AND s.specialty IN ('', COALESCE(OLD.specialty, ''))
              AND s.level = l.level AND s.bucket = OLD.total_score >> (6 * l.level)
              AND s.users = 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER leaderboard_scores_of_new_and_gone AFTER INSERT OR DELETE ON leaderboard_entries
    FOR EACH ROW EXECUTE FUNCTION leaderboard_scores_follow();
CREATE TRIGGER leaderboard_scores_of_moved AFTER UPDATE ON leaderboard_entries
    FOR EACH ROW WHEN (OLD.total_score <> NEW.total_score
        OR OLD.specialty IS DISTINCT FROM NEW.specialty)
    EXECUTE FUNCTION leaderboard_scores_follow();
