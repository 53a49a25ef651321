// Leaderboards as a frontend sees them: results come from exams, boards are shown to those who
// look, and everybody else is told now and then.
import assert from "node:assert/strict";
import { DATABASES, pause, refused, silent, story } from "./harness.mjs";

const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const FAILED = "Failed to fetch leaderboard";
let exams = 0;

/** A new exam of so many questions, the right answer to each being 1. */
async function provide(world, count = 3) {
  const id = `exam-${(exams += 1)}`;
  const question = (n) => ({ id: `q${n}`, kind: "single_choice", text: "?", options: ["a", "b"], correct: 1 });
  const questions = Array.from({ length: count }, (_, n) => question(n));
  const exam = { title: id, durationMinutes: 10, attemptsAllowed: 1, questions };
  const made = await world.api("PUT", `/v1/exams/${id}`, exam);
  assert.equal(made.status, 200, JSON.stringify(made.body));
  return id;
}

/** Sits an exam with so many right answers. */
async function scores(person, examId, right, of = 3) {
  person.says("join-exam", { examId });
  await person.hears("exam-joined", (e) => e.examId === examId);
  const answers = Array.from({ length: of }, (_, n) => (n < right ? 1 : 0));
  await person.asks("exam-progress", { examId, currentQuestion: 0, answers });
  assert.equal((await person.asks("exam-complete", { examId })).ok, true);
}

async function looks(person, payload = {}) {
  person.says("leaderboard-request", payload);
  const period = payload.period ?? "weekly";
  return person.hears("leaderboard-data", (e) => e.period === period && e.specialty === payload.specialty);
}

const student = (world, id, changes = {}) =>
  world.api("PUT", `/v1/users/${id}`, { name: `${id} Name`, role: "STUDENT", ...changes });
const ranks = (entries) => entries.map((entry) => [entry.user_id, entry.rank]);

story("a board shows who did how well, and one's own place", { on: DATABASES }, async (world) => {
  const [ana, ben, cem] = await world.people("ana", "ben", "cem");
  assert.deepEqual({ ...(await looks(ana)), timestamp: "" }, { period: "weekly", entries: [], userRank: null, timestamp: "" });
  const exam = await provide(world);
  await scores(ana, exam, 2);
  await scores(ben, exam, 3);
  for (const period of ["weekly", "monthly", "all_time"]) {
    const board = await looks(ana, { period });
    assert.deepEqual(Object.keys(board), ["period", "entries", "userRank", "timestamp"]);
    assert.match(board.timestamp, ISO);
    assert.deepEqual(board.entries, [
      {
        user_id: "ben", user_name: "ben Name", user_avatar: null, specialty: null, total_score: 3,
        exams_completed: 1, average_score: 100, rank: 1, period,
      },
      {
        user_id: "ana", user_name: "ana Name", user_avatar: null, specialty: null, total_score: 2,
        exams_completed: 1, average_score: 66.67, rank: 2, period,
      },
    ]);
    assert.deepEqual(board.userRank, { rank: 2, total_score: 2, exams_completed: 1, average_score: 66.67 });
  }
  // Outside the list is on it all the same; who has no result is not.
  const short = await looks(ana, { limit: 1 });
  assert.deepEqual([ranks(short.entries), short.userRank.rank], [[["ben", 1]], 2]);
  assert.equal((await looks(cem)).userRank, null);
});

story("a board of a specialty is ranked among its own", { on: DATABASES }, async (world) => {
  await student(world, "ana", { targetSpecialty: "Cardiology", avatar: "/ana.png" });
  await student(world, "ben", { targetSpecialty: "Neurology" });
  await student(world, "cem", { targetSpecialty: "Cardiology" });
  const [ana, ben, cem] = await world.people("ana", "ben", "cem");
  const exam = await provide(world);
  await scores(ben, exam, 3);
  await scores(ana, exam, 2);
  await scores(cem, exam, 2);
  const board = await looks(cem, { specialty: "Cardiology" });
  assert.equal(board.specialty, "Cardiology");
  assert.deepEqual(ranks(board.entries), [["ana", 1], ["cem", 1]]);
  assert.equal(board.userRank.rank, 1);
  assert.equal((await looks(ben, { specialty: "Cardiology" })).userRank, null);
  assert.deepEqual(ranks((await looks(cem)).entries), [["ben", 1], ["ana", 2], ["cem", 2]]);
  // Names, pictures and specialties are what they are now.
  await student(world, "ana", { name: "Ana Renamed", targetSpecialty: "Neurology" });
  assert.deepEqual(ranks((await looks(cem, { specialty: "Cardiology" })).entries), [["cem", 1]]);
  const neurology = await looks(ben, { specialty: "Neurology" });
  assert.deepEqual(neurology.entries.map((entry) => entry.user_name), ["ben Name", "Ana Renamed"]);
  // An empty specialty is none.
  ben.says("leaderboard-request", { specialty: "" });
  assert.equal((await ben.hears("leaderboard-data")).entries.length, 3);
});

