-- Exams: papers that never change once somebody sits them, attempts with absolute deadlines, answers,
-- an append-only journal per attempt, and results with their revisions.

CREATE TABLE exams (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    title TEXT NOT NULL,
    topic TEXT,
    -- Null: as long as the window is open.
    duration_ms INTEGER,
    opens_at INTEGER,
    closes_at INTEGER,
    attempts_allowed INTEGER NOT NULL DEFAULT 1,
    shuffle INTEGER NOT NULL DEFAULT 0,
    release TEXT NOT NULL CHECK (release IN ('immediately', 'after_close', 'manual')),
    shows_scores INTEGER NOT NULL DEFAULT 0,
    -- Whether the lists of participants and of staff in exam_people are in force.
    for_everyone INTEGER NOT NULL DEFAULT 1,
    by_any_staff INTEGER NOT NULL DEFAULT 1,
    paper_version INTEGER NOT NULL,
    closed_at INTEGER,
    released_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX exams_to_release ON exams (closes_at)
    WHERE release = 'after_close' AND released_at IS NULL;

CREATE TABLE exam_people (
    tenant_id TEXT NOT NULL,
    exam_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('participant', 'staff')),
    PRIMARY KEY (tenant_id, exam_id, user_id, part),
    FOREIGN KEY (tenant_id, exam_id) REFERENCES exams (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Questions with their keys, as JSON. An attempt keeps the version it began with.
CREATE TABLE exam_papers (
    tenant_id TEXT NOT NULL,
    exam_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    questions TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, exam_id, version),
    FOREIGN KEY (tenant_id, exam_id) REFERENCES exams (tenant_id, id) ON DELETE CASCADE
) STRICT;

CREATE TABLE exam_sessions (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    exam_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    attempt_no INTEGER NOT NULL,
    paper_version INTEGER NOT NULL,
    -- The places of the paper's questions in this attempt, as JSON; null: as in the paper.
    question_order TEXT,
    status TEXT NOT NULL CHECK (status IN ('IN_PROGRESS', 'PAUSED', 'COMPLETED')),
    current_question INTEGER NOT NULL DEFAULT 0,
    started_at INTEGER NOT NULL,
    -- What the deadline is made of, frozen at the start but for what staff grant.
    limit_ms INTEGER,
    window_end INTEGER,
    extra_ms INTEGER NOT NULL DEFAULT 0,
    paused_ms INTEGER NOT NULL DEFAULT 0,
    paused_at INTEGER,
    deadline_at INTEGER,
    clock_rev INTEGER NOT NULL DEFAULT 1,
    -- When staff ended it; it is final soon after.
    forced_at INTEGER,
    last_activity INTEGER NOT NULL,
    -- When the student left it by themselves, without completing it.
    left_at INTEGER,
    completed_at INTEGER,
    ended_by TEXT CHECK (ended_by IN ('student', 'deadline', 'staff')),
    -- What could not be made final is set aside, so that the rest goes on.
    set_aside_at INTEGER,
    journal_len INTEGER NOT NULL DEFAULT 0,
    journal_head TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tenant_id, id)
) STRICT;
CREATE UNIQUE INDEX exam_sessions_by_attempt
    ON exam_sessions (tenant_id, exam_id, user_id, attempt_no);
CREATE INDEX exam_sessions_running_of_user
    ON exam_sessions (tenant_id, user_id) WHERE status <> 'COMPLETED';
CREATE INDEX exam_sessions_due ON exam_sessions (deadline_at)
    WHERE status = 'IN_PROGRESS' AND set_aside_at IS NULL;
CREATE INDEX exam_sessions_forced ON exam_sessions (forced_at)
    WHERE status <> 'COMPLETED' AND forced_at IS NOT NULL AND set_aside_at IS NULL;

CREATE TABLE exam_answers (
    tenant_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    -- The question's place in the paper.
    question INTEGER NOT NULL,
    -- JSON; null was an answer and has been taken back.
    answer TEXT NOT NULL,
    version INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    late INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, session_id, question)
) STRICT;

CREATE TABLE exam_journal (
    tenant_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    body TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (tenant_id, session_id, seq)
) STRICT;

CREATE TABLE exam_results (
    tenant_id TEXT NOT NULL,
    id TEXT NOT NULL,
    exam_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    attempt_no INTEGER NOT NULL,
    -- Right answers, and questions.
    score INTEGER NOT NULL,
    total_questions INTEGER NOT NULL,
    answers TEXT NOT NULL,
    -- Hundredths of a point.
    points INTEGER NOT NULL,
    max_points INTEGER NOT NULL,
    pending_review INTEGER NOT NULL,
    -- Points given by hand, by question id, as JSON.
    awards TEXT NOT NULL DEFAULT '{}',
    revision INTEGER NOT NULL,
    -- The paper whose keys graded it.
    key_version INTEGER NOT NULL,
    completed_at INTEGER NOT NULL,
    released_at INTEGER,
    journal_len INTEGER NOT NULL,
    journal_head TEXT NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT;
CREATE UNIQUE INDEX exam_results_by_session ON exam_results (tenant_id, session_id);
CREATE INDEX exam_results_by_exam ON exam_results (tenant_id, exam_id, id);
CREATE INDEX exam_results_by_user ON exam_results (tenant_id, user_id, completed_at);

-- Secrets of the server that no configuration gives, by name.
CREATE TABLE server_keys (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
