// Who loses the connection goes on as the same socket, with everything that was missed.
import assert from "node:assert/strict";
import { once } from "node:events";
import { DATABASES, Person, POSTGRES, Server, eventually, pause, silent, story, token, within } from "./harness.mjs";
import { cutsOff, together } from "./cluster.mjs";
import { FaultProxy } from "./faults.mjs";
import { Raw, enters } from "./raw.mjs";

const COMES_BACK = { reconnection: true, reconnectionDelay: 100, reconnectionDelayMax: 300 };
const POLLING = { ...COMES_BACK, transports: ["polling"] };

const says = (person, message) => person.asks("send-message", { roomId: "algebra", message });
const told = (person) => person.unheard("receive-message").map((message) => message.message);

for (const options of [COMES_BACK, POLLING]) {
  const how = options.transports?.[0] ?? "websocket";
  story(`a client goes on as the same socket over ${how}`, { on: DATABASES }, async (world) => {
    const ana = await world.person("ana", options);
    const ben = await world.person("ben");
    for (const person of [ana, ben]) await person.joins("algebra");
    const { id } = ana.socket;
    await says(ben, "before");
    await ana.hears("receive-message");
    for (let round = 0; round < 3; round += 1) {
      const back = once(ana.socket, "connect");
      ana.forget();
      await cutsOff(ana);
      for (const message of ["one", "two", "three"]) await says(ben, message);
      await within(5000, "Ana is back", back);
      assert.deepEqual([ana.socket.recovered, ana.socket.id], [true, id]);
      await says(ben, "live");
      await eventually("all is heard", () => told(ana).length >= 4);
      assert.deepEqual(told(ana), ["one", "two", "three", "live"]);
      assert.equal((await says(ana, "still in the room")).ok, true);
      assert.deepEqual(ana.unheard("carillon:resync"), []);
      await ana.hears("receive-message", (e) => e.message === "still in the room");
    }
  });
}

