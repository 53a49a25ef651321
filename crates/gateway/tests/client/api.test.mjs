// The server API as a school's backend sees it: keys, refusals, repeated requests, and what it
// does to those who are connected.
import assert from "node:assert/strict";
import { API_KEY, DATABASES, Person, eventually, refused, silent, story, token } from "./harness.mjs";

const PROBLEM = "application/problem+json";
const ANA = { name: "Ana", role: "STUDENT" };

/** Asserts that an answer is this refusal, in the one shape all of them have. */
function problem({ status, body, headers }, expected, code, retryable = false) {
  assert.deepEqual([status, body.code], [expected, code], JSON.stringify(body));
  assert.equal(headers.get("content-type"), PROBLEM);
  const { detail, title, retryAfterMs, ...rest } = body;
  assert.deepEqual(rest, { type: "about:blank", status, code, retryable });
  assert.ok(detail.length > 0 && title.length > 0);
  return detail;
}

/** Every page of a list, as one. */
async function all(world, path, limit) {
  const items = [];
  let next = null;
  do {
    const query = new URLSearchParams({ limit, ...(next && { cursor: next }) });
    const { status, body } = await world.api("GET", `${path}?${query}`);
    assert.equal(status, 200);
    assert.ok(body.items.length <= limit);
    items.push(...body.items);
    next = body.next;
  } while (next);
  return items;
}

story("without a key, with a wrong one and without its scope nothing is answered", {
  toml: `[[api_keys]]
name = "reader"
tenant = "default"
key = "ck_readsonly0123456789abcdefghijklmnopqrstu"
scopes = ["users:read"]`,
}, async (world) => {
  for (const key of [null, "ck_wrong", `${API_KEY}x`, `ck_${"a".repeat(40)}`, ""]) {
    const answer = await world.api("GET", "/v1/users", undefined, { key });
    problem(answer, 401, "UNAUTHENTICATED");
    assert.match(answer.headers.get("www-authenticate"), /^Bearer/);
  }
  const key = "ck_readsonly0123456789abcdefghijklmnopqrstu";
  assert.equal((await world.api("GET", "/v1/users", undefined, { key })).status, 200);
  const detail = problem(await world.api("PUT", "/v1/users/ana", ANA, { key }), 403, "FORBIDDEN");
  assert.match(detail, /users:write/);
  problem(await world.api("GET", "/v1/users/ana"), 404, "NOT_FOUND");
});

story("a key made on the command line works at once, and once revoked no more", { on: DATABASES }, async (world) => {
  const key = await world.server.run("apikey", "create", "--name", "backend", "--scopes", "users:read");
  assert.match(key, /^ck_[A-Za-z0-9]{40}$/);
  assert.equal((await world.api("GET", "/v1/users", undefined, { key })).status, 200);
  problem(await world.api("GET", "/v1/rooms", undefined, { key }), 403, "FORBIDDEN");
  await assert.rejects(world.server.run("apikey", "create", "--name", "backend", "--scopes", "*"), /revoke it first/);
  await assert.rejects(world.server.run("apikey", "create", "--name", "x", "--scopes", "fly"), /"fly" is not a scope/);
  const listed = await world.server.run("apikey", "list");
  assert.match(listed, /^default\tbackend\tusers:read\tmade .*\tin use$/m);
  assert.ok(!listed.includes(key));
  await world.server.run("apikey", "revoke", "--name", "backend");
  problem(await world.api("GET", "/v1/users", undefined, { key }), 401, "UNAUTHENTICATED");
  const again = await world.server.run("apikey", "create", "--name", "backend", "--scopes", "*");
  assert.notEqual(again, key);
  assert.equal((await world.api("GET", "/v1/rooms", undefined, { key: again })).status, 200);
});

story("a key of another tenant finds nothing of this one", {
  toml: `[[api_keys]]
name = "elsewhere"
tenant = "elsewhere"
key = "ck_elsewhere0123456789abcdefghijklmnopqrstu"
scopes = ["*"]`,
}, async (world) => {
  const key = "ck_elsewhere0123456789abcdefghijklmnopqrstu";
  const ana = await world.person("ana");
  await ana.joins("algebra");
  problem(await world.api("GET", "/v1/users/ana", undefined, { key }), 404, "NOT_FOUND");
  problem(await world.api("POST", "/v1/users/ana/revoke", undefined, { key }), 404, "NOT_FOUND");
  problem(await world.api("DELETE", "/v1/users/ana/connections", undefined, { key }), 404, "NOT_FOUND");
  problem(await world.api("GET", "/v1/rooms/algebra/messages", undefined, { key }), 404, "NOT_FOUND");
  for (const path of ["/v1/users", "/v1/rooms", "/v1/presence", "/v1/connections", "/v1/audit"]) {
    assert.deepEqual((await world.api("GET", path, undefined, { key })).body, { items: [], next: null });
  }
  assert.equal((await ana.asks("heartbeat")).ok, true);
});

