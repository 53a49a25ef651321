// Several nodes are one server, and Node servers may stand among them.
import assert from "node:assert/strict";
import { once } from "node:events";
import { io as connect } from "socket.io-client";
import { DATABASES, Person, eventually, pause, silent, within } from "./harness.mjs";
import { AdapterPeer, Redis, certify, cutsOff, together } from "./cluster.mjs";
import { FaultProxy } from "./faults.mjs";
import { enters } from "./raw.mjs";

const questions = [{ id: "q0", kind: "single_choice", text: "?", options: ["a", "b"], correct: 1 }];
const EXAM = { title: "Anatomy", durationMinutes: 10, attemptsAllowed: 1, questions };
const ALONE = { on: [DATABASES[0]], nodes: 1 };

together("a message reaches the room on every node, once, with the same number", { nodes: 3 }, async (cluster) => {
  const people = await Promise.all([0, 1, 2].map((node) => cluster.person(node, `p${node}`)));
  for (const person of people) await person.joins("algebra");
  for (const [at, person] of people.entries()) {
    const sent = await person.asks("send-message", { roomId: "algebra", message: `hello ${at}` });
    assert.equal(sent.ok, true);
    for (const other of people) {
      const heard = await other.hears("receive-message");
      assert.deepEqual([heard.message, heard.seq], [`hello ${at}`, sent.seq]);
    }
  }
  await silent("receive-message", ...people);
  people[0].says("typing-indicator", { roomId: "algebra", isTyping: true });
  assert.equal((await people[2].hears("typing-indicator")).userId, "p0");
});

together("who is here is known on every node", {}, async (cluster) => {
  const ana = await cluster.person(0, "ana");
  await ana.joins("algebra");
  const ben = await cluster.person(1, "ben");
  await ben.joins("algebra");
  assert.equal((await ben.hears("user-status-change", (e) => e.userId === "ana")).status, "online");
  assert.equal((await ana.hears("user-status-change", (e) => e.userId === "ben")).status, "online");
  for (const node of cluster.nodes) {
    const { body } = await node.api("GET", "/v1/presence");
    assert.deepEqual(body.items.map((user) => user.userId), ["ana", "ben"]);
    const sockets = await node.api("GET", "/v1/connections");
    assert.equal(sockets.body.items.length, 2);
    const stats = await (await fetch(`${node.url}/api/stats`)).json();
    assert.equal(stats.stats.activeConnections, 2);
  }
  // A second tab elsewhere keeps a user here.
  const tab = await cluster.person(1, "ana");
  ana.leaves();
  await pause(6000);
  assert.deepEqual(ben.unheard("user-status-change").filter((e) => e.status === "offline"), []);
  tab.leaves();
  const gone = await ben.hears("user-status-change", (e) => e.status === "offline", 8000);
  assert.equal(gone.userId, "ana");
});

together("a node that is killed takes its users offline, and nobody else", {}, async (cluster) => {
  const [ana, ben, cat] = [await cluster.person(0, "ana"), await cluster.person(1, "ben"), await cluster.person(1, "cat")];
  for (const person of [ana, ben, cat]) await person.joins("algebra");
  await cluster.nodes[0].kill();
  const gone = await ben.hears("user-status-change", (e) => e.status === "offline", 15_000);
  assert.equal(gone.userId, "ana");
  await silent("user-status-change", cat).catch(() => {});
  const { body } = await cluster.nodes[1].api("GET", "/v1/presence");
  assert.deepEqual(body.items.map((user) => user.userId), ["ben", "cat"]);
});

together("a node that is killed takes its users out of their exams, and they type no more", {}, async (cluster) => {
  assert.equal((await cluster.nodes[0].api("PUT", "/v1/exams/anatomy", EXAM)).status, 200);
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(1, "ben")];
  for (const person of [ana, ben]) {
    await person.joins("algebra");
    assert.equal((await person.asks("join-exam", { examId: "anatomy" })).ok, true);
  }
  await ben.hears("exam-joined");
  await eventually("both are counted", async () => {
    ben.says("join-exam", { examId: "anatomy" });
    return (await ben.hears("exam-joined")).participantCount === 2;
  });
  ana.says("typing-indicator", { roomId: "algebra", isTyping: true });
  assert.equal((await ben.hears("typing-indicator")).isTyping, true);
  await cluster.nodes[0].kill();
  assert.deepEqual(await ben.hears("participant-left-exam", () => true, 15_000), {
    examId: "anatomy", userId: "ana", userName: "ana Name", participantCount: 1,
  });
  assert.equal((await ben.hears("typing-indicator", () => true, 15_000)).isTyping, false);
});