story("who goes on is shown the room anew, and hears nothing twice for it", {}, async (world) => {
  const ana = await world.person("ana", COMES_BACK);
  const ben = await world.person("ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  await says(ben, "before");
  await ana.hears("receive-message");
  for (const joinsAgain of [false, true]) {
    await pause(300);
    ana.forget();
    const back = once(ana.socket, "connect");
    await cutsOff(ana);
    await says(ben, "missed");
    await within(5000, "Ana is back", back);
    assert.equal(ana.socket.recovered, true);
    if (joinsAgain) await ana.joins("algebra");
    else assert.equal((await ana.hears("room-joined")).messages.at(-1).message, "missed");
    await pause(1500);
    await says(ben, "live");
    await ana.hears("receive-message", (e) => e.message === "live");
    assert.deepEqual(told(ana), ["missed"]);
    assert.deepEqual(ana.unheard("room-joined"), []);
  }
});

story("who leaves a room right after going on is out of it, and stays out", {}, async (world) => {
  const ana = await world.person("ana", COMES_BACK);
  const ben = await world.person("ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  const loses = async () => {
    const back = once(ana.socket, "connect");
    await cutsOff(ana);
    await says(ben, "missed");
    await within(5000, "Ana is back", back);
    assert.equal(ana.socket.recovered, true);
  };
  await says(ben, "before");
  await ana.hears("receive-message");
  await pause(300);
  await loses();
  assert.equal((await ana.asks("leave-room", { roomId: "algebra" })).ok, true);
  await ana.hears("room-left");
  for (const person of [ana, ben]) person.forget();
  await pause(1500);
  assert.deepEqual([ana.unheard("room-joined"), ben.unheard("user-joined-room")], [[], []]);
  await loses();
  await pause(1500);
  assert.deepEqual([told(ana), ana.unheard("room-joined")], [[], []]);
});

story("who goes on is not put into what a lost page of theirs was in", {
  env: { CARILLON_SERVER__PING_INTERVAL: "1s", CARILLON_SERVER__PING_TIMEOUT: "2s" },
}, async (world) => {
  const way = await FaultProxy.before(Number(new URL(world.server.url).port));
  const page = await Person.connect(way, "ana");
  try {
    await page.joins("algebra");
    await pause(300);
    way.hole();
    const ana = await world.person("ana", COMES_BACK);
    await ana.joins("algebra");
    assert.equal((await ana.asks("leave-room", { roomId: "algebra" })).ok, true);
    ana.forget();
    const back = once(ana.socket, "connect");
    await cutsOff(ana);
    await within(5000, "Ana is back", back);
    assert.equal(ana.socket.recovered, true);
    await eventually("the other link is noticed to be broken", async () =>
      (await world.server.metric("carillon_connections")) === 1);
    await pause(1500);
    assert.deepEqual(ana.unheard("room-joined"), []);
  } finally {
    page.leaves();
    way.dispose();
  }
});

story("who goes on in a room where nothing was said is not shown it", {}, async (world) => {
  const ana = await world.person("ana", COMES_BACK);
  await ana.joins("algebra");
  await pause(300);
  ana.forget();
  const back = once(ana.socket, "connect");
  await cutsOff(ana);
  await within(5000, "Ana is back", back);
  assert.equal(ana.socket.recovered, true);
  const ben = await world.person("ben");
  await ben.joins("algebra");
  // Longer than until it would be shown.
  await pause(1500);
  await ana.settled();
  assert.deepEqual(ana.unheard("room-joined"), []);
  await says(ben, "live");
  await ana.hears("receive-message", (e) => e.message === "live");
});

story("who goes on is shown the room though the database hangs just then", { on: POSTGRES }, async (world) => {
  const url = new URL(world.server.databaseUrl);
  const way = await FaultProxy.before(Number(url.port));
  url.port = way.port;
  const server = await Server.start({ databaseUrl: url.href });
  try {
    const ana = await Person.connect(server, "ana", COMES_BACK);
    const ben = await Person.connect(server, "ben");
    for (const person of [ana, ben]) await person.joins("algebra");
    await pause(300);
    ana.forget();
    const back = once(ana.socket, "connect");
    await cutsOff(ana);
    await says(ben, "missed");
    await within(5000, "Ana is back", back);
    assert.equal(ana.socket.recovered, true);
    // It is shown a second after that.
    await pause(500);
    way.hole();
    await pause(3000);
    way.fill();
    await ana.hears("room-joined", (e) => e.roomId === "algebra", 10_000);
    for (const person of [ana, ben]) person.leaves();
  } finally {
    await server.dispose();
    way.dispose();
  }
});

story("a client that has heard nothing yet goes on, too", {}, async (world) => {
  const ana = await world.person("ana", COMES_BACK);
  const { id } = ana.socket;
  await pause(300);
  const back = once(ana.socket, "connect");
  await cutsOff(ana);
  await within(5000, "Ana is back", back);
  assert.deepEqual([ana.socket.recovered, ana.socket.id], [true, id]);
});

story("a server that is killed is gone on with", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana", COMES_BACK);
  const ben = await world.person("ben", COMES_BACK);
  await ben.joins("algebra");
  // What is acknowledged is kept, and be it for a moment.
  await ana.joins("algebra");
  const { id } = ana.socket;
  const back = [ana, ben].map((person) => once(person.socket, "connect"));
  await world.server.kill();
  await world.server.restart();
  await within(8000, "both are back", Promise.all(back));
  assert.deepEqual([ana.socket.recovered, ana.socket.id], [true, id]);
  await says(ben, "after");
  assert.equal((await ana.hears("receive-message", (e) => e.message === "after")).message, "after");
  await silent("receive-message", ana);
});