story("what is wrong with a request is said, with its place", {}, async (world) => {
  const put = async (body, path = "/v1/users/ana") => problem(await world.api("PUT", path, body), 400, "INVALID");
  assert.match(await put("{"), /^the body is not JSON/);
  assert.match(await put("[]"), /JSON object/);
  assert.match(await put({ name: "Ana" }), /missing field `role`/);
  assert.match(await put({ ...ANA, role: "KING" }), /^role: unknown variant/);
  assert.match(await put({ ...ANA, colour: "red" }), /^unknown field colour; known: /);
  assert.match(await put({ ...ANA, id: "ben" }), /^id: the path says ana/);
  assert.match(await put({ ...ANA, name: " " }), /^name: empty/);
  assert.match(await put({ ...ANA, avatar: "javascript:alert(1)" }), /^avatar: /);
  assert.match(await put(ANA, `/v1/users/${"x".repeat(129)}`), /^id: an id is 1 to 128/);
  const get = async (path) => problem(await world.api("GET", path), 400, "INVALID");
  assert.match(await get("/v1/users?limit=many"), /^limit: not a number/);
  assert.match(await get("/v1/users?cursor=xyz"), /^cursor: /);
  assert.match(await get("/v1/users?sort=name"), /^unknown field sort/);
  problem(await world.api("GET", "/v1/nothing"), 404, "NOT_FOUND");
  problem(await world.api("GET", "/v1"), 404, "NOT_FOUND");
  const answer = await world.api("POST", "/v1/users/ana");
  problem(answer, 405, "INVALID");
  assert.deepEqual(answer.headers.get("allow").split(",").sort(), ["DELETE", "GET", "HEAD", "PUT"]);
  problem(await world.api("PUT", "/v1/users/ana", { ...ANA, name: "x".repeat(1 << 20) }), 413, "TOO_LARGE");
});

story("too many requests of a key are refused with the time to come back", {
  env: { CARILLON_LIMITS__RATES__API: "3/1m" },
}, async (world) => {
  for (let n = 0; n < 3; n++) assert.equal((await world.api("GET", "/v1/users")).status, 200);
  const answer = await world.api("GET", "/v1/users");
  problem(answer, 429, "RATE_LIMITED", true);
  assert.ok(answer.body.retryAfterMs > 0);
  assert.ok(Number(answer.headers.get("retry-after")) * 1000 >= answer.body.retryAfterMs);
});

story("a user reads back as written, and the list is paged by id", { on: DATABASES }, async (world) => {
  const full = {
    name: "Ana María", email: "ana@school.example", role: "MENTOR", avatar: "/ana.png",
    targetSpecialty: "Cardiology", status: "PENDING",
  };
  const put = await world.api("PUT", "/v1/users/ana", full);
  assert.equal(put.status, 200);
  const { createdAt, updatedAt, ...rest } = put.body;
  assert.deepEqual(rest, { id: "ana", ...full, managed: true, tokensValidFrom: null, tokenVersion: 0 });
  assert.deepEqual((await world.api("GET", "/v1/users/ana")).body, put.body);
  const again = await world.api("PUT", "/v1/users/ana", ANA);
  assert.deepEqual([again.body.email, again.body.status, again.body.createdAt], [null, "VERIFIED", createdAt]);

  const ids = Array.from({ length: 7 }, (_, n) => `user-${n}`);
  for (const id of ids) await world.api("PUT", `/v1/users/${id}`, { name: id, role: "STUDENT" });
  assert.deepEqual((await all(world, "/v1/users", 3)).map((user) => user.id), ["ana", ...ids]);
  assert.equal((await world.api("PUT", `/v1/users/${encodeURIComponent("a/b ü?")}`, ANA)).body.id, "a/b ü?");
  assert.equal((await world.api("GET", `/v1/users/${encodeURIComponent("a/b ü?")}`)).status, 200);
});

