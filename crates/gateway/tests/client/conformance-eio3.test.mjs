// Engine.IO 3 and Socket.IO 4, as clients 1.x and 2.x speak them, packet by packet, on the fixture
// of the newer protocols: there the client pings, after 300 ms at the latest, and 200 ms later it
// is gone.
import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { Fixture, ask } from "./fixture.mjs";
import { eventually, pause, story, token, within } from "./harness.mjs";

const INTERVAL = 300;
const TIMEOUT = 200;
const ENGINE = "/engine.io/";
const SOCKET = "/socket.io/";
const BINARY = { "content-type": "application/octet-stream" };

let fixture;
const left = new Set();
before(async () => { fixture = await Fixture.start(); });
after(() => {
  left.forEach((ws) => ws.terminate());
  fixture.end();
});

const query = (transport, more = {}) => `?${new URLSearchParams({ EIO: "3", transport, ...more })}`;
const body = (...packets) => packets.map((packet) => `${packet.length}:${packet}`).join("");

/** The packets of a text body. */
function packets(text) {
  const found = [];
  for (let rest = text; rest !== "";) {
    const [, length] = /^(\d+):/.exec(rest);
    const from = length.length + 1;
    found.push(rest.slice(from, from + Number(length)));
    rest = rest.slice(from + Number(length));
  }
  return found;
}

/** A polling session. */
class Session {
  static async open(path, more = { b64: "1" }, origin = fixture.origin) {
    const session = new Session();
    const { status, headers, body } = await ask(origin + path + query("polling", more));
    assert.deepEqual([status, headers["content-type"]], [200, "text/plain; charset=UTF-8"]);
    const [open, ...rest] = packets(body);
    assert.deepEqual([open[0], rest], ["0", []]);
    session.handshake = JSON.parse(open.slice(1));
    session.url = origin + path + query("polling", { sid: session.handshake.sid });
    return session;
  }

  get(options) {
    return ask(this.url, options);
  }

  async post(body, headers) {
    const answer = await ask(this.url, { method: "POST", body, headers });
    assert.deepEqual([answer.status, answer.body], [200, "ok"]);
  }

  async polls(...expected) {
    const { status, body } = await this.get();
    assert.deepEqual([status, body], [200, expected.map((one) => `${one.length}:${one}`).join("")]);
  }

  async isUnknown() {
    const { status, body } = await this.get();
    assert.deepEqual([status, body], [400, '{"code":1,"message":"Session ID unknown"}']);
  }
}

/** A WebSocket that remembers what it heard. */
async function open(url) {
  const ws = new WebSocket(url.replace("http", "ws"));
  left.add(ws);
  ws.heard = [];
  ws.on("message", (data, isBinary) => ws.heard.push(isBinary ? data : data.toString()));
  ws.closed = once(ws, "close");
  await within(5000, "the WebSocket opens", once(ws, "open"));
  ws.hears = async (...expected) => {
    await eventually(`the WebSocket brings ${expected.length} packets`, () => ws.heard.length >= expected.length);
    assert.deepEqual(ws.heard.splice(0), expected);
  };
  return ws;
}

async function enter(path, more) {
  const ws = await open(fixture.origin + path + query("websocket", more));
  await eventually("the handshake", () => ws.heard.length > 0);
  ws.handshake = JSON.parse(ws.heard.shift().slice(1));
  return ws;
}

test("a polling handshake is framed by its length, and nothing follows it", async () => {
  const { handshake } = await Session.open(ENGINE, {});
  const { sid, ...rest } = handshake;
  assert.match(sid, /^\S{16,}$/);
  assert.deepEqual(rest, { upgrades: ["websocket"], pingInterval: INTERVAL, pingTimeout: TIMEOUT, maxPayload: 1_000_000 });
});

