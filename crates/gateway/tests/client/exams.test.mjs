// Sitting exams with the real client: provisioned over /v1, as a school's backend does.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { promisify } from "node:util";
import { DATABASES, POSTGRES, SECRET, binary, eventually, pause, refused, silent, story } from "./harness.mjs";

const question = (n, changes = {}) => ({
  id: `q${n}`,
  kind: "single_choice",
  text: `Question ${n}?`,
  options: ["a", "b", "c", "d"],
  correct: 2,
  ...changes,
});
const paper = (count = 5) => Array.from({ length: count }, (_, n) => question(n));

/** Provides an exam; the rest of the story sits it. */
async function provide(world, changes = {}, id = "anatomy") {
  const exam = { title: "Anatomy", durationMinutes: 10, attemptsAllowed: 1, questions: paper(), ...changes };
  const made = await world.api("PUT", `/v1/exams/${id}`, exam);
  assert.equal(made.status, 200, JSON.stringify(made.body));
  return made.body;
}

const joins = async (person, examId = "anatomy") => {
  person.says("join-exam", { examId });
  return person.hears("exam-joined", (e) => e.examId === examId);
};
const EXAM = { examId: "anatomy" };
const control = (world, action, more = {}) => world.api("POST", "/v1/exams/anatomy/control", { action, ...more });

story("a student sits an exam as the shipped frontend does", { on: DATABASES }, async (world) => {
  await provide(world);
  const [ana, ben] = await world.people("ana", "ben");
  const joined = await joins(ana);
  assert.deepEqual(
    { ...joined.exam, questions: undefined },
    { id: "anatomy", title: "Anatomy", duration_minutes: 10, questions: undefined },
  );
  const { id, last_activity, started_at, deadline_at, time_remaining, ...session } = joined.session;
  assert.deepEqual(session, {
    exam_id: "anatomy",
    user_id: "ana",
    room_id: "exam:anatomy",
    current_question: 0,
    answers: [],
    status: "IN_PROGRESS",
    completed_at: null,
    attempt_no: 1,
  });
  assert.equal(Date.parse(deadline_at) - Date.parse(started_at), 600_000);
  assert.ok(time_remaining <= 600 && time_remaining >= 598);
  assert.equal(joined.participantCount, 1);

  assert.equal((await joins(ben)).participantCount, 2);
  assert.deepEqual(await ana.hears("participant-joined-exam"), {
    examId: "anatomy", userId: "ben", userName: "ben Name", participantCount: 2,
  });

  ana.says("exam-answer", { examId: "anatomy", questionIndex: 0, answer: 2 });
  const saved = await ana.hears("exam-answer-saved");
  assert.deepEqual({ ...saved, timestamp: "" }, { examId: "anatomy", questionIndex: 0, answer: 2, timestamp: "", version: 1 });
  ana.says("exam-progress", { examId: "anatomy", currentQuestion: 3, timeRemaining: 99999, answers: [2, null, null, 1] });
  const progress = await ana.hears("exam-progress-saved");
  assert.equal(progress.currentQuestion, 3);
  assert.ok(progress.timeRemaining <= 600, "the server's clock");

  ana.says("exam-complete", EXAM);
  const { result } = await ana.hears("exam-completed");
  assert.deepEqual(
    { score: result.score, total_questions: result.total_questions, answers: result.answers },
    { score: 1, total_questions: 5, answers: [2, null, null, 1] },
  );
  for (const key of ["ai_feedback", "domain_analysis", "audit_log", "error_profile", "fatigue_data"]) {
    assert.equal(result[key], null);
  }
  const notice = await ana.hears("new-notification");
  assert.deepEqual(
    [notice.type, notice.title, notice.message, notice.data],
    ["EXAM_UPDATE", "Exam Completed", "You scored 1/5 on the exam", { examId: "anatomy", resultId: result.id }],
  );
  const completed = await ben.hears("participant-completed-exam");
  assert.deepEqual(completed, {
    examId: "anatomy", userId: "ana", userName: "ana Name", totalQuestions: 5, participantCount: 1,
  });
  ana.says("exam-complete", EXAM);
  assert.equal((await ana.hears("exam-completed")).result.id, result.id);
  await silent("new-notification", ana);
  await silent("participant-completed-exam", ben);
});