together("what Redis did not carry is made up for when it is back", {}, async (cluster) => {
  const [first, second] = cluster.nodes;
  assert.equal((await first.api("PUT", "/v1/exams/anatomy", EXAM)).status, 200);
  const ben = await cluster.person(0, "ben");
  const [cat, dan] = [await cluster.person(1, "cat"), await cluster.person(1, "dan")];
  for (const person of [ben, dan]) await person.joins("algebra");
  ben.says("join-exam", { examId: "anatomy" });
  const older = await enters(first, "eve");
  older.raw.send('42["join-room",{"roomId":"algebra"}]');
  await older.raw.next('42["room-joined"');
  await eventually("everybody is known", async () => (await second.api("GET", "/v1/presence")).body.items.length === 4);
  await cluster.redis.kill();
  await eventually("that is noticed", async () => (await first.metric("carillon_redis_up")) === 0);
  ben.forget();
  // Somebody comes, somebody enters a room and an exam, somebody goes for good.
  const ana = await cluster.person(1, "ana");
  for (const person of [ana, cat]) await person.joins("algebra");
  assert.equal((await cat.asks("join-exam", { examId: "anatomy" })).ok, true);
  const cut = once(dan.socket, "disconnect");
  assert.equal((await first.api("DELETE", "/v1/users/dan/connections")).status, 200);
  const newer = await enters(second, "eve", { pid: older.pid });
  assert.equal(newer.sid, older.sid);
  await cluster.redis.launch();
  const online = [(await ben.hears("user-status-change", () => true, 15_000)), await ben.hears("user-status-change")];
  assert.deepEqual(online.map((one) => [one.userId, one.status]).sort(), [["ana", "online"], ["cat", "online"]]);
  assert.deepEqual(await ben.hears("participant-joined-exam"), {
    examId: "anatomy", userId: "cat", userName: "cat Name", participantCount: 2,
  });
  assert.deepEqual(await within(8_000, "Dan is cut", cut).then(([reason]) => reason), "io server disconnect");
  await older.raw.next("41");
  // Who came after that was said is not meant.
  const again = await cluster.person(1, "dan");
  await pause(3_000);
  assert.deepEqual([again.socket.connected, newer.raw.frames.includes("41")], [true, false]);
});

together("a session that two nodes are asked for at once goes on at one of them", { nodes: 3 }, async (cluster) => {
  const [first, ...others] = cluster.nodes;
  const sessions = await Promise.all(Array.from({ length: 40 }, (_, n) => enters(first, `ana${n}`)));
  await pause(300);
  const heirs = [];
  for (const [n, { raw, pid }] of sessions.entries()) {
    raw.close();
    await pause(30);
    heirs.push(await Promise.all(others.map((node) => enters(node, `ana${n}`, { pid }))));
  }
  await pause(1000);
  for (const [n, pair] of heirs.entries()) {
    const went = pair.filter(({ sid, raw }) => sid === sessions[n].sid && !raw.frames.includes("41"));
    assert.equal(went.length, 1, `${n}: ${JSON.stringify(pair.map(({ sid, raw }) => [sid, raw.wire]))}`);
  }
});

together("a session that went on at another node is counted there, on every node", { nodes: 3 }, async (cluster) => {
  const [first, second, third] = cluster.nodes;
  const ana = await enters(first, "ana");
  await eventually("she is known", async () => (await third.api("GET", "/v1/connections")).body.items.length === 1);
  await pause(300);
  await first.kill();
  const heir = await enters(second, "ana", { pid: ana.pid });
  assert.equal(heir.sid, ana.sid);
  const counts = () => Promise.all([second, third].map(async (node) => [
    (await (await fetch(`${node.url}/api/stats`)).json()).stats.activeConnections,
    (await node.api("GET", "/v1/connections")).body.items.length,
  ]));
  const hasNoticed = (node) => node.log.some((line) => line.includes("a node is gone"));
  await eventually("the loss is noticed", () => [second, third].every(hasNoticed), 20_000);
  assert.deepEqual(await counts(), [[1, 1], [1, 1]]);
});

