// What ends when a user's rights end: within a second, on every socket, whoever changed the row.
import assert from "node:assert/strict";
import { DATABASES, POSTGRES, Person, eventually, pause, silent, story, token, within } from "./harness.mjs";

const INVALID = /Invalid token/;
const gone = (person) => within(1000, `${person.id} is cut`, new Promise((resolve) => person.socket.once("disconnect", resolve)));
const put = async (world, id, role, more = {}) => {
  const { status, body } = await world.api("PUT", `/v1/users/${id}`, { name: id, role, ...more });
  assert.equal(status, 200, JSON.stringify(body));
};

const denied = ({ ok, code }, expected) => assert.deepEqual([ok, code], [false, expected]);

const EXAM = {
  title: "Biology", durationMinutes: 30, attemptsAllowed: 1, shuffle: false, release: "manual",
  staff: ["mia"], participants: ["ana", "ben"],
  questions: [{ kind: "single_choice", text: "?", options: ["a", "b"], correct: [0], points: 1 }],
};

/** Statements past the server, on PostgreSQL. */
async function sql(world, run) {
  const { default: pg } = await import("pg");
  const database = new pg.Client({ connectionString: world.server.databaseUrl });
  await database.connect();
  try {
    return await run((...args) => database.query(...args));
  } finally {
    await database.end();
  }
}

story("a role that changes counts at once on every socket", { on: DATABASES }, async (world) => {
  await put(world, "ana", "PROGRAM_ADMIN");
  const tabs = [await world.person("ana"), await world.person("ana", { path: "/leaderboard", transports: ["polling"] })];
  for (const tab of tabs) assert.equal((await tab.asks("leaderboard-update")).ok, true);
  await put(world, "ana", "STUDENT");
  for (const tab of tabs) denied(await tab.asks("leaderboard-update"), "FORBIDDEN");
  await put(world, "ana", "SUPER_ADMIN");
  for (const tab of tabs) assert.equal((await tab.asks("leaderboard-update")).ok, true);
  for (const tab of tabs) assert.equal(tab.socket.connected, true);
});

story("a new name is what others see", { on: DATABASES }, async (world) => {
  await put(world, "ana", "STUDENT");
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  await put(world, "ana", "STUDENT", { name: "Ana María" });
  await ana.asks("send-message", { roomId: "algebra", message: "hi" });
  assert.equal((await ben.hears("receive-message")).sender_name, "Ana María");
});

story("who is staff no more leaves the rooms that only staff may enter", { on: DATABASES }, async (world) => {
  await put(world, "mia", "MENTOR");
  await put(world, "ana", "STUDENT");
  const ana = await world.person("ana");
  const mia = [await world.person("mia"), await world.person("mia")];
  for (const person of [ana, ...mia]) {
    await person.joins("mentor:ana");
    await person.joins("algebra");
  }
  await put(world, "mia", "STUDENT");
  for (const tab of mia) await tab.hears("room-left", (e) => e.roomId === "mentor:ana", 1500);
  assert.equal((await ana.asks("send-message", { roomId: "mentor:ana", message: "between us" })).ok, true);
  assert.equal((await ana.asks("send-message", { roomId: "algebra", message: "for all" })).ok, true);
  for (const tab of mia) {
    assert.equal((await tab.hears("receive-message")).message, "for all");
    assert.deepEqual(tab.unheard("receive-message"), []);
    denied(await tab.asks("send-message", { roomId: "mentor:ana", message: "still here" }), "NOT_A_MEMBER");
    denied(await tab.asks("join-room", { roomId: "mentor:ana" }), "FORBIDDEN");
    denied(await tab.asks("chat-history", { roomId: "mentor:ana" }), "NOT_A_MEMBER");
  }
});

story("whose role changes right after their name leaves the rooms of staff, too", { on: DATABASES }, async (world) => {
  await put(world, "mia", "MENTOR");
  await put(world, "ana", "STUDENT");
  const mia = await world.person("mia");
  await mia.joins("mentor:ana");
  await put(world, "mia", "MENTOR", { name: "Mia B" });
  await pause(1200); // The first change has been followed, and is still remembered.
  await put(world, "mia", "STUDENT");
  await mia.hears("room-left", (e) => e.roomId === "mentor:ana", 1500);
});