story("what is asked wrongly is refused in the contract's words", {}, async (world) => {
  const ana = await world.person("ana");
  for (const payload of [{ period: "daily" }, { period: 7 }, { limit: "ten" }, { specialty: 7 }, { specialty: "x".repeat(101) }, []]) {
    refused(await ana.asks("leaderboard-request", payload), "INVALID", FAILED);
    ana.says("leaderboard-request", payload);
    assert.equal((await ana.hears("error")).message, FAILED);
  }
  for (const limit of [0, -5, 1000]) {
    const answer = await ana.asks("leaderboard-request", { limit });
    assert.equal(answer.limit, Math.min(Math.max(limit, 1), 100));
  }
  for (const payload of [undefined, null, {}]) {
    ana.says("leaderboard-request", ...(payload === undefined ? [] : [payload]));
    assert.equal((await ana.hears("leaderboard-data", (e) => e.period === "weekly")).period, "weekly");
  }
  const view = await world.person("ana", { path: "/leaderboard" });
  assert.equal((await looks(view, { period: "monthly" })).period, "monthly");
});

story("those who look are shown their own board when it changes", { on: DATABASES }, async (world) => {
  await student(world, "ana", { targetSpecialty: "Cardiology" });
  await student(world, "ben", { targetSpecialty: "Neurology" });
  const [ana, ben] = await world.people("ana", "ben");
  const [weekly, heart, ever, view] = [
    await world.person("w"), await world.person("h"), await world.person("e"),
    await world.person("v", { path: "/leaderboard" }),
  ];
  await looks(weekly);
  await looks(heart, { specialty: "Cardiology" });
  await looks(ever, { period: "all_time", limit: 1 });
  await looks(view, { period: "monthly" });
  const exam = await provide(world);
  await scores(ana, exam, 2);
  const shown = await weekly.hears("leaderboard-updated", () => true, 1500);
  assert.deepEqual(Object.keys(shown), ["period", "entries", "timestamp"]);
  assert.match(shown.timestamp, ISO);
  assert.deepEqual([shown.period, ranks(shown.entries)], ["weekly", [["ana", 1]]]);
  const filtered = await heart.hears("leaderboard-updated", () => true, 1500);
  assert.deepEqual([filtered.specialty, ranks(filtered.entries)], ["Cardiology", [["ana", 1]]]);
  assert.equal((await ever.hears("leaderboard-updated", () => true, 1500)).period, "all_time");
  assert.equal((await view.hears("leaderboard-updated", () => true, 1500)).period, "monthly");

  await scores(ben, exam, 3);
  const both = await weekly.hears("leaderboard-updated", (e) => e.entries.length === 2);
  assert.deepEqual(ranks(both.entries), [["ben", 1], ["ana", 2]]);
  const one = await ever.hears("leaderboard-updated");
  assert.deepEqual([one.period, ranks(one.entries)], ["all_time", [["ben", 1]]]);
  // The board of another specialty has not changed.
  await silent("leaderboard-updated", weekly, heart, ever);
});

story("who looks at another board hears of the old one no more", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  const marker = await world.person("marker");
  await looks(ben, { period: "monthly" });
  await looks(marker, { period: "monthly" });
  await looks(ben, { period: "all_time" });
  await scores(ana, await provide(world), 1);
  assert.equal((await marker.hears("leaderboard-updated")).period, "monthly");
  assert.equal((await ben.hears("leaderboard-updated")).period, "all_time");
  await silent("leaderboard-updated", ben, marker);
});

story("a board that changes often is shown once a second, and in the end as it is", {}, async (world) => {
  const people = await world.people(..."abcdef");
  const looker = await world.person("looker");
  const heard = [];
  looker.socket.on("leaderboard-updated", (e) => heard.push({ at: Date.now(), count: e.entries.length }));
  await looks(looker);
  const exam = await provide(world);
  for (const person of people) await scores(person, exam, 1);
  await looker.hears("leaderboard-updated", (e) => e.entries.length === people.length);
  for (let n = 1; n < heard.length; n++) assert.ok(heard[n].at - heard[n - 1].at >= 900, JSON.stringify(heard));
  assert.ok(heard.length <= 3, JSON.stringify(heard));
});

story("who never asked is told of the weekly board, but not of every change", {}, async (world) => {
  const [ana, ben, looker] = await world.people("ana", "ben", "looker");
  const bystander = await world.person("bystander");
  await looks(looker);
  const exam = await provide(world);
  await scores(ana, exam, 1);
  const told = await bystander.hears("leaderboard-updated");
  assert.deepEqual([told.period, ranks(told.entries)], ["weekly", [["ana", 1]]]);
  await looker.hears("leaderboard-updated", (e) => e.entries.length === 1);
  await scores(ben, exam, 2);
  await looker.hears("leaderboard-updated", (e) => e.entries.length === 2);
  await silent("leaderboard-updated", bystander);
});