together("what is done once is done by one node, and by another when that is gone", { nodes: 3 }, async (cluster) => {
  const first = await cluster.holder();
  await first.kill();
  const began = Date.now();
  const second = await cluster.holder();
  assert.ok(Date.now() - began < 6_000, "the lease has run out and is taken");
  assert.notEqual(second, first);
  // It says that it goes.
  assert.equal((await second.terminate()).code, 0);
  const gone = Date.now();
  const third = await cluster.holder();
  assert.ok(Date.now() - gone < 2_500, "the lease is free at once");
  assert.ok(![first, second].includes(third));
  const fences = [first, second, third].map(({ log }) => {
    const held = log.map((line) => JSON.parse(line)).filter(({ message }) => message === "holds the lease periodic");
    return held.map((entry) => entry["lease.fence"]);
  });
  assert.deepEqual(fences, [[1], [2], [3]]);
});

together("what is done to a user is done on every node", {}, async (cluster) => {
  const ana = await cluster.person(0, "ana");
  const elsewhere = await cluster.person(1, "ana");
  const cut = [ana, elsewhere].map((person) => once(person.socket, "disconnect"));
  assert.equal((await cluster.nodes[0].api("DELETE", "/v1/users/ana/connections")).status, 200);
  for (const [reason] of await within(1000, "both are cut", Promise.all(cut))) {
    assert.equal(reason, "io server disconnect");
  }
});

together("who is put out of a group, or whose tokens are revoked, is so on every node", {}, async (cluster) => {
  const ana = await cluster.person(0, "ana");
  const [ben, cat] = [await cluster.person(1, "ben"), await cluster.person(1, "cat")];
  const { group } = await ana.asks("study-group-create", { name: "Evenings" });
  const groupId = group.id;
  const says = (person, message) => person.asks("study-group-message", { groupId, message });
  for (const person of [ben, cat]) assert.equal((await person.asks("study-group-join", { groupId })).ok, true);
  assert.equal((await says(ana, "for all")).ok, true);
  for (const person of [ben, cat]) await person.hears("receive-message", (e) => e.message === "for all");
  assert.equal((await ana.asks("study-group-kick", { groupId, userId: "ben" })).ok, true);
  assert.equal((await says(ana, "without Ben")).ok, true);
  await within(1000, "Cat hears it", cat.hears("receive-message", (e) => e.message === "without Ben"));
  await silent("receive-message", ben);
  assert.equal((await says(ben, "still here?")).ok, false);
  const cut = once(ben.socket, "disconnect");
  assert.equal((await cluster.nodes[0].api("POST", "/v1/users/ben/revoke")).status, 200);
  await within(1000, "Ben is cut", cut);
  assert.equal((await says(cat, "still here")).ok, true);
});

together("a Redis with TLS and a password is one like any other", { nodes: 0 }, async (cluster) => {
  const redis = cluster.keep(await Redis.start({ isSecret: true, password: "a secret" }));
  const trusting = { REDIS_URL: redis.url, CARILLON_REDIS__CA_FILE: redis.files.ca };
  Object.assign(cluster.options.env, trusting);
  await cluster.add();
  await cluster.add();
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(1, "ben")];
  for (const person of [ana, ben]) await person.joins("algebra");
  ana.says("typing-indicator", { roomId: "algebra", isTyping: true });
  await ben.hears("typing-indicator", (e) => e.userId === "ana");
  // Its certificate may come from elsewhere, too: where the system's roots are.
  delete cluster.options.env.CARILLON_REDIS__CA_FILE;
  cluster.options.env.SSL_CERT_FILE = redis.files.ca;
  await cluster.add();
  // Who trusts somebody else goes on alone, and says why.
  const { ca } = certify(cluster.nodes[0].directory);
  cluster.isRedisAway = true;
  Object.assign(cluster.options.env, { CARILLON_REDIS__CA_FILE: ca });
  const alone = await cluster.add();
  await eventually("it says so", () => alone.log.some((line) => line.includes("Redis cannot be reached")));
  assert.equal(await alone.metric("carillon_redis_up"), 0);
  const cat = await cluster.person(3, "cat");
  assert.equal((await cat.asks("heartbeat")).ok, true);
});