story("the same attempt on every tab and after every crash", { on: DATABASES }, async (world) => {
  await provide(world, { shuffle: true, questions: paper(20) });
  const first = await world.person("ana");
  const before = await joins(first);
  assert.equal(before.exam.questions.length, 20);
  assert.deepEqual(before.session.question_ids, before.exam.questions.map((q) => q.id));
  for (const [questionIndex, answer] of [[0, 2], [7, 2], [19, 0]]) {
    const ack = await first.asks("exam-answer", { ...EXAM, questionIndex, answer });
    assert.equal(ack.ok, true);
  }
  await first.asks("exam-progress", { ...EXAM, currentQuestion: 7 });
  await world.server.kill();
  await world.server.restart();
  const second = await world.person("ana");
  const after = await joins(second);
  assert.equal(after.session.id, before.session.id);
  assert.equal(after.session.deadline_at, before.session.deadline_at);
  assert.deepEqual(after.session.question_ids, before.session.question_ids);
  assert.equal(after.session.current_question, 7);
  assert.deepEqual([0, 7, 19].map((n) => after.session.answers[n]), [2, 2, 0]);
  const done = await second.asks("exam-complete", EXAM);
  assert.equal(done.result.score, 2);
});

story("texts of refusals are the contract's", {}, async (world) => {
  await provide(world);
  const [ana] = await world.people("ana");
  const told = async (name, payload) => {
    ana.says(name, payload);
    return ana.hears("error");
  };
  for (const [name, text] of [
    ["join-exam", "Exam ID is required"],
    ["leave-exam", "Exam ID is required"],
    ["exam-progress", "Exam ID is required"],
    ["exam-answer", "Exam ID, question index, and answer are required"],
    ["exam-complete", "Exam ID is required"],
  ]) {
    refused(await told(name, {}), "INVALID", text);
  }
  refused(await told("join-exam", { examId: "absent" }), "NOT_FOUND", "Exam not found");
  for (const [name, payload] of [
    ["exam-progress", { ...EXAM, currentQuestion: 0, answers: [] }],
    ["exam-answer", { ...EXAM, questionIndex: 0, answer: 1 }],
    ["exam-complete", EXAM],
  ]) {
    refused(await told(name, payload), "NOT_FOUND", "Exam session not found");
  }
  await joins(ana);
  refused(await told("exam-answer", { ...EXAM, questionIndex: 5, answer: 1 }), "UNKNOWN_QUESTION", "Failed to save answer");
  refused(await told("exam-answer", { ...EXAM, questionIndex: 0, answer: "1" }), "INVALID", "Failed to save answer");
  refused(await told("exam-answer", { ...EXAM, questionIndex: 0, answer: 1.5 }), "INVALID", "Failed to save answer");
  refused(await told("exam-answer", { ...EXAM, questionIndex: -1, answer: 1 }), "INVALID", "Exam ID, question index, and answer are required");
});

story("the deadline submits with nobody there, also over a restart", { on: DATABASES, env: { CARILLON_EXAM__GRACE: "0s" } }, async (world) => {
  await provide(world, { closesAt: new Date(Date.now() + 4_000).toISOString() });
  const ana = await world.person("ana");
  const { session } = await joins(ana);
  assert.ok(session.time_remaining <= 4, "cut by the window");
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 1, answer: 2 });
  ana.leaves();
  await world.server.kill();
  await pause(Math.max(0, Date.parse(session.deadline_at) - Date.now()));
  await world.server.restart();
  const results = await eventually("the result is made", async () => {
    const { body } = await world.api("GET", "/v1/exams/anatomy/results");
    return body.items.length && body.items;
  });
  assert.equal(results.length, 1);
  assert.equal(results[0].score, 1);
  assert.equal(results[0].completedAt, session.deadline_at);
  const again = await world.person("ana");
  assert.equal((await again.hears("new-notification")).title, "Exam Completed");
  refused(await again.asks("exam-answer", { ...EXAM, questionIndex: 1, answer: 2 }), "ATTEMPT_CLOSED", "Failed to save answer");
});

