// Clients that do not join again by themselves: after a reconnect they are back in their rooms,
// shown what they missed, each message once.
import assert from "node:assert/strict";
import net from "node:net";
import { DATABASES, Person, eventually, pause, silent, story as anyStory, token, within } from "./harness.mjs";

/** Without recovery the newest client is one that cannot go on as the same socket. */
const story = (title, { env = {}, ...options }, run) =>
  anyStory(title, { ...options, env: { CARILLON_RECOVERY__ENABLED: "false", ...env } }, run);

/** As the shipped frontend connects: it comes back by itself and joins nothing. */
const STOCK = { reconnection: true, reconnectionDelay: 200, reconnectionDelayMax: 400 };

/** What ends a connection as a network does: without a word of Socket.IO. */
const drop = (person) => person.socket.io.engine.close();

const connected = (person) => within(13_000, `${person.id} is back`, new Promise((resolve) => person.socket.once("connect", resolve)));
const texts = (events) => events.map((event) => event.message);
const say = async (person, roomId, ...messages) => {
  for (const message of messages) assert.equal((await person.asks("send-message", { roomId, message })).ok, true);
};

for (const transports of [["websocket"], ["polling"], ["websocket", "polling"]]) {
  story(`who loses the network over ${transports} is shown what was missed and hears what comes`, { on: DATABASES }, async (world) => {
    const ana = await world.person("ana", { ...STOCK, transports });
    const ben = await world.person("ben");
    for (const person of [ana, ben]) for (const room of ["algebra", "biology"]) await person.joins(room);
    await say(ben, "algebra", "before");
    await ana.hears("receive-message", (e) => e.message === "before");
    const back = connected(ana);
    drop(ana);
    await say(ben, "algebra", "missed 1", "missed 2");
    await say(ben, "biology", "missed 3");
    await back;
    const [algebra, biology] = [await ana.hears("room-joined", (e) => e.roomId === "algebra"), await ana.hears("room-joined", (e) => e.roomId === "biology")];
    assert.deepEqual(texts(algebra.messages), ["before", "missed 1", "missed 2"]);
    assert.deepEqual([algebra.seq, algebra.hasMore, texts(biology.messages)], [3, false, ["missed 3"]]);
    await say(ben, "algebra", "after");
    await ana.hears("receive-message", (e) => e.message === "after");
    await silent("receive-message", ana);
    assert.deepEqual(ana.unheard("room-joined"), []);
    // The others see who is there.
    ben.says("typing-indicator", { roomId: "algebra", isTyping: true });
    await ana.hears("typing-indicator");
  });
}

for (const [what, ends] of [["is killed", (server) => server.kill()], ["is restarted", (server) => server.terminate()]]) {
  story(`a server that ${what} puts everybody back into their rooms`, { on: DATABASES, long: true }, async (world) => {
    const [ana, ben] = [await world.person("ana", STOCK), await world.person("ben", { ...STOCK, path: "/chat" })];
    for (const person of [ana, ben]) await person.joins("algebra");
    await say(ben, "algebra", "before");
    await ana.hears("receive-message");
    await pause(300); // Who has joined is noted within 100 ms.
    const back = [connected(ana), connected(ben)];
    await ends(world.server);
    await world.server.restart();
    await Promise.all(back);
    for (const person of [ana, ben]) {
      const { messages } = await person.hears("room-joined", (e) => e.roomId === "algebra");
      assert.deepEqual(texts(messages), ["before"]);
    }
    await say(ben, "algebra", "after");
    await ana.hears("receive-message", (e) => e.message === "after");
    await silent("receive-message", ana);
  });
}

story("a message sent while everybody comes back reaches each of them once", { on: DATABASES }, async (world) => {
  const people = [];
  for (let n = 0; n < 8; n++) people.push(await world.person(`student-${n}`, STOCK));
  const ben = await world.person("ben");
  for (const person of [...people, ben]) await person.joins("algebra");
  const seen = people.map((person) => {
    const messages = [];
    person.socket.on("room-joined", (e) => messages.push(...e.messages.map((m) => m.message).filter((text) => !messages.includes(text))));
    // What comes by itself is new, always.
    person.socket.on("receive-message", (e) => messages.push(e.message));
    return messages;
  });
  const back = people.map(connected);
  people.forEach(drop);
  const sent = Array.from({ length: 40 }, (_, n) => `m${n}`);
  for (const message of sent) {
    await say(ben, "algebra", message);
    await pause(40);
  }
  await Promise.all(back);
  await say(ben, "algebra", "last");
  await eventually("everybody has all of it", () => seen.every((messages) => messages.includes("last")), 8000);
  for (const messages of seen) assert.deepEqual(messages, [...sent, "last"]);
});

story("the tab that stays hears nothing twice, and a third one is put nowhere", { on: DATABASES }, async (world) => {
  const [stays, goes] = [await world.person("ana", STOCK), await world.person("ana", STOCK)];
  const ben = await world.person("ben");
  for (const person of [stays, ben]) await person.joins("algebra");
  await goes.joins("biology");
  const fresh = await world.person("ana");
  await pause(1500); // Whatever it would be brought, it would be by now.
  assert.deepEqual(fresh.unheard("room-joined"), []);
  for (const tab of [stays, goes]) tab.forget();
  const back = connected(goes);
  drop(goes);
  await back;
  await goes.hears("room-joined", (e) => e.roomId === "biology");
  await say(ben, "algebra", "hello");
  await stays.hears("receive-message");
  await silent("receive-message", stays, goes, fresh);
  await silent("room-joined", stays, goes, fresh);
});