story("who looks on at an exam as staff and is staff no more hears nothing more of it", { on: DATABASES }, async (world) => {
  for (const [id, role] of [["mia", "MENTOR"], ["ana", "STUDENT"], ["ben", "STUDENT"]]) await put(world, id, role);
  assert.equal((await world.api("PUT", "/v1/exams/biology", EXAM)).status < 300, true);
  const [mia, ana, ben] = await world.people("mia", "ana", "ben");
  assert.equal((await mia.asks("join-exam", { examId: "biology" })).ok, true);
  assert.equal((await ana.asks("join-exam", { examId: "biology" })).ok, true);
  await mia.hears("participant-joined-exam", (e) => e.userId === "ana");
  assert.equal((await world.api("PUT", "/v1/exams/biology", { ...EXAM, staff: [] })).status < 300, true);
  await put(world, "mia", "STUDENT");
  await eventually("mia is out", async () => {
    const { code } = await mia.asks("exam-control", { examId: "biology", action: "pause" });
    return code === "FORBIDDEN" || code === "NOT_FOUND";
  });
  await pause(700); // The room is left within the second that rights may take.
  assert.equal((await ben.asks("join-exam", { examId: "biology" })).ok, true);
  await ana.hears("participant-joined-exam", (e) => e.userId === "ben");
  await silent("participant-joined-exam", mia);
});

story("a token of an older version is refused, and its sockets are cut", { on: DATABASES }, async (world) => {
  await put(world, "ana", "STUDENT", { tokenVersion: 2 });
  const as = (tokenVersion) => ({ claims: { tokenVersion } });
  await assert.rejects(Person.connect(world.server, "ana", as(1)), INVALID);
  await assert.rejects(Person.connect(world.server, "ana"), INVALID);
  const [two, three] = [await world.person("ana", as(2)), await world.person("ana", as(3))];
  const cut = gone(two);
  const { status, body } = await world.api("POST", "/v1/users/ana/revoke", { tokenVersion: 3 });
  assert.deepEqual([status, body], [200, { id: "ana", tokensValidFrom: null, tokenVersion: 3 }]);
  assert.equal(await cut, "io server disconnect");
  assert.equal((await three.asks("heartbeat")).ok, true);
  await assert.rejects(Person.connect(world.server, "ana", as(2)), INVALID);
  await put(world, "ana", "STUDENT", { tokenVersion: 1 });
  assert.equal((await world.api("GET", "/v1/users/ana")).body.tokenVersion, 3);
  assert.equal((await world.api("POST", "/v1/users/ana/revoke", { tokenVersion: -1 })).status, 400);
});

story("tokens issued before an instant are refused, and their sockets are cut", { on: DATABASES }, async (world) => {
  const now = Math.floor(Date.now() / 1000);
  const [old, young] = [await world.person("ana", { claims: { iat: now - 60 } }), await world.person("ana", { claims: { iat: now } })];
  const cut = gone(old);
  const before = new Date((now - 30) * 1000).toISOString();
  const { status, body } = await world.api("POST", "/v1/users/ana/revoke", { before });
  assert.deepEqual([status, body.tokensValidFrom], [200, before]);
  assert.equal(await cut, "io server disconnect");
  assert.equal((await young.asks("heartbeat")).ok, true);
  // What was refused stays refused.
  const earlier = new Date((now - 90) * 1000).toISOString();
  assert.equal((await world.api("POST", "/v1/users/ana/revoke", { before: earlier })).body.tokensValidFrom, before);
});

story("a newer token that names a higher version ends the older ones", { on: DATABASES }, async (world) => {
  const now = Math.floor(Date.now() / 1000);
  const old = await world.person("ana", { claims: { iat: now - 60, tokenVersion: 1 } });
  const cut = gone(old);
  await world.person("ana", { claims: { iat: now, tokenVersion: 2 } });
  assert.equal(await cut, "io server disconnect");
});

story("a newer token with another role changes the sockets that are there", { on: DATABASES }, async (world) => {
  const now = Math.floor(Date.now() / 1000);
  const admin = await world.person("ana", { claims: { iat: now - 60, role: "PROGRAM_ADMIN" } });
  assert.equal((await admin.asks("leaderboard-update")).ok, true);
  await world.person("ana", { claims: { iat: now, role: "STUDENT" } });
  await eventually("she is a student on both", async () => (await admin.asks("leaderboard-update")).code === "FORBIDDEN", 1500);
});