story("everybody in the exam hears when the time is up", { env: { CARILLON_EXAM__GRACE: "1s" } }, async (world) => {
  await provide(world, { durationMinutes: 0.05 });
  const [ana, ben, tab] = await world.people("ana", "ben", "ana");
  const { session } = await joins(ana);
  await joins(ben);
  const heard = await Promise.all([ana, tab].map((person) => person.hears("exam-completed", () => true, 9000)));
  for (const { result } of heard) {
    assert.equal(result.completed_at, session.deadline_at);
    assert.equal(result.id, heard[0].result.id);
  }
  await ben.hears("exam-completed", () => true, 9000);
});

story("staff pause, extend, resume and submit, and the screen follows", { on: DATABASES }, async (world) => {
  await provide(world, { staff: ["mia"] });
  const [ana, ben] = await world.people("ana", "ben");
  const mia = await world.person("mia", { claims: { role: "MENTOR" } });
  const max = await world.person("max", { claims: { role: "MENTOR" } });
  const before = await joins(ana);
  await joins(ben);

  refused(await max.asks("exam-control", { ...EXAM, action: "pause" }), "FORBIDDEN", "Unauthorized");
  refused(await ana.asks("exam-control", { ...EXAM, action: "extend", seconds: 600 }), "FORBIDDEN", "Unauthorized");
  const paused = await mia.asks("exam-control", { ...EXAM, action: "pause", userIds: ["ana"] });
  assert.deepEqual(paused, { ok: true, examId: "anatomy", action: "pause", affected: 1 });
  const screen = await ana.hears("exam-joined", (e) => e.session.status === "PAUSED");
  assert.equal(screen.session.id, before.session.id);
  assert.equal((await ana.hears("exam-clock")).reason, "paused");
  refused(await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 1 }), "PAUSED", "Failed to save answer");
  assert.equal((await ben.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 1 })).ok, true);

  await world.server.kill();
  await world.server.restart();
  const back = await world.person("ana");
  assert.equal((await joins(back)).session.status, "PAUSED");
  assert.equal((await control(world, "extend", { userIds: ["ana", "ana", "nobody"], seconds: 300 })).body.affected, 1);
  assert.equal((await control(world, "resume")).body.affected, 1);
  const resumed = await back.hears("exam-joined", (e) => e.session.status === "IN_PROGRESS");
  assert.ok(resumed.session.time_remaining >= before.session.time_remaining + 295);
  const clock = await back.hears("exam-clock", (e) => e.reason === "resumed");
  assert.equal(clock.deadlineAt, resumed.session.deadline_at);
  assert.equal(clock.rev, 4);

  await control(world, "submit", { userIds: ["ana"] });
  assert.equal((await back.hears("exam-completed")).result.score, 0);
  await control(world, "close");
  await eventually("ben's attempt is final, too", async () => {
    const { body } = await world.api("GET", "/v1/exams/anatomy/attempts");
    return body.items.every((attempt) => attempt.status === "COMPLETED" && attempt.endedBy === "staff");
  });
  const { body: audit } = await world.api("GET", "/v1/audit");
  assert.ok(audit.items.some((entry) => entry.action === "exam.control"));
});