together("messages lost by Redis are found in the outbox", {}, async (cluster) => {
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(1, "ben")];
  for (const person of [ana, ben]) await person.joins("algebra");
  await cluster.redis.kill();
  const started = Date.now();
  for (let count = 0; count < 20; count += 1) {
    assert.equal((await ana.asks("send-message", { roomId: "algebra", message: `${count}` })).ok, true);
  }
  for (let count = 0; count < 20; count += 1) {
    assert.equal((await ben.hears("receive-message")).message, `${count}`);
    assert.equal((await ana.hears("receive-message")).message, `${count}`);
  }
  for (const node of cluster.nodes) {
    const ready = await fetch(`${node.url}/readyz`);
    assert.deepEqual([ready.status, await ready.json()], [200, { status: "ready", detail: "degraded" }]);
  }
  await cluster.redis.launch();
  await eventually("both are back", async () => {
    const up = await Promise.all(cluster.nodes.map((node) => node.metric("carillon_redis_up")));
    return up.every((one) => one === 1);
  });
  ana.says("typing-indicator", { roomId: "algebra", isTyping: true });
  await ben.hears("typing-indicator", (e) => e.userId === "ana");
  await pause(Math.max(0, started + 12_000 - Date.now()));
  await silent("receive-message", ana, ben);
  // Nobody went offline for it.
  for (const person of [ana, ben]) {
    assert.deepEqual(person.unheard("user-status-change").filter((e) => e.status === "offline"), []);
  }
  for (const node of cluster.nodes) {
    const away = node.log.filter((line) => line.includes("Redis is away"));
    assert.equal(away.length, 1, away.join("\n"));
  }
});

together("who moves to another node while Redis is away is not shown offline", {}, async (cluster) => {
  const [ben, cat] = [await cluster.person(0, "ben"), await cluster.person(1, "cat")];
  const ana = await cluster.person(0, "ana");
  for (const person of [ana, ben, cat]) await person.joins("algebra");
  await eventually("Cat's node knows of Ana", async () =>
    (await cluster.nodes[1].api("GET", "/v1/presence")).body.items.length === 3);
  await cluster.redis.kill();
  ana.socket.io.engine.close();
  const moved = await cluster.person(1, "ana");
  // Past her grace, and a lease past the return of Redis.
  await pause(7_000);
  await cluster.redis.launch();
  await eventually("both are back", async () => {
    const up = await Promise.all(cluster.nodes.map((node) => node.metric("carillon_redis_up")));
    return up.every((one) => one === 1);
  });
  await pause(12_000);
  for (const person of [ben, cat]) {
    assert.deepEqual(person.unheard("user-status-change").filter((e) => e.status === "offline"), []);
  }
  moved.leaves();
  assert.equal((await ben.hears("user-status-change", (e) => e.status === "offline", 8000)).userId, "ana");
});

together("who begins an exam on several nodes at once is counted on all of them", { nodes: 0 }, async (cluster) => {
  const slow = cluster.keep(await FaultProxy.before(cluster.redis.port));
  slow.latencyMs = 100;
  cluster.options.env.REDIS_URL = `redis://127.0.0.1:${slow.port}`;
  for (let count = 0; count < 3; count += 1) await cluster.add();
  assert.equal((await cluster.nodes[0].api("PUT", "/v1/exams/anatomy", EXAM)).status, 200);
  const students = await Promise.all(Array.from({ length: 12 }, (_, at) => cluster.person(at % 3, `s${at}`)));
  await eventually("every node knows of everybody", async () => {
    const present = await Promise.all(cluster.nodes.map((node) => node.api("GET", "/v1/presence")));
    return present.every(({ body }) => body.items.length === students.length);
  });
  const counts = students.map(() => 0);
  for (const [at, { socket }] of students.entries()) {
    for (const name of ["exam-joined", "participant-joined-exam"]) {
      socket.on(name, ({ participantCount }) => { counts[at] = participantCount; });
    }
  }
  for (const student of students) student.says("join-exam", { examId: "anatomy" });
  await eventually("the last count everybody has heard is all", () => counts.every((count) => count === 12));
});

