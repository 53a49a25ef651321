// What was acknowledged is kept, and who was connected comes back: through power cuts, deploys,
// and a database that goes away.
import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import {
  DATABASES, POSTGRES, Person, Server, eventually, pause, story, token, uniqueRoom, within,
} from "./harness.mjs";

const FAST = { CARILLON_LIMITS__RATES__MESSAGE: "1000000/1m", CARILLON_LIMITS__RATES__ROOM: "1000000/1m" };
/** The options of the frontends that exist, and a stock client's. */
const STOCK = { reconnection: true, reconnectionDelay: 1000, reconnectionAttempts: 5 };

function seeded(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Everything in a room, oldest first. */
async function history(person, roomId) {
  const all = [];
  for (;;) {
    const page = await person.asks("chat-history", { roomId, after: all.at(-1)?.seq ?? 0, limit: 100 });
    assert.equal(page.ok, true, JSON.stringify(page));
    all.push(...page.messages);
    if (!page.hasMore) return all;
  }
}

/** Sends under one clientMsgId until it is acknowledged, over whatever connection there is. */
async function insists(socket, payload, isOver) {
  while (!isOver()) {
    const answer = await new Promise((resolve) => {
      const late = setTimeout(() => resolve(undefined), 1500);
      const settle = (value) => {
        clearTimeout(late);
        socket.off("disconnect", gone);
        resolve(value);
      };
      const gone = () => settle(undefined);
      if (!socket.connected) return setTimeout(() => settle(undefined), 20);
      socket.once("disconnect", gone);
      socket.emit("send-message", payload, settle);
    });
    if (answer?.ok) return answer;
    if (answer) assert.equal(answer.retryable, true, JSON.stringify(answer));
  }
  return undefined;
}

story("power cuts under load lose nothing that was acknowledged", { on: DATABASES, env: FAST }, async (world) => {
  const seed = Number(process.env.CARILLON_TEST_SEED ?? Date.now() % 1_000_000);
  console.log(`seed ${seed}`);
  const random = seeded(seed);
  const room = uniqueRoom();
  const { server } = world;
  const acknowledged = new Map();
  let over = false;

  const publishers = await Promise.all(Array.from({ length: 8 }, (_, index) =>
    world.person(`pub${index}`, {
      reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 200,
      reconnectionAttempts: Infinity,
    })));
  for (const { socket } of publishers) {
    // A connection that dies before its CONNECT reply is tried again by hand.
    socket.on("connect_error", () => socket.active || setTimeout(() => over || socket.connect(), 50));
  }
  await Promise.all(publishers.map((publisher) => publisher.joins(room)));
  const publishing = publishers.map(async ({ socket, id }) => {
    for (let number = 0; !over; number += 1) {
      const clientMsgId = `${id}-${number}`;
      const payload = { roomId: room, message: clientMsgId, clientMsgId };
      const answer = await insists(socket, payload, () => over);
      if (answer) acknowledged.set(clientMsgId, answer);
    }
  });

  for (let round = 0; round < 4; round += 1) {
    const before = acknowledged.size;
    await eventually("work goes on", () => acknowledged.size > before + 20, 10_000);
    await pause(random() * 500);
    await server.kill();
    await server.restart();
  }
  const before = acknowledged.size;
  await eventually("work goes on", () => acknowledged.size > before + 20, 10_000);
  over = true;
  await within(10_000, "the publishers end", Promise.all(publishing));
  await server.kill();
  await server.restart();

  const reader = await world.person("pub0");
  const kept = await history(reader, room);
  const message = `seed ${seed}, ${acknowledged.size} acknowledged, ${kept.length} kept`;
  assert.deepEqual(kept.map((m) => m.seq), kept.map((_, index) => index + 1), `a hole: ${message}`);
  assert.equal(new Set(kept.map((m) => m.clientMsgId)).size, kept.length, `one twice: ${message}`);
  const byId = new Map(kept.map((m) => [m.id, m]));
  for (const [clientMsgId, answer] of acknowledged) {
    const found = byId.get(answer.id);
    assert.ok(found, `${clientMsgId} is lost: ${message}`);
    assert.deepEqual([found.message, found.seq], [clientMsgId, answer.seq]);
  }
});

story("what is read stays read through a power cut", { on: DATABASES }, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  for (const message of ["one", "two", "three"]) {
    const { id, seq } = await ana.asks("send-message", { roomId: "algebra", message });
    if (seq === 2) await ben.asks("mark-message-read", { messageId: id });
  }
  await world.server.kill();
  await world.server.restart();
  const { messages, lastReadSeq, unreadCount } = await (await world.person("ben")).joins("algebra");
  assert.deepEqual([lastReadSeq, unreadCount], [2, 1]);
  assert.deepEqual(messages.map((m) => m.is_read), [false, true, false]);
});