story("who comes back without rejoining is in the exam again", { on: DATABASES }, async (world) => {
  await provide(world);
  const ben = await world.person("ben");
  await joins(ben);
  const ana = await world.person("ana", { reconnection: true, reconnectionDelay: 50 });
  const { session } = await joins(ana);
  await ben.hears("participant-joined-exam");
  ana.socket.io.engine.close();
  assert.equal((await ben.hears("participant-left-exam")).participantCount, 1);
  const again = await ana.hears("exam-joined");
  assert.equal(again.session.id, session.id);
  assert.equal((await ben.hears("participant-joined-exam")).participantCount, 2);
  // Who has left by themselves stays out.
  ana.says("leave-exam", EXAM);
  await ana.hears("exam-left");
  assert.equal((await ben.hears("participant-left-exam")).participantCount, 1);
  ana.socket.io.engine.close();
  await once(ana.socket, "connect");
  await pause(1_500);
  await silent("exam-joined", ana);
  // So is everybody after a restart.
  const [left] = [ana.leaves()];
  assert.equal(left, undefined);
  const cleo = await world.person("cleo", { reconnection: true, reconnectionDelay: 50 });
  const begun = await joins(cleo);
  await world.server.kill();
  await world.server.restart();
  assert.equal((await cleo.hears("exam-joined")).session.id, begun.session.id);
});

story("counts are of users, and leaving with one of two tabs is not leaving", {}, async (world) => {
  await provide(world);
  const [ben, one, two] = await world.people("ben", "ana", "ana");
  await joins(ben);
  assert.equal((await joins(one)).participantCount, 2);
  assert.equal((await joins(two)).participantCount, 2);
  await ben.hears("participant-joined-exam");
  await silent("participant-joined-exam", ben);
  one.leaves();
  await two.settled();
  await silent("participant-left-exam", ben);
  two.leaves();
  assert.deepEqual(await ben.hears("participant-left-exam"), {
    examId: "anatomy", userId: "ana", userName: "ana Name", participantCount: 1,
  });
});

story("scores are shown to the others only where the exam says so", {}, async (world) => {
  await provide(world, { showScores: true });
  const [ana, ben] = await world.people("ana", "ben");
  await joins(ana);
  await joins(ben);
  ana.says("exam-complete", EXAM);
  assert.equal((await ben.hears("participant-completed-exam")).score, 0);
});

story("before the release nothing of a key or a score reaches a student", { on: DATABASES }, async (world) => {
  const questions = [
    { kind: "short_text", text: "The green one?", correct: ["chlorophyll"] },
    { kind: "numeric", text: "How many?", correct: 31415.9265, tolerance: 500.5772 },
    { kind: "essay", text: "Why?", points: 4 },
  ];
  await provide(world, { release: "manual", questions });
  const ana = await world.person("ana");
  const frames = [];
  ana.socket.io.engine.on("packet", ({ data }) => frames.push(data));
  await joins(ana);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: " Chlorophyl " });
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 1, answer: 31000 });
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 2, answer: "Because." });
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 1, answer: [1] });
  const { result } = await ana.asks("exam-complete", EXAM);
  assert.deepEqual([result.score, result.points, result.pending_review, result.released], [null, null, null, false]);
  await ana.hears("new-notification");
  for (const secret of ["chlorophyll", "31415.9265", "500.5772", "correct", "scored"]) {
    assert.ok(!frames.join("\n").includes(secret), secret);
  }
  const { body } = await world.api("GET", "/v1/exams/anatomy/results?user=ana");
  assert.deepEqual([body.items[0].score, body.items[0].pendingReview], [1, true]);

  const award = { userId: "ana", questionId: "q3", points: 2.5 };
  assert.equal((await world.api("POST", "/v1/exams/anatomy/regrade", { awards: [award] })).body.results, 1);
  await eventually("it is marked again", async () => {
    const { body } = await world.api("GET", "/v1/exams/anatomy/results?user=ana");
    return body.items[0].revision === 2;
  });
  ana.forget();
  assert.equal((await world.api("POST", "/v1/exams/anatomy/release")).status, 202);
  const released = await ana.hears("exam-completed");
  assert.deepEqual(
    [released.result.score, released.result.points, released.result.pending_review, released.result.released],
    [1, 3.5, false, true],
  );
});