together("nothing that comes from Redis does harm", ALONE, async (cluster) => {
  const ana = await cluster.person(0, "ana");
  await ana.joins("algebra");
  const client = await cluster.redis.client();
  for (const channel of ["socket.io#/#", "socket.io#/#algebra#", "socket.io-request#/#", "socket.io-response#/#", "socket.io-carillon#"]) {
    for (const payload of ["", "{", "{}", "[]", "\x93", "\xdd\xff\xff\xff\xff", "null", '{"type":99}', '{"type":5}', "x".repeat(100_000)]) {
      await client.publish(channel, Buffer.from(payload, "latin1"));
    }
  }
  await client.publish("socket.io#/#", Buffer.alloc(20_000_000, 0x91));
  await eventually("all of it is counted", async () => (await cluster.nodes[0].metric("carillon_redis_malformed_total")) >= 40);
  await client.close();
  assert.equal((await ana.asks("send-message", { roomId: "algebra", message: "still here" })).ok, true);
  assert.equal((await ana.hears("receive-message")).message, "still here");
  const told = cluster.nodes[0].log.filter((line) => line.includes("cannot be read"));
  assert.equal(told.length, 1);
});

together("a server starts without its Redis and finds it later", { ...ALONE }, async (cluster) => {
  await cluster.redis.kill();
  cluster.isRedisAway = true;
  const node = await cluster.add();
  const ana = await Person.connect(node, "ana").catch((error) => error);
  assert.ok(ana instanceof Person, `${ana}`);
  assert.equal((await ana.asks("heartbeat")).ok, true);
  ana.leaves();
  await cluster.redis.launch();
  await eventually("it is found", async () => (await node.metric("carillon_redis_up")) === 1);
});

together("a Redis that hangs holds up nothing here", ALONE, async (cluster) => {
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(0, "ben")];
  for (const person of [ana, ben]) await person.joins("algebra");
  cluster.redis.freeze();
  for (let count = 0; count < 50; count += 1) {
    assert.equal((await ana.asks("send-message", { roomId: "algebra", message: `${count}` })).ok, true);
    await ben.hears("receive-message");
    if (count % 10 === 0) await pause(700);
  }
  cluster.redis.thaw();
  await eventually("it is heard again", async () => (await cluster.nodes[0].metric("carillon_redis_up")) === 1);
});

together("a Redis that takes nothing from a node is as good as away, and is so once in the log", ALONE, async (cluster) => {
  const [node] = cluster.nodes;
  const admin = await cluster.redis.client();
  const ready = async () => (await (await fetch(`${node.url}/readyz`)).json()).detail;
  const lines = (text) => node.log.filter((line) => line.includes(text)).length;
  try {
    await eventually("all is well", async () => (await ready()) !== "degraded");
    await admin.sendCommand(["ACL", "SETUSER", "default", "-publish", "-ping"]);
    await eventually("that is noticed", async () => (await ready()) === "degraded");
    const ana = await cluster.person(0, "ana");
    await ana.joins("algebra");
    for (let count = 0; count < 10; count += 1) {
      assert.equal((await ana.asks("send-message", { roomId: "algebra", message: `${count}` })).ok, true);
      await ana.hears("receive-message");
      await pause(200);
    }
    assert.deepEqual([await ready(), lines("Redis refuses"), lines("Redis is there")], ["degraded", 1, 1]);
    await admin.sendCommand(["ACL", "SETUSER", "default", "+publish", "+ping"]);
    await eventually("it is taken again", async () => (await ready()) !== "degraded");
  } finally {
    await admin.quit();
  }
});

// Among Node servers.

together("Node servers and emitters speak to everybody here", ALONE, async (cluster) => {
  const { io } = await cluster.peer();
  const emitter = await cluster.emitter();
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(0, "ben", { path: "/api" })];
  await ana.joins("algebra");
  io.emit("news", { everybody: true });
  emitter.emit("news", { everybody: 2 });
  for (const person of [ana, ben]) {
    assert.deepEqual([await person.hears("news"), await person.hears("news")], [{ everybody: true }, { everybody: 2 }]);
  }
  io.to("algebra").emit("receive-message", { room_id: "algebra", message: "from Node" });
  assert.equal((await ana.hears("receive-message")).message, "from Node");
  io.to("user:ben").emit("new-notification", { title: "for Ben" });
  assert.equal((await ben.hears("new-notification")).title, "for Ben");
  // One socket that is in several rooms gets one copy; exceptions hold.
  io.to(["algebra", "user:ana", ana.socket.id]).emit("once", {});
  await ana.hears("once");
  io.except("algebra").emit("others", {});
  await ben.hears("others");
  io.to(ana.socket.id).emit("bytes", { at: new Date(0) }, Buffer.of(1, 2, 3));
  await silent("once", ana, ben);
  await silent("others", ana);
  const heard = await new Promise((resolve) => {
    ana.socket.once("bytes", (...args) => resolve(args));
    io.to(ana.socket.id).emit("bytes", { at: new Date(0) }, Buffer.of(1, 2, 3));
  });
  assert.deepEqual(heard, [{ at: "1970-01-01T00:00:00.000Z" }, Buffer.of(1, 2, 3)]);
});