story("what the backend says of a user wins over tokens", { on: DATABASES }, async (world) => {
  await world.api("PUT", "/v1/users/ana", { name: "Ana Managed", role: "MENTOR" });
  const ana = await world.person("ana", { claims: { name: "Somebody", role: "SUPER_ADMIN" } });
  await ana.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "hello" });
  assert.equal((await ana.hears("receive-message")).sender_name, "Ana Managed");
  assert.equal((await world.api("GET", "/v1/users/ana")).body.role, "MENTOR");
  // The row changes under the open connection, which goes on.
  await world.api("PUT", "/v1/users/ana", { name: "Ana Renamed", role: "STUDENT" });
  await ana.asks("send-message", { roomId: "algebra", message: "hello again" });
  assert.equal((await ana.hears("receive-message")).sender_name, "Ana Renamed");
});

story("a change of role counts for open connections, too", {}, async (world) => {
  await world.api("PUT", "/v1/users/ana", { name: "Ana", role: "MENTOR" });
  const [ana] = await world.people("ana", "ben");
  assert.equal((await ana.asks("join-room", { roomId: "mentor:ben" })).ok, true);
  await world.api("PUT", "/v1/users/ana", { name: "Ana", role: "STUDENT" });
  const answer = await ana.asks("join-room", { roomId: "mentor:cem" });
  refused(answer, "FORBIDDEN", "Failed to join room");
  assert.equal(ana.socket.connected, true);
});

story("who is suspended is cut and stays out until that ends", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  const cut = new Promise((resolve) => ana.socket.once("disconnect", resolve));
  await world.api("PUT", "/v1/users/ana", { ...ANA, status: "SUSPENDED" });
  assert.equal(await cut, "io server disconnect");
  await assert.rejects(Person.connect(world.server, "ana"), /Account suspended/);
  await world.api("PUT", "/v1/users/ana", ANA);
  await world.person("ana");
});

story("tokens issued before a revocation are refused, later ones are not", { on: DATABASES }, async (world) => {
  const earlier = { claims: { iat: Math.floor(Date.now() / 1000) } };
  const ana = await world.person("ana", earlier);
  const cut = new Promise((resolve) => ana.socket.once("disconnect", resolve));
  const { status, body } = await world.api("POST", "/v1/users/ana/revoke");
  assert.equal(status, 200);
  assert.equal(await cut, "io server disconnect");
  await assert.rejects(Person.connect(world.server, "ana", earlier), /Invalid token/);
  const noIat = token("ana", { iat: undefined });
  await assert.rejects(Person.connect(world.server, "ana", { auth: { token: noIat } }), /Invalid token/);
  const iat = Date.parse(body.tokensValidFrom) / 1000;
  await world.person("ana", { claims: { iat } });
  problem(await world.api("POST", "/v1/users/nobody/revoke"), 404, "NOT_FOUND");
});

story("connections that are cut may come back", {}, async (world) => {
  const ana = await world.person("ana");
  const cut = new Promise((resolve) => ana.socket.once("disconnect", resolve));
  assert.deepEqual((await world.api("DELETE", "/v1/users/ana/connections")).body, { id: "ana" });
  assert.equal(await cut, "io server disconnect");
  await world.person("ana");
});

story("who is here is listed", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  const tab = await world.person("ana");
  await ana.joins("algebra");
  await tab.joins("biology");
  await tab.settled();
  assert.deepEqual(await all(world, "/v1/presence", 1), [
    { userId: "ana", userName: "ana Name", connections: 2, rooms: 2 },
    { userId: "ben", userName: "ben Name", connections: 1, rooms: 0 },
  ]);
  const sockets = [ana, tab, ben].map((person) => ({ id: person.socket.id, userId: person.id }));
  const byId = (a, b) => (a.id < b.id ? -1 : 1);
  assert.deepEqual(await all(world, "/v1/connections", 2), sockets.sort(byId));
  ben.leaves();
  await eventually("ben is gone", async () => (await all(world, "/v1/connections", 50)).length === 2);
});

