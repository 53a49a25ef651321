-- Exams: papers that never change once somebody sits them, attempts with absolute deadlines, answers,
-- an append-only journal per attempt, and results with their revisions.

CREATE TABLE exams (
    tenant_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    title TEXT NOT NULL,
    topic TEXT,
    -- Null: as long as the window is open.
    duration_ms BIGINT,
    opens_at TIMESTAMPTZ,
    closes_at TIMESTAMPTZ,
    attempts_allowed BIGINT NOT NULL DEFAULT 1,
    shuffle BOOLEAN NOT NULL DEFAULT FALSE,
    release TEXT NOT NULL CHECK (release IN ('immediately', 'after_close', 'manual')),
    shows_scores BOOLEAN NOT NULL DEFAULT FALSE,
    -- Whether the lists of participants and of staff in exam_people are in force.
    for_everyone BOOLEAN NOT NULL DEFAULT TRUE,
    by_any_staff BOOLEAN NOT NULL DEFAULT TRUE,
    paper_version BIGINT NOT NULL,
    closed_at TIMESTAMPTZ,
    released_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX exams_to_release ON exams (closes_at)
    WHERE release = 'after_close' AND released_at IS NULL;

CREATE TABLE exam_people (
    tenant_id TEXT COLLATE "C" NOT NULL,
    exam_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('participant', 'staff')),
    PRIMARY KEY (tenant_id, exam_id, user_id, part),
    FOREIGN KEY (tenant_id, exam_id) REFERENCES exams (tenant_id, id) ON DELETE CASCADE
);

-- Questions with their keys, as JSON. An attempt keeps the version it began with.
CREATE TABLE exam_papers (
    tenant_id TEXT COLLATE "C" NOT NULL,
    exam_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    questions TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant_id, exam_id, version),
    FOREIGN KEY (tenant_id, exam_id) REFERENCES exams (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE exam_sessions (
    tenant_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    exam_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    user_name TEXT NOT NULL,
    attempt_no BIGINT NOT NULL,
    paper_version BIGINT NOT NULL,
    -- The places of the paper's questions in this attempt, as JSON; null: as in the paper.
    question_order TEXT,
    status TEXT NOT NULL CHECK (status IN ('IN_PROGRESS', 'PAUSED', 'COMPLETED')),
    current_question BIGINT NOT NULL DEFAULT 0,
    started_at TIMESTAMPTZ NOT NULL,
    -- What the deadline is made of, frozen at the start but for what staff grant.
    limit_ms BIGINT,
    window_end TIMESTAMPTZ,
    extra_ms BIGINT NOT NULL DEFAULT 0,
    paused_ms BIGINT NOT NULL DEFAULT 0,
    paused_at TIMESTAMPTZ,
    deadline_at TIMESTAMPTZ,
    clock_rev BIGINT NOT NULL DEFAULT 1,
    -- When staff ended it; it is final soon after.
    forced_at TIMESTAMPTZ,
    last_activity TIMESTAMPTZ NOT NULL,
    -- When the student left it by themselves, without completing it.
    left_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    ended_by TEXT CHECK (ended_by IN ('student', 'deadline', 'staff')),
    -- What could not be made final is set aside, so that the rest goes on.
    set_aside_at TIMESTAMPTZ,
    journal_len BIGINT NOT NULL DEFAULT 0,
    journal_head TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX exam_sessions_by_attempt
    ON exam_sessions (tenant_id, exam_id, user_id, attempt_no);
CREATE INDEX exam_sessions_running_of_user
    ON exam_sessions (tenant_id, user_id) WHERE status <> 'COMPLETED';
CREATE INDEX exam_sessions_due ON exam_sessions (deadline_at)
    WHERE status = 'IN_PROGRESS' AND set_aside_at IS NULL;
CREATE INDEX exam_sessions_forced ON exam_sessions (forced_at)
    WHERE status <> 'COMPLETED' AND forced_at IS NOT NULL AND set_aside_at IS NULL;

CREATE TABLE exam_answers (
    tenant_id TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    -- The question's place in the paper.
    question BIGINT NOT NULL,
    -- JSON; null was an answer and has been taken back.
    answer TEXT NOT NULL,
    version BIGINT NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    late BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (tenant_id, session_id, question)
);

CREATE TABLE exam_journal (
    tenant_id TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (tenant_id, session_id, seq)
);

CREATE TABLE exam_results (
    tenant_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    exam_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    attempt_no BIGINT NOT NULL,
    -- Right answers, and questions.
    score BIGINT NOT NULL,
    total_questions BIGINT NOT NULL,
    answers TEXT NOT NULL,
    -- Hundredths of a point.
    points BIGINT NOT NULL,
    max_points BIGINT NOT NULL,
    pending_review BOOLEAN NOT NULL,
    -- Points given by hand, by question id, as JSON.
    awards TEXT NOT NULL DEFAULT '{}',
    revision BIGINT NOT NULL,
    -- The paper whose keys graded it.
    key_version BIGINT NOT NULL,
    completed_at TIMESTAMPTZ NOT NULL,
    released_at TIMESTAMPTZ,
    journal_len BIGINT NOT NULL,
    journal_head TEXT NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX exam_results_by_session ON exam_results (tenant_id, session_id);
CREATE INDEX exam_results_by_exam ON exam_results (tenant_id, exam_id, id);
CREATE INDEX exam_results_by_user ON exam_results (tenant_id, user_id, completed_at);

-- Secrets of the server that no configuration gives, by name.
CREATE TABLE server_keys (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