together("Node servers ask, and are answered", ALONE, async (cluster) => {
  const { io } = await cluster.peer();
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(0, "ben")];
  await ana.joins("algebra");
  const [found, ...rest] = await within(4500, "fetchSockets", io.in("algebra").fetchSockets());
  assert.deepEqual(rest, []);
  assert.equal(found.id, ana.socket.id);
  assert.ok(found.rooms.has("algebra") && found.rooms.has("user:ana"));
  assert.deepEqual(found.data, { userId: "ana", userName: "ana Name", role: "STUDENT" });
  assert.deepEqual([found.handshake.headers, found.handshake.auth], [{}, {}]);
  assert.equal((await within(4500, "all of them", io.fetchSockets())).length, 2);
  const rooms = await within(4500, "allRooms", io.of("/").adapter.allRooms());
  for (const room of ["algebra", "user:ana", "user:ben", ana.socket.id]) assert.ok(rooms.has(room), room);
  for (const path of ["/chat", "/exam"]) {
    assert.deepEqual(await within(4500, path, io.of(path).fetchSockets()), []);
  }
  // Joining from outside, and leaving.
  io.in("user:ben").socketsJoin("algebra");
  await eventually("Ben is in the room", async () => (await io.in("algebra").fetchSockets()).length === 2);
  await ana.asks("send-message", { roomId: "algebra", message: "hello" });
  assert.equal((await ben.hears("receive-message")).message, "hello");
  io.in("user:ben").socketsLeave("algebra");
  await eventually("Ben is out", async () => (await io.in("algebra").fetchSockets()).length === 1);
  // Who was taken out does not come back to it by losing the link.
  const dan = await cluster.person(0, "dan", { reconnection: true, reconnectionDelay: 100 });
  await dan.joins("algebra");
  io.in("user:dan").socketsLeave("algebra");
  await eventually("Dan is out", async () => (await io.in("algebra").fetchSockets()).length === 1);
  await pause(300);
  const back = once(dan.socket, "connect");
  await cutsOff(dan);
  await within(5000, "Dan is back", back);
  assert.equal(dan.socket.recovered, true);
  await pause(1500);
  assert.equal((await io.in("algebra").fetchSockets()).length, 1);
  dan.leaves();
  // A room that is not set is nobody's, and what is said beside it holds.
  assert.deepEqual(await within(4500, "nobody", io.in(undefined).fetchSockets()), []);
  io.to(["algebra", undefined, 1.5]).except(null).emit("greeting", "hello");
  await ana.hears("greeting");
  await eventually("Dan is gone", async () => (await io.fetchSockets()).length === 2);
  // Clients answer.
  ana.socket.on("question", (what, answer) => answer({ was: what }));
  ben.socket.on("question", (what, answer) => answer({ was: what }));
  const answers = await io.timeout(3000).emitWithAck("question", "six by nine");
  assert.deepEqual(answers, [{ was: "six by nine" }, { was: "six by nine" }]);
  // An answer without a value is one, and times come as texts.
  ana.socket.on("when", (at, nothing, answer) => answer());
  ben.socket.on("when", (at, nothing, answer) => answer({ at, nothing }));
  const told = await io.timeout(3000).emitWithAck("when", new Date(0), undefined);
  assert.deepEqual(new Set(told), new Set([null, { at: "1970-01-01T00:00:00.000Z", nothing: null }]));
  assert.deepEqual(await within(4500, "serverSideEmit", io.serverSideEmitWithAck("ping", 1)), [null]);
  const gone = once(ben.socket, "disconnect");
  io.in("user:ben").disconnectSockets(true);
  assert.deepEqual(await gone, ["io server disconnect", undefined].slice(0, (await gone).length));
});