story("a user who is deleted is cut, leaves their groups and stays out", { on: DATABASES }, async (world) => {
  await put(world, "ana", "STUDENT");
  const [ana, ben] = await world.people("ana", "ben");
  const { id } = (await ana.asks("study-group-create", { name: "Anatomy", maxMembers: 4 })).group ?? {};
  const group = id ?? (await ana.hears("study-group-created")).group.id;
  await ben.asks("study-group-join", { groupId: group });
  await ana.joins("algebra");
  await ben.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "stays" });
  const cut = gone(ana);
  const earlier = { claims: { iat: Math.floor(Date.now() / 1000) } };
  assert.deepEqual((await world.api("DELETE", "/v1/users/ana")).body, { id: "ana" });
  assert.equal(await cut, "io server disconnect");
  await ben.hears("study-group-member-left", (e) => e.userId === "ana");
  assert.equal((await ben.hears("study-group-owner-changed")).ownerId, "ben");
  await assert.rejects(Person.connect(world.server, "ana"), /User not found/);
  assert.equal((await world.api("GET", "/v1/users/ana")).status, 404);
  assert.equal((await world.api("DELETE", "/v1/users/ana")).status, 404);
  assert.equal((await world.api("POST", "/v1/users/ana/revoke")).status, 404);
  assert.equal((await world.api("PUT", `/v1/study-groups/${group}/members/ana`)).status, 404);
  assert.deepEqual((await world.api("GET", "/v1/users")).body.items.map((user) => user.id), ["ben"]);
  const messages = (await world.api("GET", "/v1/rooms/algebra/messages")).body.items;
  assert.deepEqual(messages.map((message) => message.message), ["stays"]);
  await put(world, "ana", "STUDENT");
  await assert.rejects(Person.connect(world.server, "ana", earlier), INVALID);
  const back = await world.person("ana", { claims: { iat: Math.floor(Date.now() / 1000) + 2 } });
  denied(await back.asks("study-group-message", { groupId: group, message: "hi" }), "NOT_A_MEMBER");
});

story("rows changed past the server count within a second", { on: POSTGRES }, async (world) => {
  await sql(world, async (query) => {
    const admin = await world.person("ana", { claims: { role: "PROGRAM_ADMIN" } });
    assert.equal((await admin.asks("leaderboard-update")).ok, true);
    await query("UPDATE users SET role = 'STUDENT' WHERE id = 'ana'");
    await eventually("she is a student", async () => (await admin.asks("leaderboard-update")).code === "FORBIDDEN", 1000);
    const cut = gone(admin);
    await query("DELETE FROM users WHERE id = 'ana'");
    assert.equal(await cut, "io server disconnect");
  });
});

story("what was in flight when rights ended is not done", { on: POSTGRES }, async (world) => {
  await put(world, "ana", "STUDENT");
  await put(world, "mia", "PROGRAM_ADMIN");
  assert.equal((await world.api("PUT", "/v1/exams/biology", { ...EXAM, staff: undefined })).status < 300, true);
  const [ana, mia, ben] = await world.people("ana", "mia", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "first" });
  await sql(world, async (query) => {
    await query("BEGIN");
    await query("SELECT head FROM lanes WHERE tenant_id = 'default' FOR UPDATE");
    ana.says("send-message", { roomId: "algebra", message: "too late" });
    const demoted = mia.asks("exam-control", { examId: "biology", action: "pause" });
    await pause(300); // Both wait for the lane now.
    const cut = gone(ana);
    await sql(world, async (other) => {
      await other("UPDATE users SET status = 'SUSPENDED' WHERE id = 'ana'");
      await other("UPDATE users SET role = 'STUDENT' WHERE id = 'mia'");
    });
    assert.equal(await cut, "io server disconnect");
    await query("ROLLBACK");
    denied(await demoted, "NOT_FOUND");
  });
  await ben.asks("send-message", { roomId: "algebra", message: "after" });
  await ben.hears("receive-message", (e) => e.message === "after");
  const messages = (await world.api("GET", "/v1/rooms/algebra/messages")).body.items;
  assert.deepEqual(messages.map((message) => message.message), ["first", "after"]);
});

story("a user's limits are one over twenty sockets, and stay through reconnects", {
  env: { CARILLON_LIMITS__RATES__MESSAGE: "40/1h" },
}, async (world) => {
  const tabs = [];
  for (let n = 0; n < 20; n++) tabs.push(await world.person("ana", n % 2 ? { path: "/chat" } : { transports: ["polling"] }));
  await tabs[0].joins("algebra");
  const send = (tab) => tab.asks("send-message", { roomId: "algebra", message: "hi" });
  const answers = await Promise.all([...tabs, ...tabs, ...tabs].map(send));
  assert.equal(answers.filter((answer) => answer.ok).length, 40);
  for (const answer of answers.filter(({ ok }) => !ok)) {
    denied(answer, "RATE_LIMITED");
    assert.ok(answer.retryable && answer.retryAfterMs > 0);
  }
  for (const tab of tabs) tab.leaves();
  const back = await world.person("ana");
  denied(await send(back), "RATE_LIMITED");
  const ben = await world.person("ben");
  await ben.joins("algebra");
  assert.equal((await send(ben)).ok, true);
});
