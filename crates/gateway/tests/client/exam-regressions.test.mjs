// What went wrong once with exams, and with what leaves the server because of them.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { cutsOff } from "./cluster.mjs";
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
const exam = (changes = {}) => ({ title: "Anatomy", durationMinutes: 10, questions: paper(), ...changes });
const EXAM = { examId: "anatomy" };

/** Provides an exam; the rest of the story sits it. */
async function provide(world, changes = {}) {
  const made = await world.api("PUT", "/v1/exams/anatomy", exam(changes));
  assert.equal(made.status, 200, JSON.stringify(made.body));
}

const joins = async (person) => {
  person.says("join-exam", EXAM);
  return person.hears("exam-joined");
};

/** Changes something behind the server's back. */
async function tamper(world, ...statements) {
  const { default: pg } = await import("pg");
  const database = new pg.Client({ connectionString: world.server.databaseUrl });
  await database.connect();
  try {
    for (const statement of statements) await database.query(statement);
  } finally {
    await database.end();
  }
}

const COMES_BACK = { reconnection: true, reconnectionDelay: 50 };

story("before the release nobody's score is shown to the others", {}, async (world) => {
  await provide(world, { showScores: true, release: "manual" });
  const [ana, ben] = await world.people("ana", "ben");
  await joins(ana);
  await joins(ben);
  ana.says("exam-complete", EXAM);
  assert.equal("score" in (await ben.hears("participant-completed-exam")), false);
});

story("two tabs that leave at the same moment have left", { on: DATABASES }, async (world) => {
  await provide(world);
  const ben = await world.person("ben");
  await joins(ben);
  for (let n = 0; n < 8; n += 1) {
    const tabs = await world.people(`s${n}`, `s${n}`);
    for (const tab of tabs) await joins(tab);
    for (const tab of tabs) tab.says("leave-exam", EXAM);
    const left = await ben.hears("participant-left-exam", (e) => e.userId === `s${n}`);
    assert.equal(left.participantCount, 1);
  }
});

story("a page that came back with both of its sockets leaves with one of them", {}, async (world) => {
  await provide(world);
  const ben = await world.person("ben");
  await joins(ben);
  const older = await world.person("ana", COMES_BACK);
  const page = await world.person("ana", COMES_BACK);
  await joins(page);
  await ben.hears("participant-joined-exam");
  for (const { socket } of [older, page]) socket.io.engine.close();
  await ben.hears("participant-left-exam");
  await Promise.all([older, page].map((person) => person.hears("exam-joined")));
  page.says("leave-exam", EXAM);
  assert.equal((await ben.hears("participant-left-exam")).participantCount, 1);
});

story("a view without exams is not put back into one", {}, async (world) => {
  await provide(world);
  const sitting = await world.person("ana", { path: "/exam", ...COMES_BACK });
  const chatting = await world.person("ana", { path: "/chat", ...COMES_BACK });
  await joins(sitting);
  for (const { socket } of [sitting, chatting]) socket.io.engine.close();
  await sitting.hears("exam-joined");
  await pause(1_500);
  assert.deepEqual(chatting.unheard("exam-joined"), []);
});

story("an attempt that cannot be shown again keeps no notification from its student", { on: POSTGRES }, async (world) => {
  await provide(world);
  const ana = await world.person("ana", COMES_BACK);
  const mia = await world.person("mia", { claims: { role: "MENTOR" } });
  await joins(ana);
  await tamper(world, "UPDATE exam_sessions SET question_order = 'x'");
  ana.socket.io.engine.close();
  await pause(2_000);
  await mia.asks("notification-send", { userId: "ana", type: "SYSTEM", title: "Room 12", message: "Please come." });
  assert.equal((await ana.hears("new-notification")).title, "Room 12");
});

story("a result that cannot be read holds up nobody else's", { on: POSTGRES }, async (world) => {
  await provide(world, { release: "manual" });
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) {
    await joins(person);
    await person.asks("exam-complete", EXAM);
  }
  await tamper(world, "UPDATE exam_results SET answers = 'x' WHERE user_id = 'ana'");
  assert.equal((await world.api("POST", "/v1/exams/anatomy/release")).status, 202);
  await ben.hears("exam-completed", (e) => e.result.released);
});