story("results that wait for the close come when nobody sits it any more", { env: { CARILLON_EXAM__GRACE: "0s" } }, async (world) => {
  await provide(world, { release: "after_close" });
  const [ana, ben] = await world.people("ana", "ben");
  await joins(ana);
  await joins(ben);
  await ana.asks("exam-complete", EXAM);
  await ben.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 2 });
  ana.forget();
  await control(world, "close");
  assert.equal((await ana.hears("exam-completed", (e) => e.result.released)).result.score, 0);
  assert.equal((await ben.hears("exam-completed", (e) => e.result.released)).result.score, 1);
});

story("who is not listed, or another tenant's, finds no exam", {}, async (world) => {
  await provide(world, { participants: ["ana"] });
  const [ana, eve] = await world.people("ana", "eve");
  await joins(ana);
  refused(await eve.asks("join-exam", EXAM), "NOT_FOUND", "Exam not found");
  refused(await eve.asks("exam-control", { ...EXAM, action: "close" }), "NOT_FOUND", "Exam not found");
  assert.equal((await world.api("PUT", "/v1/exams/anatomy/participants/eve")).body.isParticipant, true);
  assert.equal((await joins(eve)).session.status, "IN_PROGRESS");
  refused(await eve.asks("join-room", { roomId: "exam:anatomy" }), "FORBIDDEN", "Failed to join room");
  await provide(world, { opensAt: new Date(Date.now() + 60_000).toISOString() }, "tomorrow");
  refused(await eve.asks("join-exam", { examId: "tomorrow" }), "ATTEMPT_CLOSED", "Failed to join exam");
});

story("listed staff look on, without an attempt of their own", {}, async (world) => {
  await provide(world, { staff: ["mia"] });
  const mia = await world.person("mia", { claims: { role: "MENTOR" } });
  assert.equal((await joins(mia)).session, null);
  const ana = await world.person("ana");
  await joins(ana);
  const { userId, participantCount } = await mia.hears("participant-joined-exam");
  assert.deepEqual([userId, participantCount], ["ana", 1]);
  assert.equal((await world.api("GET", "/v1/exams/anatomy/attempts")).body.items.length, 1);
});

story("a paper with a fault is refused, and the fault named", {}, async (world) => {
  const faulty = async (changes) => {
    const { status, body } = await world.api("POST", "/v1/exams", { title: "x", questions: paper(1), ...changes });
    return [status, body.code, body.detail];
  };
  assert.deepEqual(await faulty({ questions: [question(0, { correct: 4 })] }), [400, "INVALID", "questions[0].correct: the index of one option"]);
  assert.deepEqual(await faulty({ durationMinutes: -1 }), [400, "INVALID", "durationMinutes: 0 to 10080"]);
  const [status, code, detail] = await faulty({ questions: [question(0, { corect: 1 })] });
  assert.deepEqual([status, code], [400, "INVALID"]);
  assert.match(detail, /questions\[0\].*corect/);
  const made = await world.api("POST", "/v1/exams", { title: "x", questions: paper(1) });
  assert.equal(made.status, 201);
  const again = await world.api("POST", "/v1/exams", { id: made.body.id, title: "x", questions: paper(1) });
  assert.deepEqual([again.status, again.body.code], [409, "CONFLICT"]);
});

const UNLIMITED = { CARILLON_LIMITS__RATES__EXAM: "1000000/1m" };