story("rooms and their messages are read in pages, in both directions", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  await ana.joins("biology");
  for (let n = 1; n <= 7; n++) await ana.asks("send-message", { roomId: "algebra", message: `${n}` });
  const [algebra, biology] = await all(world, "/v1/rooms", 1);
  assert.deepEqual([algebra.id, algebra.type, algebra.memberCount, algebra.lastSeq], ["algebra", "DIRECT", 1, 7]);
  assert.deepEqual([biology.id, biology.lastSeq], ["biology", 0]);

  const page = async (query) => {
    const { status, body } = await world.api("GET", `/v1/rooms/algebra/messages?${query}`);
    assert.equal(status, 200);
    return { ...body, seqs: body.items.map((message) => message.seq) };
  };
  assert.deepEqual((await page("")).seqs, [1, 2, 3, 4, 5, 6, 7]);
  const newest = await page("limit=3");
  assert.deepEqual([newest.seqs, newest.seq], [[5, 6, 7], 7]);
  const older = await page(`limit=3&cursor=${newest.next}`);
  assert.deepEqual(older.seqs, [2, 3, 4]);
  const oldest = await page(`limit=3&cursor=${older.next}`);
  assert.deepEqual([oldest.seqs, oldest.next], [[1], null]);
  const forward = await page("limit=3&after=3");
  assert.deepEqual(forward.seqs, [4, 5, 6]);
  assert.deepEqual((await page(`limit=3&cursor=${forward.next}`)).seqs, [7]);
  assert.deepEqual((await page("limit=3&around=4")).seqs, [3, 4, 5]);
  problem(await world.api("GET", "/v1/rooms/algebra/messages?before=3&after=2"), 400, "INVALID");
  problem(await world.api("GET", "/v1/rooms/nowhere/messages"), 404, "NOT_FOUND");
});

story("a request that is repeated under its key is done once", { on: DATABASES }, async (world) => {
  await world.api("PUT", "/v1/users/ana", ANA);
  const revoke = (idempotencyKey) => world.api("POST", "/v1/users/ana/revoke", undefined, { idempotencyKey });
  const first = await revoke("k1");
  const again = await revoke("k1");
  assert.deepEqual([again.status, again.body], [first.status, first.body]);
  assert.deepEqual([first, again].map((answer) => answer.headers.get("idempotency-replayed")), [null, "true"]);
  const audited = (await all(world, "/v1/audit", 50)).filter((entry) => entry.action === "user.revoke");
  assert.equal(audited.length, 1);

  const other = await world.api("POST", "/v1/users/ben/revoke", undefined, { idempotencyKey: "k1" });
  problem(other, 422, "IDEMPOTENCY_MISMATCH");
  // What was refused is not kept: it may be asked again.
  problem(await world.api("POST", "/v1/users/ben/revoke", undefined, { idempotencyKey: "k2" }), 404, "NOT_FOUND");
  await world.api("PUT", "/v1/users/ben", ANA);
  assert.equal((await world.api("POST", "/v1/users/ben/revoke", undefined, { idempotencyKey: "k2" })).status, 200);
  problem(await world.api("PUT", "/v1/users/ana", ANA, { idempotencyKey: "x".repeat(201) }), 400, "INVALID");
});

story("of many with the same key at once one is done, and all hear the same", { on: DATABASES }, async (world) => {
  const put = () => world.api("PUT", "/v1/users/ana", ANA, { idempotencyKey: "once" });
  const answers = await Promise.all(Array.from({ length: 8 }, put));
  for (const answer of answers) assert.deepEqual([answer.status, answer.body], [200, answers[0].body]);
  assert.equal((await all(world, "/v1/audit", 50)).length, 1);
});

story("what was acknowledged, and its key, outlive a power cut", { on: DATABASES }, async (world) => {
  const put = () => world.api("PUT", "/v1/users/ana", ANA, { idempotencyKey: "once" });
  const before = await put();
  await world.server.kill();
  await world.server.restart();
  const after = await put();
  assert.deepEqual(after.body, before.body);
  assert.equal(after.headers.get("idempotency-replayed"), "true");
});

story("the audit log names who did what, newest first", { on: DATABASES }, async (world) => {
  await world.api("PUT", "/v1/users/ana", ANA);
  await world.api("PUT", "/v1/users/ana", { ...ANA, role: "MENTOR" });
  const [newest, oldest] = await all(world, "/v1/audit", 1);
  assert.deepEqual([newest.actor, newest.action, newest.subject], ["api:stories", "user.put", "ana"]);
  assert.deepEqual(newest.details.role, { before: "STUDENT", after: "MENTOR" });
  assert.deepEqual(oldest.details.role, { before: null, after: "STUDENT" });
});