story("an auditor finds whose result it was, what was answered and until when", { on: POSTGRES }, async (world) => {
  await provide(world);
  const [ana, ben] = await world.people("ana", "ben");
  await joins(ana);
  await joins(ben);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 2 });
  const env = { PATH: process.env.PATH, JWT_SECRET: SECRET, DATABASE_URL: world.server.databaseUrl };
  const verify = () =>
    promisify(execFile)(binary, ["exam", "verify", "anatomy"], { env }).then(
      ({ stdout }) => stdout,
      ({ stdout }) => stdout,
    );
  const swap = (table) => [
    `UPDATE ${table} SET user_id = 'x' WHERE user_id = 'ana'`,
    `UPDATE ${table} SET user_id = 'ana' WHERE user_id = 'ben'`,
    `UPDATE ${table} SET user_id = 'ben' WHERE user_id = 'x'`,
  ];
  await tamper(world, "UPDATE exam_sessions SET deadline_at = deadline_at + interval '1 hour'");
  assert.match(await verify(), /the deadline is not that of the journal/);
  await tamper(world, "UPDATE exam_sessions SET deadline_at = deadline_at - interval '1 hour'");
  for (const person of [ana, ben]) await person.asks("exam-complete", EXAM);
  assert.match(await verify(), /everything fits/);
  await tamper(world, ...swap("exam_results"));
  assert.match(await verify(), /somebody else's/);
  await tamper(world, ...swap("exam_sessions"));
  assert.match(await verify(), /the student is not that of the journal/);
  await tamper(world, ...swap("exam_results"), ...swap("exam_sessions"));
  assert.match(await verify(), /everything fits/);
  await tamper(world, "UPDATE exam_results SET answers = '[2,2,2]' WHERE user_id = 'ana'");
  assert.match(await verify(), /the result shows other answers/);
});

story("twenty thousand participants are listed while others write", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("lobby");
  const participants = Array.from({ length: 20_000 }, (_, n) => `student-${String(n).padStart(6, "0")}`);
  const listing = world.api("PUT", "/v1/exams/anatomy", exam({ participants }));
  await pause(200);
  assert.equal((await ana.asks("send-message", { roomId: "lobby", message: "hi" })).ok, true);
  const { status, body } = await listing;
  assert.deepEqual([status, body.participants?.length], [200, 20_000]);
  const userIds = participants.slice(0, 1_001);
  const regrading = await world.api("POST", "/v1/exams/anatomy/regrade", { userIds });
  assert.deepEqual([regrading.status, regrading.body.detail], [400, "userIds: at most 1000"]);
});

story("what a database cannot hold is refused, not an incident", { on: DATABASES }, async (world) => {
  for (const [change, detail] of [
    [{ title: "a\0b" }, "title, topic: no zero characters"],
    [{ topic: "a\0b" }, "title, topic: no zero characters"],
    [{ opensAt: "-009999-06-02T00:00:00Z" }, "opensAt, closesAt: from the year 1"],
  ]) {
    const { status, body } = await world.api("PUT", "/v1/exams/anatomy", exam(change));
    assert.deepEqual([status, body.code, body.detail], [400, "INVALID", detail]);
  }
});

story("long answers, all of them allowed, end nobody's connection", {}, async (world) => {
  const essays = Array.from({ length: 8 }, (_, n) => ({ kind: "essay", text: `Why ${n}?` }));
  await provide(world, { questions: essays });
  const ana = await world.person("ana");
  await joins(ana);
  const answer = "x".repeat(250 * 1024);
  for (let questionIndex = 0; questionIndex < essays.length; questionIndex += 1) {
    assert.equal((await ana.asks("exam-answer", { ...EXAM, questionIndex, answer })).ok, true);
  }
  const tab = await world.person("ana");
  assert.equal((await tab.asks("join-exam", EXAM)).ok, true);
  assert.equal((await tab.hears("exam-joined")).session.answers.length, essays.length);
  ana.says("exam-complete", EXAM);
  for (const person of [ana, tab]) {
    assert.equal((await person.hears("exam-completed")).result.answers.length, essays.length);
    await person.settled();
  }
});

story("a question without points is right when it is right, and a number is short", {}, async (world) => {
  await provide(world, {
    questions: [question(0, { points: 0 }), question(1, { points: 0 }), { kind: "numeric", text: "How many?", correct: 5 }],
  });
  const ana = await world.person("ana");
  await joins(ana);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 1 });
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 1, answer: 2 });
  const long = await ana.asks("exam-answer", { ...EXAM, questionIndex: 2, answer: `5${" ".repeat(300_000)}` });
  refused(long, "TOO_LARGE", "Failed to save answer");
  const { result } = await ana.asks("exam-complete", EXAM);
  assert.deepEqual([result.score, result.points], [1, 0]);
  await silent("error", ana);
});

story("who is taken off the list while sitting an exam finishes it, also after a reload", {}, async (world) => {
  await provide(world, { participants: ["ana"] });
  const ana = await world.person("ana");
  const { session } = await joins(ana);
  await provide(world, { participants: ["ben"] });
  const reloaded = await world.person("ana");
  assert.equal((await joins(reloaded)).session.id, session.id);
  assert.equal((await reloaded.asks("exam-complete", EXAM)).ok, true);
  const again = await world.person("ana");
  refused(await again.asks("join-exam", EXAM), "NOT_FOUND", "Exam not found");
});