story("power cuts while answers and completions are on their way lose nothing that was acknowledged", { on: DATABASES, env: UNLIMITED, long: true }, async (world) => {
  const COUNT = 30;
  await provide(world, { questions: paper(COUNT), durationMinutes: 30 });
  const { server } = world;
  const students = await Promise.all(Array.from({ length: 6 }, (_, n) =>
    world.person(`student${n}`, { reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 200, reconnectionAttempts: Infinity })));
  let over = false;
  for (const { socket } of students) {
    socket.on("connect_error", () => socket.active || setTimeout(() => over || socket.connect(), 50));
  }
  /** Repeats until there is an answer. */
  const insists = async (socket, name, payload) => {
    for (;;) {
      const answer = await new Promise((resolve) => {
        if (!socket.connected) return setTimeout(resolve, 20);
        const gone = () => resolve(undefined);
        socket.once("disconnect", gone);
        setTimeout(gone, 2_000);
        return socket.emit(name, payload, resolve);
      });
      if (answer?.ok) return answer;
      if (answer) assert.equal(answer.retryable, true, JSON.stringify(answer));
    }
  };
  const sittings = students.map(async ({ socket, id }) => {
    await insists(socket, "join-exam", EXAM);
    const acknowledged = [];
    for (let n = 0; n < COUNT; n += 1) {
      const answer = (n + id.length) % 4;
      await insists(socket, "exam-answer", { ...EXAM, questionIndex: n, answer });
      acknowledged.push(answer);
      await pause(10);
    }
    const { result } = await insists(socket, "exam-complete", EXAM);
    return { id, acknowledged, result };
  });
  const cuts = (async () => {
    for (let n = 0; n < 3; n += 1) {
      await pause(150 + n * 170);
      await server.kill();
      await server.restart();
    }
  })();
  const done = await Promise.all(sittings);
  await cuts;
  over = true;
  const { body } = await world.api("GET", "/v1/exams/anatomy/results");
  assert.equal(body.items.length, students.length, "one result each");
  for (const { id, acknowledged, result } of done) {
    const stored = body.items.find((of) => of.userId === id);
    assert.equal(stored.id, result.id);
    assert.deepEqual(stored.answers, acknowledged);
    assert.equal(stored.score, acknowledged.filter((answer) => answer === 2).length);
  }
});

story("an auditor finds what was changed behind the server's back", { on: POSTGRES }, async (world) => {
  await provide(world);
  const ana = await world.person("ana");
  await joins(ana);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 1 });
  await ana.asks("exam-complete", EXAM);
  const { server } = world;
  const env = { PATH: process.env.PATH, JWT_SECRET: SECRET, DATABASE_URL: server.databaseUrl };
  const verify = () => promisify(execFile)(binary, ["exam", "verify", "anatomy"], { env });
  assert.match((await verify()).stdout, /^1 attempts, 4 entries: everything fits\.$/m);
  await server.kill();
  const { default: pg } = await import("pg");
  const database = new pg.Client({ connectionString: server.databaseUrl });
  await database.connect();
  await database.query("UPDATE exam_results SET score = 5");
  await database.end();
  await assert.rejects(verify(), (error) => /the result is not that of the journal/.test(error.stdout));
});

story("a snapshot of an old tab never undoes what another tab wrote", { on: DATABASES }, async (world) => {
  await provide(world);
  const old = await world.person("ana");
  await joins(old);
  await old.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 0 });
  const other = await world.person("ana");
  await joins(other);
  await other.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 2 });
  const kept = await old.asks("exam-progress", { ...EXAM, currentQuestion: 1, timeRemaining: 5, answers: [0, 3] });
  assert.deepEqual(kept.notTaken, [{ questionIndex: 0, answer: 2, version: 2 }]);
  const stranger = await world.person("ana");
  await stranger.asks("exam-progress", { ...EXAM, currentQuestion: 1, answers: [1, 1, 1] });
  assert.deepEqual((await joins(other)).session.answers, [2, 3, 1]);
});

story("in a crowd the latest count is told, not every coming and going", {}, async (world) => {
  await provide(world);
  const first = await world.person("first");
  await joins(first);
  const crowd = await Promise.all(Array.from({ length: 260 }, (_, n) => world.person(`s${n}`)));
  await Promise.all(crowd.map((person) => joins(person)));
  await first.hears("participant-joined-exam", (e) => e.participantCount === 261);
  for (const person of crowd.slice(0, 100)) person.leaves();
  await first.hears("participant-left-exam", (e) => e.participantCount === 161);
  assert.ok(first.unheard("participant-joined-exam").length < 250);
});