story("a terminated server answers what it was asked, closes transports, and ends with 0", { on: DATABASES, env: FAST }, async (world) => {
  const room = uniqueRoom();
  const people = await world.people("ana", "ben", "cleo", "dora");
  for (const person of people) await person.joins(room);
  const reasons = people.map(async ({ socket }) => (await once(socket, "disconnect"))[0]);
  const acknowledged = [];
  for (const { socket } of people) {
    for (let number = 0; number < 50; number += 1) {
      socket.emit("send-message", { roomId: room, message: "x" }, (answer) => {
        if (answer.ok) acknowledged.push(answer.id);
      });
    }
  }
  await eventually("some are under way", () => acknowledged.length > 10);
  const { code, signal } = await within(20_000, "the server ends", world.server.terminate());
  assert.deepEqual([code, signal], [0, null]);
  for (const reason of await Promise.all(reasons)) assert.equal(reason, "transport close");

  await world.server.restart();
  const kept = new Set((await history(await world.person("ana"), room)).map((m) => m.id));
  for (const id of acknowledged) assert.ok(kept.has(id));
});

story("clients come back by themselves after a deploy, by every transport", {}, async (world) => {
  const people = [];
  for (const transports of [["websocket"], ["polling"], ["polling", "websocket"]]) {
    const id = transports.join("-");
    people.push(await world.person(id, { transports, ...STOCK }));
  }
  const errors = [];
  for (const { socket, id } of people) {
    socket.on("connect_error", (error) => socket.active || errors.push(`${id}: ${error.message}`));
  }
  const reasons = Promise.all(people.map(async ({ socket }) => (await once(socket, "disconnect"))[0]));
  const { code } = await within(20_000, "the server ends", world.server.terminate());
  assert.equal(code, 0);
  for (const reason of await reasons) {
    assert.ok(["transport close", "transport error"].includes(reason), reason);
  }
  await world.server.restart();
  await eventually("all are back", () => people.every(({ socket }) => socket.connected), 10_000);
  for (const person of people) assert.equal((await person.asks("heartbeat")).ok, true);
  assert.deepEqual(errors, []);
});

/** Between server and database: what a network does to them. */
class Proxy {
  #sockets = new Set();
  #isAway = false;
  #isFrozen = false;