story("the audit log holds what was refused, counted, and is asked by user and action", {
  on: DATABASES,
  toml: `[[api_keys]]
name = "reader"
tenant = "default"
key = "ck_readsonly0123456789abcdefghijklmnopqrstu"
scopes = ["users:read"]`,
}, async (world) => {
  const audit = async (query) => {
    const { status, body } = await world.api("GET", `/v1/audit?${new URLSearchParams(query)}`);
    assert.equal(status, 200, JSON.stringify(body));
    return body.items.map(({ actor, action, subject, details }) => [actor, action, subject, details.reason ?? null]);
  };
  await world.api("PUT", "/v1/users/ana", ANA);
  await world.api("PUT", "/v1/users/mia", { name: "Mia", role: "PROGRAM_ADMIN" });
  const [ana, mia] = await world.people("ana", "mia");
  for (let n = 0; n < 5; n++) refused(await ana.asks("leaderboard-update"), "FORBIDDEN", "Unauthorized");
  assert.equal((await mia.asks("leaderboard-update")).ok, true);
  const key = "ck_readsonly0123456789abcdefghijklmnopqrstu";
  problem(await world.api("GET", "/v1/audit", undefined, { key }), 403, "FORBIDDEN");
  problem(await world.api("GET", "/v1/audit", undefined, { key: "ck_wrong" }), 401, "UNAUTHENTICATED");
  const denied = ["ana", "command.refused", "leaderboard-update", "FORBIDDEN"];
  await eventually("the refusals are noted", async () => (await audit({ action: "api.refused" })).length === 2);
  assert.deepEqual(await audit({ user: "ana" }), [denied, ["api:stories", "user.put", "ana", null]]);
  assert.deepEqual(await audit({ user: "ana", action: "command" }), [denied]);
  assert.deepEqual(await audit({ action: "command.refused" }), [denied]);
  assert.deepEqual(await audit({ user: "mia", action: "leaderboard.recompute" }), [["mia", "leaderboard.recompute", "", null]]);
  assert.deepEqual((await audit({ action: "api" })).sort(), [
    [" unknown key", "api.refused", "listAudit", "UNAUTHENTICATED"],
    ["api:reader", "api.refused", "listAudit", "FORBIDDEN"],
  ]);
  assert.deepEqual(await audit({ user: "api:reader", limit: 1 }), [["api:reader", "api.refused", "listAudit", "FORBIDDEN"]]);
  assert.deepEqual(await audit({ user: "nobody" }), []);
  assert.deepEqual(await audit({ action: "comm" }), []);
});

story("tokens that let nobody in are in the audit log, by whom they prove or claim to be", { on: DATABASES }, async (world) => {
  await world.api("PUT", "/v1/users/ana", { ...ANA, status: "SUSPENDED" });
  const wrong = token("ben", {}, { secret: "another secret that is long enough" });
  for (let n = 0; n < 3; n++) await assert.rejects(Person.connect(world.server, "ana"), /suspended/);
  await assert.rejects(Person.connect(world.server, "ben", { auth: { token: wrong } }), /Invalid token/);
  await assert.rejects(Person.connect(world.server, "ben", { auth: {} }), /No token/);
  await assert.rejects(Person.connect(world.server, "cem", { claims: { exp: 1_700_000_000, iat: 1_699_999_000 } }), /Invalid token/);
  const refusals = async () => {
    const { body } = await world.api("GET", "/v1/audit?action=auth");
    return body.items.map(({ actor, subject, details }) => [actor, subject, details.reason]).sort();
  };
  await eventually("they are noted", async () => (await refusals()).length === 4);
  assert.deepEqual(await refusals(), [
    [" unverified", "", "no_token"],
    [" unverified", "ben", "signature"],
    ["ana", "ana", "suspended"],
    ["cem", "cem", "expired"],
  ]);
  const everything = JSON.stringify((await world.api("GET", "/v1/audit")).body);
  assert.ok(!everything.includes(wrong.split(".")[2]));
});