story("who left the page of an exam and is then taken off the list comes back to it", {}, async (world) => {
  await provide(world, { participants: ["ana"] });
  const ana = await world.person("ana");
  const { session } = await joins(ana);
  await ana.asks("leave-exam", EXAM);
  await provide(world, { participants: ["ben"] });
  assert.equal((await joins(ana)).session.id, session.id);
});

story("what was answered to a question that is in no newer paper can be marked", {}, async (world) => {
  const essay = (id, points) => ({ questions: [{ id, kind: "essay", text: "Why?", points }] });
  await provide(world, essay("old", 4));
  const ana = await world.person("ana");
  await joins(ana);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: "Because." });
  await ana.asks("exam-complete", EXAM);
  await provide(world, essay("new", 2));
  const award = (questionId, points) =>
    world.api("POST", "/v1/exams/anatomy/regrade", { awards: [{ userId: "ana", questionId, points }] });
  assert.equal((await award("new", 1)).body.code, "UNKNOWN_QUESTION", "it was not asked of her");
  assert.equal((await award("old", 5)).status, 400, "more than it is worth");
  assert.equal((await award("old", 3)).body.results, 1);
  await eventually("it is marked", async () => {
    const { body } = await world.api("GET", "/v1/exams/anatomy/results?user=ana");
    return body.items[0].pendingReview === false && body.items[0].points === 3;
  });
});

story("staff who look on go on looking when their link breaks", {}, async (world) => {
  await provide(world, { staff: ["mia"] });
  const back = { reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 100 };
  const mia = await world.person("mia", { claims: { role: "MENTOR" }, ...back });
  await joins(mia);
  mia.forget();
  await cutsOff(mia);
  assert.equal((await mia.hears("exam-joined")).session, null);
  await joins(await world.person("ana"));
  assert.equal((await mia.hears("participant-joined-exam")).userId, "ana");
});

story("results that waited are out when their exam shows results at once", {}, async (world) => {
  await provide(world, { release: "manual" });
  const ana = await world.person("ana");
  await joins(ana);
  await ana.asks("exam-complete", EXAM);
  await provide(world, { release: "immediately" });
  await ana.hears("exam-completed", (e) => e.result.released);
});

story("an exam that is open again keeps its results until it closes again", { env: { CARILLON_EXAM__GRACE: "0s" } }, async (world) => {
  const after = (ms) => new Date(Date.now() + ms).toISOString();
  await provide(world, { release: "after_close", closesAt: after(1_500) });
  const ana = await world.person("ana");
  await joins(ana);
  await ana.asks("exam-complete", EXAM);
  await ana.hears("exam-completed", (e) => e.result.released);
  await provide(world, { release: "after_close", closesAt: after(60_000) });
  const ben = await world.person("ben");
  await joins(ben);
  assert.equal((await ben.asks("exam-complete", EXAM)).result.released, false);
  await pause(1_200);
  assert.deepEqual(ben.unheard("exam-completed").filter((e) => e.result.released), []);
});

story("what a page saved before it knew of another tab's answer does not undo that", {}, async (world) => {
  for (const client of ["4.8", "4.4"]) {
    const sits = { examId: `anatomy-${client}` };
    await world.api("PUT", `/v1/exams/${sits.examId}`, exam());
    const away = await world.person("ana", { ...COMES_BACK, reconnectionDelay: 600, client });
    const there = await world.person("ana");
    for (const tab of [away, there]) {
      tab.says("join-exam", sits);
      await tab.hears("exam-joined", ({ examId }) => examId === sits.examId);
    }
    await away.asks("exam-answer", { ...sits, questionIndex: 0, answer: 1 });
    await away.asks("exam-answer", { ...sits, questionIndex: 1, answer: 1 });
    away.socket.io.engine.close();
    await eventually("it is away", () => !away.socket.connected);
    // Sent when it is back: it has meant to change the second answer, and has never seen the other tab's first.
    away.says("exam-progress", { ...sits, currentQuestion: 0, timeRemaining: 500, answers: [1, 3] });
    await there.asks("exam-answer", { ...sits, questionIndex: 0, answer: 2 });
    const { notTaken } = await away.hears("exam-progress-saved");
    assert.deepEqual(notTaken, [{ questionIndex: 0, answer: 2, version: 2 }]);
    assert.deepEqual((await there.asks("exam-complete", sits)).result.answers, [2, 3]);
    for (const tab of [away, there]) tab.leaves();
  }
});