  static async before(databaseUrl) {
    const proxy = new Proxy();
    const target = new URL(databaseUrl);
    proxy.server = net.createServer((socket) => {
      if (proxy.#isAway) return socket.destroy();
      const upstream = net.connect(Number(target.port), target.hostname);
      for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
        proxy.#sockets.add(one);
        one.on("error", () => {});
        one.on("close", () => {
          proxy.#sockets.delete(one);
          other.destroy();
        });
        one.on("data", (data) => other.write(data));
        if (proxy.#isFrozen) one.pause();
      }
    });
    proxy.server.listen(0, "127.0.0.1");
    await once(proxy.server, "listening");
    const url = new URL(databaseUrl);
    url.port = proxy.server.address().port;
    proxy.url = url.href;
    return proxy;
  }

  /** Connections break, and new ones are refused. */
  cut() {
    this.#isAway = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Connections stay, and nothing passes: a database that hangs. */
  freeze() {
    this.#isFrozen = true;
    for (const socket of this.#sockets) socket.pause();
  }

  restore() {
    this.#isAway = false;
    this.#isFrozen = false;
    for (const socket of this.#sockets) socket.resume();
  }

  close() {
    this.cut();
    this.server.close();
  }
}

/** One story with a database that can go away. */
function outage(title, { long = false } = {}, run) {
  const skip = POSTGRES.length === 0 ? "no PostgreSQL" : long && process.env.CARILLON_TEST_QUICK ? "long" : false;
  test(title, { skip, timeout: 90_000 }, async () => {
    const proxy = await Proxy.before((await POSTGRES[0].fresh()).databaseUrl);
    const server = await Server.start({ databaseUrl: proxy.url, env: FAST });
    const people = [];
    const person = async (id, options) => {
      const one = await Person.connect(server, id, options);
      people.push(one);
      return one;
    };
    try {
      await run({ proxy, server, person });
    } catch (error) {
      console.error(server.log.slice(-20).join("\n"));
      throw error;
    } finally {
      for (const one of people) one.leaves();
      proxy.close();
      await server.dispose();
    }
  });
}

for (const [what, goes] of [["is cut off", (proxy) => proxy.cut()], ["hangs", (proxy) => proxy.freeze()]]) {
  outage(`a database that ${what} is told as unavailable within three seconds, and work resumes within three`, {}, async ({ proxy, server, person }) => {
    const ana = await person("ana");
    await ana.joins("algebra");
    assert.equal((await ana.asks("send-message", { roomId: "algebra", message: "before" })).ok, true);

    goes(proxy);
    for (const [name, payload] of [
      ["send-message", { roomId: "algebra", message: "during", clientMsgId: "k1" }],
      ["join-room", { roomId: "physics" }],
      ["chat-history", { roomId: "algebra" }],
    ]) {
      const since = Date.now();
      const answer = await ana.asks(name, payload);
      const took = Date.now() - since;
      assert.deepEqual([answer.ok, answer.code, answer.retryable], [false, "UNAVAILABLE", true], name);
      assert.ok(answer.retryAfterMs > 0);
      assert.ok(took <= 3300, `${name}: ${took} ms`);
    }
    // What needs no database goes on.
    assert.equal((await ana.asks("heartbeat")).ok, true);
    assert.equal((await ana.asks("typing-indicator", { roomId: "algebra", isTyping: true })).ok, true);
    assert.equal(server.child.exitCode, null);

    proxy.restore();
    const back = Date.now();
    await eventually("work resumes", async () =>
      (await ana.asks("send-message", { roomId: "algebra", message: "during", clientMsgId: "k1" })).ok, 4000);
    assert.ok(Date.now() - back <= 3300, `${Date.now() - back} ms`);
    assert.deepEqual((await history(ana, "algebra")).map((m) => [m.seq, m.message]), [[1, "before"], [2, "during"]]);
  });
}

outage("nothing is acknowledged falsely while the database breaks under load", {}, async ({ proxy, person }) => {
  const publishers = await Promise.all(Array.from({ length: 4 }, (_, index) => person(`pub${index}`)));
  for (const publisher of publishers) await publisher.joins("algebra");
  const acknowledged = new Map();
  let over = false;
  const publishing = publishers.map(async ({ socket, id }) => {
    for (let number = 0; !over; number += 1) {
      const clientMsgId = `${id}-${number}`;
      const answer = await insists(socket, { roomId: "algebra", message: clientMsgId, clientMsgId }, () => over);
      if (answer) acknowledged.set(answer.id, clientMsgId);
    }
  });
  for (let round = 0; round < 3; round += 1) {
    const before = acknowledged.size;
    await eventually("work goes on", () => acknowledged.size > before + 20, 8000);
    proxy.cut();
    await pause(300);
    proxy.restore();
  }
  const before = acknowledged.size;
  await eventually("work goes on", () => acknowledged.size > before + 20, 8000);
  over = true;
  await Promise.all(publishing);
  const kept = await history(publishers[0], "algebra");
  assert.deepEqual(kept.map((m) => m.seq), kept.map((_, index) => index + 1));
  assert.equal(new Set(kept.map((m) => m.clientMsgId)).size, kept.length);
  const ids = new Set(kept.map((m) => m.id));
  for (const [id, clientMsgId] of acknowledged) assert.ok(ids.has(id), `${clientMsgId} is lost`);
});

outage("stock clients are connected again after twenty seconds without a database", { long: true }, async ({ proxy, server, person }) => {
  const errors = [];
  const watch = (one) => {
    one.socket.on("connect_error", (error) => one.socket.active || errors.push(`${one.id}: ${error.message}`));
    return one;
  };
  const stays = watch(await person("stays", STOCK));
  const returns = watch(await person("returns", STOCK));
  const polls = watch(await person("polls", { ...STOCK, transports: ["polling"] }));
  await stays.joins("algebra");
  proxy.cut();
  const since = Date.now();

  // A network change: these connect again while there is no database.
  for (const one of [returns, polls]) one.socket.io.engine.close();
  const { CLIENTS } = await import("./harness.mjs");
  const arrives = watch(new Person(CLIENTS["4.8"](server.url, {
    auth: { token: token("arrives") }, forceNew: true, transports: ["websocket"], ...STOCK,
  }), "arrives"));
  try {
    await pause(20_000 - (Date.now() - since));
    assert.equal(stays.socket.connected, true, "who was connected stays so");
    proxy.restore();
    await eventually("all are connected", () =>
      [stays, returns, polls, arrives].every(({ socket }) => socket.connected), 12_000);
    assert.deepEqual(errors, []);
    for (const one of [stays, returns, polls, arrives]) {
      assert.equal((await one.asks("join-room", { roomId: "algebra" })).ok, true);
    }
  } finally {
    arrives.leaves();
  }
});