story("the description needs no key, and every route in it is answered", {}, async (world) => {
  const { status, body, headers } = await world.api("GET", "/v1/openapi.json", undefined, { key: null });
  assert.deepEqual([status, headers.get("content-type"), body.openapi], [200, "application/json", "3.1.0"]);
  for (const [path, operations] of Object.entries(body.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const concrete = path.replaceAll(/\{.*?\}/g, "x");
      const answer = await world.api(method.toUpperCase(), concrete, undefined, { key: null });
      problem(answer, 401, "UNAUTHENTICATED");
      assert.ok(operation["x-scope"] && operation.summary);
    }
  }
});

story("with the database away everything is refused as something that passes", { on: DATABASES.slice(1) }, async (world) => {
  const { default: pg } = await import("pg");
  const url = new URL(world.server.databaseUrl);
  const name = url.pathname.slice(1);
  const admin = new pg.Client({ connectionString: process.env.CARILLON_TEST_POSTGRES });
  await admin.connect();
  await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS false`);
  await admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", [name]);
  const answer = await world.api("PUT", "/v1/users/ana", ANA);
  assert.deepEqual([answer.status, answer.body.code, answer.body.retryable], [503, "UNAVAILABLE", true]);
  await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS true`);
  await admin.end();
  await eventually("it works again", async () => (await world.api("PUT", "/v1/users/ana", ANA)).status === 200);
});

story("a backend notifies users, roles and everybody, each once", { on: DATABASES }, async (world) => {
  for (const [id, role] of [["ana", "STUDENT"], ["ben", "STUDENT"], ["mia", "MENTOR"]]) {
    await world.api("PUT", `/v1/users/${id}`, { name: id, role });
  }
  const notify = (more) => world.api("POST", "/v1/notifications", { type: "SYSTEM", title: "News", message: "Read this", ...more });
  const [ana, mia] = await world.people("ana", "mia");
  assert.deepEqual((await notify({ roles: ["STUDENT"], dedupeKey: "n1", actionUrl: "/news", priority: "high" })).body, { notified: 2 });
  const heard = await ana.hears("new-notification");
  assert.deepEqual([heard.title, heard.priority, heard.action_url, heard.is_read], ["News", "high", "/news", false]);
  assert.deepEqual((await notify({ tenant: true, dedupeKey: "n1" })).body, { notified: 1 });
  assert.equal((await mia.hears("new-notification")).title, "News");
  assert.deepEqual((await notify({ users: ["mia", "nobody"], title: "Two" })).body, { notified: 1 });
  assert.equal((await mia.hears("new-notification")).title, "Two");
  const ben = await world.person("ben");
  assert.equal((await ben.hears("new-notification")).title, "News");
  await silent("new-notification", ana);
  problem(await notify({}), 400, "INVALID");
  problem(await notify({ tenant: true, users: ["ana"] }), 400, "INVALID");
  problem(await notify({ tenant: true, actionUrl: "javascript:alert(1)" }), 400, "INVALID");
});

story("a backend looks into study groups, and puts people in and out", { on: DATABASES }, async (world) => {
  for (const id of ["ana", "ben"]) await world.api("PUT", `/v1/users/${id}`, { name: id, role: "STUDENT" });
  const [ana, ben] = await world.people("ana", "ben");
  const { group } = await ana.asks("study-group-create", { name: "Hearts", isPublic: false, maxMembers: 2 });
  const path = `/v1/study-groups/${group.id}`;
  assert.deepEqual((await all(world, "/v1/study-groups", 1)).map((of) => of.id), [group.id]);
  const added = await world.api("PUT", `${path}/members/ben`);
  assert.deepEqual(added.body, { groupId: group.id, userId: "ben", memberCount: 2 });
  assert.equal((await ben.hears("study-group-joined")).group.id, group.id);
  assert.equal((await ana.hears("study-group-member-joined", (e) => e.userId === "ben")).memberCount, 2);
  problem(await world.api("PUT", `${path}/members/ben`), 409, "ALREADY_MEMBER");
  ana.says("study-group-message", { groupId: group.id, message: "Hello" });
  assert.equal((await ben.hears("receive-message")).message, "Hello");
  assert.equal((await world.api("DELETE", `${path}/members/ana`)).body.memberCount, 1);
  assert.equal((await ben.hears("study-group-owner-changed")).ownerId, "ben");
  assert.deepEqual((await world.api("GET", path)).body.members, ["ben"]);
  await world.api("DELETE", `${path}/members/ben`);
  problem(await world.api("GET", path), 404, "NOT_FOUND");
});