test("packets of a body are echoed one by one, whatever is in them", async () => {
  for (const said of [["4hello"], ["4test1", "4test2", "4test3"], ["4hello", "b4AQIDBA=="], ["4é€𝄞", "4"], ["4𝄞𝄞"]]) {
    const session = await Session.open(ENGINE);
    await session.post(body(...said));
    const heard = [];
    while (heard.length < said.length) heard.push(...packets((await session.get()).body));
    assert.deepEqual(heard, said);
  }
});

test("who takes binary gets and sends it as it is", async () => {
  const session = await Session.open(ENGINE, {});
  const both = Buffer.from([0, 6, 255, ...Buffer.from("4hello"), 1, 5, 255, 4, 1, 2, 3, 4]);
  for (const [said, headers] of [["6:4hello10:b4AQIDBA==", undefined], [both, BINARY]]) {
    await session.post(said, headers);
    let answer = await session.get({ encoding: "latin1" });
    // The first may leave before the second is there: then they come one by one.
    for (let tries = 0; answer.body === "6:4hello" && tries < 10; tries += 1) {
      await session.get();
      await session.post(said, headers);
      answer = await session.get({ encoding: "latin1" });
    }
    assert.equal(answer.headers["content-type"], BINARY["content-type"]);
    assert.deepEqual(Buffer.from(answer.body, "latin1"), both);
  }
  await session.post(Buffer.from([0, 1, 0, 255, ...Buffer.from("4é".repeat(3)), 120]), BINARY);
  const { body: long } = await session.get();
  assert.equal(long, "7:4é4é4éx");
});

test("a WebSocket says of a binary packet that it is a message", async () => {
  const ws = await enter(ENGINE);
  ws.send("4hello");
  await ws.hears("4hello");
  ws.send(Buffer.from([4, 1, 2, 3, 4]));
  await ws.hears(Buffer.from([4, 1, 2, 3, 4]));
  ws.send("b4AQIDBA==");
  await ws.hears(Buffer.from([4, 1, 2, 3, 4]));
  const asText = await enter(ENGINE, { b64: "1" });
  asText.send(Buffer.from([4, 1, 2, 3, 4]));
  await asText.hears("b4AQIDBA==");
});

test("what is no packet ends a session", async () => {
  const bodies = ["4hello", "9:4hello", "x:4hello", "6:4hello3:", "3:b4", "5:b4*==", "3:abc", "1:𝄞", "99999999999999999999:4"];
  for (const said of bodies) {
    const session = await Session.open(ENGINE);
    const { status } = await ask(session.url, { method: "POST", body: said });
    assert.equal(status, 400, said);
    await session.isUnknown();
  }
  for (const said of [[2, 1, 255, 52], [0, 2, 255, 52], [0, 255], [1, 1, 255, 3], [0, 12, 255, 52], [0, 1, 255, 128]]) {
    const session = await Session.open(ENGINE, {});
    const { status } = await ask(session.url, { method: "POST", body: Buffer.from(said), headers: BINARY });
    assert.equal(status, 400, `${said}`);
    await session.isUnknown();
  }
  for (const said of ["abc", "", "b4*", "b3AQ==", Buffer.from([1, 2]), Buffer.alloc(0)]) {
    const ws = await enter(ENGINE);
    ws.send(said);
    await within(2000, `${said} closes`, ws.closed);
  }
});

test("the client pings while it polls, and is answered", async () => {
  const session = await Session.open(ENGINE);
  for (let beat = 0; beat < 5; beat += 1) {
    const answered = session.get();
    await pause(INTERVAL - 100);
    await session.post(body(beat % 2 === 0 ? "2" : "2probing"));
    assert.equal((await answered).body, body(beat % 2 === 0 ? "3" : "3probing"));
  }
  // And where it does not poll meanwhile.
  for (let beat = 0; beat < 4; beat += 1) {
    await pause(INTERVAL - 100);
    await session.post(body("2"));
    assert.equal((await session.get()).body, body("3"));
  }
});

test("the client pings on a WebSocket, and hears of no ping", async () => {
  const ws = await enter(ENGINE);
  for (let beat = 0; beat < 5; beat += 1) {
    await pause(INTERVAL - 100);
    ws.send("2");
    await ws.hears("3");
  }
});