story("who never asked is told again after half a minute", { long: true }, async (world) => {
  const [ana, ben, bystander] = await world.people("ana", "ben", "bystander");
  const exam = await provide(world);
  await scores(ana, exam, 1);
  await bystander.hears("leaderboard-updated");
  const began = Date.now();
  await scores(ben, exam, 2);
  const told = await bystander.hears("leaderboard-updated", () => true, 35_000);
  assert.equal(told.entries.length, 2);
  assert.ok(Date.now() - began > 25_000);
});

story("only admins have the boards made anew, and then everybody is shown", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  await scores(ana, await provide(world), 2);
  const looker = await world.person("looker");
  await looks(looker, { period: "all_time" });
  for (const role of ["STUDENT", "MENTOR", "REVIEWER", "PROCTOR"]) {
    const other = await world.person(role.toLowerCase(), { claims: { role } });
    refused(await other.asks("leaderboard-update"), "FORBIDDEN", "Unauthorized");
    other.says("leaderboard-update");
    assert.equal((await other.hears("error")).message, "Unauthorized");
  }
  await ana.hears("leaderboard-updated", (e) => e.entries.length === 1);
  for (const role of ["PROGRAM_ADMIN", "SUPER_ADMIN"]) {
    const admin = await world.person(`${role}-1`, { claims: { role } });
    admin.says("leaderboard-update");
    for (const person of [admin, ana, looker]) {
      const shown = await person.hears("leaderboard-updated", (e) => e.period === "weekly");
      assert.deepEqual(ranks(shown.entries), [["ana", 1]]);
      assert.match(shown.timestamp, ISO);
    }
    // The screen has been replaced; it gets its own board back.
    const own = await looker.hears("leaderboard-updated", (e) => e.period === "all_time");
    assert.deepEqual(ranks(own.entries), [["ana", 1]]);
  }
});

story("a result that counts is on the board after a power cut", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  await scores(ana, await provide(world), 2);
  await world.server.kill();
  await world.server.restart();
  const again = await world.person("ana");
  assert.equal((await looks(again)).userRank.total_score, 2);
});

story("a result counts when it is released, and as it was graded last", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  const id = await provide(world);
  const questions = [{ id: "q0", kind: "single_choice", text: "?", options: ["a", "b"], correct: 1 }];
  const exam = { title: "Manual", durationMinutes: 10, attemptsAllowed: 1, release: "manual", questions };
  await world.api("PUT", `/v1/exams/${id}`, exam);
  await looks(ana);
  await scores(ana, id, 1, 1);
  assert.equal((await looks(ana)).userRank, null);
  assert.equal((await world.api("POST", `/v1/exams/${id}/release`)).status, 202);
  await ana.hears("leaderboard-updated", (e) => e.entries[0]?.total_score === 1);
  // Another key: the answer was wrong after all.
  await world.api("PUT", `/v1/exams/${id}`, { ...exam, questions: [{ ...questions[0], correct: 0 }] });
  const asked = await world.api("POST", `/v1/exams/${id}/regrade`, {});
  assert.equal(asked.status, 202, JSON.stringify(asked.body));
  await ana.hears("leaderboard-updated", (e) => e.entries[0]?.total_score === 0);
  const { exams_completed, average_score } = (await looks(ana)).userRank;
  assert.deepEqual([exams_completed, average_score], [1, 0]);
});

story("the backend reads boards in pages and has them made anew", { on: DATABASES }, async (world) => {
  const people = await world.people("ana", "ben", "cem");
  const exam = await provide(world);
  for (const [index, person] of people.entries()) await scores(person, exam, index === 0 ? 3 : 2);
  const first = await world.api("GET", "/v1/leaderboards/weekly?limit=2");
  assert.equal(first.status, 200);
  assert.deepEqual([first.body.period, ranks(first.body.items)], ["weekly", [["ana", 1], ["ben", 2]]]);
  assert.match(first.body.periodStart, /^\d{4}-\d\d-\d\d$/);
  const second = await world.api("GET", `/v1/leaderboards/weekly?limit=2&cursor=${first.body.next}`);
  assert.deepEqual([ranks(second.body.items), second.body.next], [[["cem", 2]], null]);
  assert.equal((await world.api("GET", "/v1/leaderboards/daily")).status, 400);
  const done = await world.api("POST", "/v1/leaderboards/recompute", undefined, { idempotencyKey: "again" });
  assert.deepEqual([done.status, done.body], [200, { users: 3, entries: 9, repaired: 0, complete: true }]);
  assert.deepEqual((await world.api("GET", "/v1/leaderboards/weekly?limit=2")).body, first.body);
});

story("who takes another name is shown under it to those who look", {}, async (world) => {
  const examId = await provide(world);
  await student(world, "ana");
  const [ana, eve] = await world.people("ana", "eve");
  await scores(ana, examId, 2);
  await looks(eve);
  // What she looks at is looked at once more after a second.
  await pause(1500);
  await student(world, "ana", { name: "Anna Maria" });
  const shown = (e) => e.entries[0]?.user_name === "Anna Maria";
  await eve.hears("leaderboard-updated", shown, 5000);
});