together("whoever has a socket answers a server of before version 8", {}, async (cluster) => {
  const [ana] = [await cluster.person(0, "ana"), await cluster.person(1, "ben")];
  const client = await cluster.redis.client();
  const answers = [];
  const listener = await client.duplicate().connect();
  for (const one of [client, listener]) cluster.keep({ dispose: () => one.destroy() });
  await listener.subscribe("socket.io-response#/#", (answer) => answers.push(JSON.parse(answer)));
  const ask = (request) => client.publish("socket.io-request#/#", JSON.stringify({ requestId: "r", sid: ana.socket.id, ...request }));
  await ask({ type: 2, room: "algebra" });
  await eventually("it is answered", () => answers.length > 0);
  await ask({ type: 3, room: "algebra" });
  await eventually("this, too", () => answers.length > 1);
  const gone = once(ana.socket, "disconnect");
  await ask({ type: 4, close: true });
  await within(2000, "Ana is cut", gone);
  await pause(500);
  assert.deepEqual(answers, Array(3).fill({ requestId: "r" }));
});

together("clients of Node servers hear what happens here", { ...ALONE, on: [DATABASES[0]] }, async (cluster) => {
  const peer = await cluster.peer();
  peer.io.on("connection", (socket) => socket.join(["algebra", "user:zoe"]));
  const zoe = connect(peer.url, { transports: ["websocket"], forceNew: true });
  cluster.keep({ dispose: () => zoe.disconnect() });
  await once(zoe, "connect");
  const heard = [];
  zoe.onAny((name, payload) => heard.push([name, payload]));
  const ana = await cluster.person(0, "ana");
  await ana.joins("algebra");
  const sent = await ana.asks("send-message", { roomId: "algebra", message: "from here" });
  await eventually("it is heard there", () => heard.some(([name]) => name === "receive-message"));
  const [, message] = heard.find(([name]) => name === "receive-message");
  assert.deepEqual([message.message, message.seq, message.id], ["from here", sent.seq, sent.id]);
  ana.says("typing-indicator", { roomId: "algebra", isTyping: true });
  await eventually("typing, too", () => heard.some(([name]) => name === "typing-indicator"));
});

together("Node servers are asked, and answer", { on: [DATABASES[0]], nodes: 0 }, async (cluster) => {
  const { io, url } = await cluster.peer();
  io.on("connection", (socket) => socket.join("algebra"));
  io.on("ping", (value, answer) => answer({ pong: value }));
  const zoe = connect(url, { transports: ["websocket"], forceNew: true });
  cluster.keep({ dispose: () => zoe.disconnect() });
  await once(zoe, "connect");
  const peer = cluster.keep(await AdapterPeer.start(cluster.redis));
  const [found, ...rest] = await peer.asks("fetch", "algebra");
  assert.deepEqual([found.id, found.rooms, rest], [zoe.id, [zoe.id, "algebra"], []]);
  assert.deepEqual((await peer.asks("rooms")).sort(), [zoe.id, "algebra"].sort());
  assert.deepEqual(await peer.asks("server-side", null, ["ping", 7]), [{ pong: 7 }]);
  zoe.on("question", (what, answer) => answer({ was: what }));
  assert.deepEqual(await peer.asks("ask", "algebra", ["question", { deep: [1, null, 2.5, "ü"] }]), [{ was: { deep: [1, null, 2.5, "ü"] } }]);
  const heard = new Promise((resolve) => zoe.once("news", (...args) => resolve(args)));
  assert.equal(await peer.asks("emit", "algebra", ["news", { a: 1 }, "two"]), "ok");
  assert.deepEqual(await heard, [{ a: 1 }, "two"]);
  await peer.asks("join", "algebra", "geometry");
  await eventually("joined", async () => (await io.in("geometry").fetchSockets()).length === 1);
  await peer.asks("leave", "algebra", "geometry");
  await eventually("left", async () => (await io.in("geometry").fetchSockets()).length === 0);
  // And the other way round: nobody waits for us.
  assert.deepEqual(await within(4500, "an answer", io.serverSideEmitWithAck("ping", 8)), [8]);
  const gone = once(zoe, "disconnect");
  await peer.asks("disconnect", "algebra");
  await within(2000, "Zoe is cut", gone);
});