story("a page that still shows the first attempt changes nothing in the second", { on: DATABASES }, async (world) => {
  await provide(world, { attemptsAllowed: 2, shuffle: true });
  const [old, other] = await world.people("ana", "ana");
  const first = await joins(old);
  await other.asks("exam-complete", EXAM);
  const second = await joins(other);
  assert.deepEqual([first.session.attempt_no, second.session.attempt_no], [1, 2]);
  refused(await old.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 3 }), "ATTEMPT_CLOSED", "Failed to save answer");
  refused(await old.asks("exam-progress", { ...EXAM, currentQuestion: 1, answers: [3, 1] }), "ATTEMPT_CLOSED", "Failed to save progress");
  assert.equal((await old.asks("exam-complete", EXAM)).result.attempt_no, 1);
  assert.deepEqual((await joins(other)).session.answers, []);
  // Once it shows the second, it sits that.
  assert.equal((await joins(old)).session.id, second.session.id);
  await old.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 3 });
  assert.deepEqual((await joins(other)).session.answers, [3]);
});

story("a page is told how the attempt that it shows has ended, whatever came after", {}, async (world) => {
  await provide(world, { attemptsAllowed: 2 });
  const [old, other] = await world.people("ana", "ana");
  await joins(old);
  for (const attempt of [1, 2]) {
    if (attempt === 2) await joins(other);
    assert.equal((await other.asks("exam-complete", EXAM)).result.attempt_no, attempt);
  }
  assert.equal((await old.asks("exam-complete", EXAM)).result.attempt_no, 1);
});

story("who is staff of an exam no more hears nothing more of it", { on: DATABASES }, async (world) => {
  // Staff by the list, and by their role.
  for (const staff of [["mia"], undefined]) {
    await provide(world, { staff, participants: ["ana"] });
    const mia = await world.person("mia", { claims: { role: "MENTOR" } });
    assert.equal((await joins(mia)).session, null);
    await provide(world, { staff: ["max"], participants: ["ana"] });
    // Every node looks at who has changed twice a second.
    await pause(1500);
    const ana = await world.person("ana");
    await joins(ana);
    await silent("participant-joined-exam", mia);
    for (const person of [mia, ana]) person.leaves();
  }
});

story("a pause after the deadline keeps nothing open", { env: { CARILLON_EXAM__GRACE: "3s" } }, async (world) => {
  await provide(world, { durationMinutes: 2 / 60 });
  const ana = await world.person("ana");
  const { session } = await joins(ana);
  await pause(Date.parse(session.deadline_at) - Date.now() + 300);
  const { body } = await world.api("POST", "/v1/exams/anatomy/control", { action: "pause" });
  assert.equal(body.affected, 0);
  assert.equal((await ana.hears("exam-completed", () => true, 10_000)).result.exam_id, "anatomy");
});

story("points by hand count for whom they are given, and never more than the question has", {}, async (world) => {
  const essay = (points) => ({ questions: [{ id: "essay", kind: "essay", text: "Why?", points }] });
  await provide(world, essay(4));
  const ana = await world.person("ana");
  await joins(ana);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: "Because." });
  await ana.asks("exam-complete", EXAM);
  const marked = (points) => eventually(`she has ${points}`, async () => {
    const { body } = await world.api("GET", "/v1/exams/anatomy/results?user=ana");
    return body.items[0].points === points;
  });
  const award = { userId: "ana", questionId: "essay", points: 4 };
  const asked = await world.api("POST", "/v1/exams/anatomy/regrade", { userIds: ["ben", "ben"], awards: [award] });
  assert.equal(asked.body.results, 1);
  await marked(4);
  await provide(world, essay(2));
  await world.api("POST", "/v1/exams/anatomy/regrade", {});
  await marked(2);
});

story("an exam that ended while a page was away is ended there, too", {}, async (world) => {
  await provide(world);
  for (const client of ["4.8", "4.4"]) {
    const id = `student-${client}`;
    const person = await world.person(id, { ...COMES_BACK, client, reconnectionDelay: 1000 });
    await joins(person);
    person.socket.io.engine.close();
    await eventually("it is away", () => !person.socket.connected);
    await world.api("POST", "/v1/exams/anatomy/control", { action: "submit", userIds: [id] });
    assert.equal((await person.hears("exam-completed", () => true, 10_000)).examId, "anatomy");
    await silent("exam-completed", person);
  }
});

story("numbers are kept to the last digit, and a running attempt shows its own time", {}, async (world) => {
  const numeric = { id: "pi", kind: "numeric", text: "How much?", correct: 11312.284133492567, tolerance: 0 };
  await provide(world, { questions: [numeric] });
  const ana = await world.person("ana");
  await joins(ana);
  await provide(world, { questions: [numeric], durationMinutes: 25 });
  assert.equal((await joins(ana)).exam.duration_minutes, 10);
  const saved = await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: 11312.284133492567 });
  assert.equal(saved.answer, 11312.284133492567);
  await ana.asks("exam-answer", { ...EXAM, questionIndex: 0, answer: "11312.284133492567" });
  assert.equal((await ana.asks("exam-complete", EXAM)).result.score, 1);
});