together("a client of a node that is killed goes on at another one, again and again", { nodes: 3 }, async (cluster) => {
  // A way that leads to whoever is there.
  const way = cluster.keep(await FaultProxy.before(cluster.nodes[0].port));
  const ana = await Person.connect(way, "ana", COMES_BACK);
  cluster.keep({ dispose: () => ana.leaves() });
  const ben = await cluster.person(2, "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  await says(ben, "before");
  await ana.hears("receive-message");
  const { id } = ana.socket;
  for (const [from, next] of [[0, 1], [1, 2]]) {
    ana.forget();
    const back = once(ana.socket, "connect");
    way.target = cluster.nodes[next].port;
    await cluster.nodes[from].kill();
    for (const message of ["one", "two"]) await says(ben, message);
    await within(8000, "Ana is back", back);
    assert.deepEqual([ana.socket.recovered, ana.socket.id], [true, id]);
    await says(ben, "live");
    await eventually("all is heard", () => told(ana).length >= 3);
    assert.deepEqual(told(ana), ["one", "two", "live"]);
  }
});

story("a session is one user's, goes to one heir, and cannot be guessed", {}, async ({ server }) => {
  const ana = await enters(server, "ana");
  assert.match(ana.pid, /^[\w-]{20}$/);
  assert.notEqual(ana.pid, ana.sid);
  await pause(300);
  const eve = await enters(server, "eve", { pid: ana.pid });
  assert.notEqual(eve.pid, ana.pid);
  assert.notEqual(eve.sid, ana.sid);
  assert.match(await eve.raw.next("42"), /^42\["carillon:resync",\{"reason":"unknown"\}\]$/);
  for (const auth of [{ pid: ana.sid }, { pid: 7 }, { pid: "" }, { pid: ana.pid, offset: "x" }, { pid: ana.pid, offset: "999999" }, { pid: ana.pid, offset: 3 }].slice(0, 5)) {
    const other = await enters(server, "ana", auth);
    assert.notEqual(other.sid, ana.sid, JSON.stringify(auth));
    other.raw.close();
  }
  // The older socket is closed first.
  const heir = await enters(server, "ana", { pid: ana.pid });
  assert.deepEqual([heir.sid, heir.pid], [ana.sid, ana.pid]);
  assert.equal(await ana.raw.next("41"), "41");
  // Two at once: one of them goes on.
  const both = await Promise.all([0, 1].map(() => enters(server, "ana", { pid: ana.pid })));
  assert.equal(both.filter(({ sid }) => sid === ana.sid).length >= 1, true);
});

story("who has closed the socket, or was away too long, starts anew and is told", { env: { CARILLON_RECOVERY__WINDOW: "1s" } }, async ({ server }) => {
  const ana = await enters(server, "ana");
  await pause(300);
  ana.raw.send("41");
  await pause(300);
  const again = await enters(server, "ana", { pid: ana.pid });
  assert.notEqual(again.sid, ana.sid);
  assert.match(await again.raw.next("42"), /"unknown"/);
  again.raw.close();
  await pause(1800);
  const late = await enters(server, "ana", { pid: again.pid });
  assert.notEqual(late.sid, again.sid);
  assert.match(await late.raw.next("42"), /"too_old"/);
});

story("who missed more than can be sent at once starts anew and is told", { env: { CARILLON_LIMITS__UNSENT_BYTES: "65536" } }, async (world) => {
  const way = await FaultProxy.before(Number(new URL(world.server.url).port));
  const ana = await Person.connect(way, "ana", COMES_BACK);
  try {
    const ben = await world.person("ben");
    for (const person of [ana, ben]) await person.joins("algebra");
    await says(ben, "before");
    await ana.hears("receive-message");
    ana.forget();
    way.refuse();
    for (let n = 0; n < 12; n += 1) await says(ben, "y".repeat(3_500));
    way.accept();
    assert.equal((await ana.hears("carillon:resync")).reason, "unknown");
    assert.equal((await ana.hears("room-joined")).messages.at(-1).seq, 13);
    await says(ben, "live");
    assert.equal((await ana.hears("receive-message")).message, "live");
    assert.equal(ana.socket.recovered, false);
  } finally {
    ana.leaves();
    way.dispose();
  }
});

story("who was put out of a room meanwhile is not in it any more", {}, async (world) => {
  const ana = await world.person("ana");
  const { group } = await ana.asks("study-group-create", { name: "Evenings" });
  const groupId = group.id;
  const ben = await world.person("ben", COMES_BACK);
  await ben.asks("study-group-join", { groupId });
  await ana.asks("study-group-message", { groupId, message: "for both" });
  await ben.hears("receive-message");
  await pause(300);
  const back = once(ben.socket, "connect");
  ben.forget();
  await cutsOff(ben);
  await ana.asks("study-group-message", { groupId, message: "still for both" });
  const kicked = await ana.asks("study-group-kick", { groupId, userId: "ben" });
  assert.equal(kicked.ok, true);
  await ana.asks("study-group-message", { groupId, message: "not for Ben" });
  await within(5000, "Ben is back", back);
  assert.equal(ben.socket.recovered, true);
  await ben.settled();
  assert.deepEqual(told(ben), ["still for both"]);
});

story("switched off, the handshake carries nothing but the id", { env: { CARILLON_RECOVERY__ENABLED: "false" } }, async (world) => {
  const raw = await Raw.open(world.server);
  raw.send(`40${JSON.stringify({ token: token("ana"), pid: "x", offset: "1" })}`);
  assert.match(await raw.next("40"), /^40\{"sid":"[\w-]{20}"\}$/);
  const ben = await world.person("ben");
  await ben.joins("algebra");
  const heard = new Promise((resolve) => ben.socket.once("receive-message", (...args) => resolve(args)));
  await says(ben, "hello");
  assert.equal((await heard).length, 1);
});