story("a page with two sockets comes back with both", {}, async (world) => {
  const page = [await world.person("ana", STOCK), await world.person("ana", STOCK)];
  await page[1].joins("algebra");
  const back = page.map(connected);
  page.forEach(drop);
  await Promise.all(back);
  // Only one of them has listeners, and nobody can tell which.
  for (const socket of page) await socket.hears("room-joined", (e) => e.roomId === "algebra");
});

story("who was left, put out or cut is not put back", { on: DATABASES }, async (world) => {
  const [ana, ben] = [await world.person("ana", STOCK), await world.person("ben")];
  const group = (await ben.asks("study-group-create", { name: "Anatomy", maxMembers: 4 })).group?.id ?? (await ben.hears("study-group-created")).group.id;
  await ana.asks("study-group-join", { groupId: group });
  const groupRoom = (await ana.hears("study-group-joined")).roomId;
  for (const room of ["algebra", "biology", groupRoom]) await ana.joins(room);
  assert.equal((await ana.asks("leave-room", { roomId: "biology" })).ok, true);
  ana.forget();
  let back = connected(ana);
  drop(ana);
  assert.equal((await ben.asks("study-group-kick", { groupId: group, userId: "ana" })).ok, true);
  await back;
  await ana.hears("room-joined", (e) => e.roomId === "algebra");
  await silent("room-joined", ana);
  // Cut for good: whoever comes then begins anew.
  const cut = within(2000, "the cut", new Promise((resolve) => ana.socket.once("disconnect", resolve)));
  await world.api("DELETE", "/v1/users/ana/connections");
  assert.equal(await cut, "io server disconnect");
  ana.forget();
  ana.socket.connect();
  await connected(ana);
  await pause(1500);
  assert.deepEqual(ana.unheard("room-joined"), []);
});

story("who joins by themselves is not shown the room twice", {}, async (world) => {
  const ana = await world.person("ana", STOCK);
  await ana.joins("algebra");
  const back = connected(ana);
  drop(ana);
  await back;
  await ana.joins("algebra");
  await pause(1500);
  assert.deepEqual(ana.unheard("room-joined"), []);
});

story("who leaves a room as soon as they are back stays out of it", {}, async (world) => {
  const ana = await world.person("ana", STOCK);
  for (const room of ["algebra", "biology"]) await ana.joins(room);
  const back = connected(ana);
  drop(ana);
  await back;
  await ana.joins("biology");
  for (const roomId of ["algebra", "biology"]) assert.equal((await ana.asks("leave-room", { roomId })).ok, true);
  await pause(1500);
  assert.deepEqual(ana.unheard("room-joined"), []);
  await ana.joins("algebra");
});

story("who has joined by themselves has come back: another page is put nowhere", {}, async (world) => {
  const ana = await world.person("ana", STOCK);
  await ana.joins("algebra");
  const back = connected(ana);
  drop(ana);
  await back;
  await ana.joins("algebra");
  await pause(17_000); // Two sockets of one page come within 15 s.
  const fresh = await world.person("ana");
  await pause(1500);
  assert.deepEqual(fresh.unheard("room-joined"), []);
});

story("a client that is back before its broken link is noticed is put back when it is", {
  env: { CARILLON_SERVER__PING_INTERVAL: "500ms", CARILLON_SERVER__PING_TIMEOUT: "1500ms" },
}, async (world) => {
  const links = [];
  const tunnel = net.createServer((client) => {
    const upstream = net.connect(world.server.port, "127.0.0.1");
    client.pipe(upstream).pipe(client);
    for (const end of [client, upstream]) end.on("error", () => {});
    links.push({ client, upstream });
  });
  await new Promise((resolve) => tunnel.listen(0, "127.0.0.1", resolve));
  const through = { url: `http://127.0.0.1:${tunnel.address().port}` };
  try {
    const ana = await Person.connect(through, "ana", STOCK);
    const ben = await world.person("ben");
    for (const person of [ana, ben]) await person.joins("algebra");
    // The network swallows everything: the server has no way to know.
    const [{ client, upstream }] = links;
    client.unpipe(upstream);
    upstream.unpipe(client);
    upstream.resume();
    const back = connected(ana);
    drop(ana);
    await back;
    await say(ben, "algebra", "missed");
    const { messages } = await ana.hears("room-joined", (e) => e.messages.length > 0);
    assert.deepEqual(texts(messages), ["missed"]);
    await say(ben, "algebra", "after");
    assert.equal((await ana.hears("receive-message", (e) => e.message === "after")).message, "after");
    ana.leaves();
  } finally {
    for (const { client, upstream } of links) [client, upstream].forEach((end) => end.destroy());
    tunnel.close();
  }
});

story("another user on the same page is put into nobody's rooms", {}, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  ana.leaves();
  const ben = await Person.connect(world.server, "ben", { auth: { token: token("ben") } });
  await pause(1500);
  assert.deepEqual(ben.unheard("room-joined"), []);
  ben.leaves();
});