test("who does not ping is gone", async () => {
  const began = performance.now();
  const [session, ws] = [await Session.open(ENGINE), await enter(ENGINE)];
  await within(5000, "the WebSocket closes", ws.closed);
  assert.ok(performance.now() - began >= INTERVAL + TIMEOUT - 5);
  const { status } = await ask(session.url, { method: "POST", body: body("2") });
  assert.equal(status, 400);
});

test("a close ends the poll, and the session", async () => {
  const session = await Session.open(ENGINE);
  const polled = session.get();
  await pause(50);
  await session.post(body("1"));
  assert.equal((await polled).body, body("6"));
  await session.isUnknown();
  const ws = await enter(ENGINE);
  ws.send("1");
  await within(2000, "the WebSocket closes", ws.closed);
});

test("the upgrade ends the poll, and carries on what was said", async () => {
  const session = await Session.open(ENGINE);
  const ws = await open(session.url.replace("polling", "websocket"));
  const polled = session.get();
  ws.send("2probe");
  await ws.hears("3probe");
  assert.equal((await polled).body, body("6"));
  await session.post(body("4before", "b4AQI="));
  ws.send("5");
  ws.send("4after");
  await ws.hears("4before", Buffer.from([4, 1, 2]), "4after");
  assert.equal((await session.get()).status, 400);
  for (let beat = 0; beat < 3; beat += 1) {
    await pause(INTERVAL - 100);
    ws.send("2");
    await ws.hears("3");
  }
});

test("a session goes on in the version in which it began", async () => {
  const old = await Session.open(ENGINE);
  const { status, body: said } = await ask(old.url.replace("EIO=3", "EIO=4"));
  assert.deepEqual([status, said], [400, '{"code":3,"message":"Bad request"}']);
  const opened = await ask(`${fixture.origin}${ENGINE}?EIO=4&transport=polling`);
  const { sid } = JSON.parse(opened.body.slice(1));
  const answer = await ask(fixture.origin + ENGINE + query("polling", { sid }));
  assert.deepEqual([answer.status, answer.body], [400, '{"code":3,"message":"Bad request"}']);
});

test("the server connects / unasked, and a namespace says who it is in its name", async () => {
  const ws = await enter(SOCKET, { token: "a b", plan: "é" });
  await ws.hears("40", '42["auth",{"plan":"é","token":"a b"}]');
  ws.send("40/custom?token=other&more=1,");
  await ws.hears("40/custom,", '42/custom,["auth",{"more":"1","plan":"é","token":"other"}]');
  ws.send("40/nope,");
  await ws.hears('44/nope,{"message":"Invalid namespace"}');
  ws.send('421["message-with-ack",1,"2",{"3":[false]}]');
  await ws.hears('431[1,"2",{"3":[false]}]');
  ws.send('451-["message",{"_placeholder":true,"num":0}]');
  ws.send(Buffer.from([4, 9, 8]));
  await ws.hears('451-["message-back",{"_placeholder":true,"num":0}]', Buffer.from([4, 9, 8]));
  ws.send("41/custom,");
  ws.send('42["message","still there"]');
  await ws.hears('42["message-back","still there"]');
  const session = await Session.open(SOCKET);
  const heard = [];
  while (heard.length < 2) heard.push(...packets((await session.get()).body));
  assert.deepEqual(heard, ["40", '42["auth",{}]']);
});

const ALLOWED = { CARILLON_SERVER__ALLOW_EIO3: "true" };

story("a refusal is a word", { env: ALLOWED }, async ({ server }) => {
  for (const [more, expected] of [
    [{ token: "garbage" }, '44"Authentication error: Invalid token"'],
    [{ token: token("ana") }, "40"],
  ]) {
    const session = await Session.open(SOCKET, more, server.url);
    const [first] = packets((await session.get()).body);
    assert.equal(first, expected);
  }
});

