// Clients that are broken, greedy or malicious: every one gets an exact answer or is closed, and
// nobody else notices.
import assert from "node:assert/strict";
import { describe } from "node:test";
import { DATABASES, eventually, pause, refused, silent, story, token, within } from "./harness.mjs";
import { Polling, Raw } from "./raw.mjs";

const FAST = { env: { CARILLON_LIMITS__RATES__MESSAGE: "1000000/1m" } };
const FAILED = "Failed to send message";
const SLOW_DOWN = "Rate limit exceeded. Please slow down.";
/** Four bytes each on the wire: 16 KB. */
const LARGE = "𝄞".repeat(4000);

const stillThere = async (person) => assert.equal((await person.asks("heartbeat")).ok, true);

story("what is no packet closes its connection, and no other", {}, async (world) => {
  const ana = await world.person("ana");
  const packets = [
    ["an event without an array", "42"],
    ["an unknown packet type", "4abc"],
    ["an object in place of an array", "42{}"],
    ["a text in place of an array", '42"join-room"'],
    ["broken JSON", '42["join-room"'],
    ["an acknowledgement id and no event", "421[]"],
    ["an event without a name", "42[]"],
    ["a name with an escape", '42["join\\u002droom",{}]'],
    ["a number as a name", "42[7,{}]"],
    ["null as a name", "42[null]"],
    ["an object as a name", "42[{}]"],
    ["an event in a namespace not entered", '42/chat,["join-room",{"roomId":"a"}]'],
    ["text where an attachment was announced", '451-["join-room",{"_placeholder":true,"num":0}]', '42["heartbeat"]'],
    ["a binary event without attachments count", '45["join-room",{}]'],
    ["eleven attachments", '4511-["join-room",{"_placeholder":true,"num":0}]'],
    ["an unknown engine packet", "9"],
  ];
  const outcomes = await Promise.all(packets.map(async ([why, ...frames]) => {
    const raw = await Raw.connect(world.server, token("mallory"));
    raw.send(...frames);
    const outcome = await Promise.race([raw.closed.then(() => "closed"), pause(3000).then(() => "open")]);
    raw.close();
    return [why, outcome];
  }));
  assert.deepEqual(outcomes.filter(([, outcome]) => outcome !== "closed"), []);
  await stillThere(ana);
});

story("an event in a namespace there is not is passed over", {}, async (world) => {
  const raw = await Raw.connect(world.server, token("mallory"));
  raw.send('42/admin,["join-room",{"roomId":"a"}]', '421["heartbeat"]');
  await raw.next("431[");
  raw.close();
});

story("nesting without end harms nobody", {}, async (world) => {
  const ana = await world.person("ana");
  const raw = await Raw.connect(world.server, token("mallory"));
  const deep = 100_000;
  raw.send(`42["join-room",${"[".repeat(deep)}${"]".repeat(deep)}]`);
  raw.send(`42["join-room",${'{"roomId":'.repeat(deep / 10)}1${"}".repeat(deep / 10)}]`);
  await Promise.race([raw.closed, raw.next('42["error"')]);
  await stillThere(ana);
  raw.close();
});

story("an unknown event is answered", {}, async (world) => {
  const ana = await world.person("ana");
  for (const name of ["no-such-event", "joinRoom", "__proto__", "constructor", ""]) {
    refused(await ana.asks(name, {}), "INVALID", "Unknown event");
    ana.says(name, {});
    refused(await ana.hears("error"), "INVALID", "Unknown event");
  }
  const exam = await world.person("ana", { path: "/exam" });
  refused(await exam.asks("join-room", { roomId: "algebra" }), "INVALID", "Unknown event");
});

story("whatever the payload is, the answer is the contract's", {}, async (world) => {
  const ana = await world.person("ana");
  const garbage = [
    [], [null], [{}], [[]], [["algebra"]], ["algebra"], [7], [true], [{ roomId: null }],
    [{ roomId: ["algebra"] }], [{ roomId: { id: "algebra" } }], [{ roomid: "algebra" }],
  ];
  for (const args of garbage) {
    refused(await ana.asks("join-room", ...args), "INVALID", "Room ID is required");
    ana.says("join-room", ...args);
    refused(await ana.hears("error"), "INVALID", "Room ID is required");
    refused(await ana.asks("send-message", ...args), "INVALID", "Room ID and message are required");
    refused(await ana.asks("mark-message-read", ...args), "INVALID", "Message ID is required");
  }
  refused(await ana.asks("join-room", { roomId: "algebra" }, 2), "INVALID", "Failed to join room");
  ana.says("join-room", { roomId: "algebra" }, { roomId: "physics" }, 3);
  refused(await ana.hears("error"), "INVALID", "Failed to join room");
  await silent("room-joined", ana);
});

story("fields nobody knows are ignored", {}, async (world) => {
  const ana = await world.person("ana");
  const extra = { userId: "ben", role: "SUPER_ADMIN", sender_id: "ben", senderName: "Ben" };
  assert.equal((await ana.asks("join-room", { roomId: "algebra", ...extra })).ok, true);
  assert.equal((await ana.asks("send-message", { roomId: "algebra", message: "hi", ...extra })).ok, true);
  const { sender_id, sender_name } = await ana.hears("receive-message");
  assert.deepEqual([sender_id, sender_name], ["ana", "ana Name"]);
});

story("text that a database cannot keep is refused, not an internal error", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  const message = { roomId: "algebra", message: "hi" };
  for (const zero of ["\0", "a\0b", "\ud800"]) {
    for (const [name, payload] of [
      ["join-room", { roomId: zero }],
      ["join-room", { roomId: `mentor:${zero}` }],
      ["chat-history", { roomId: zero }],
      ["mark-message-read", { messageId: zero }],
      ["send-message", { ...message, roomId: zero }],
      ["send-message", { ...message, message: zero }],
      ["send-message", { ...message, fileName: zero }],
      ["send-message", { ...message, fileUrl: `https://x.example/${zero}` }],
      ["send-message", { ...message, messageType: zero }],
      ["send-message", { ...message, clientMsgId: zero }],
    ]) {
      const answer = await ana.asks(name, payload);
      const what = `${name} ${JSON.stringify(payload)}: ${JSON.stringify(answer)}`;
      assert.ok(answer.ok || answer.code === "INVALID", what);
    }
  }
  assert.equal((await ana.asks("send-message", message)).ok, true);
});

story("numbers out of range are refused", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  for (const fileSize of [-1, 1.5, 1e300, 2 ** 63, "12"]) {
    refused(await ana.asks("send-message", { roomId: "algebra", message: "hi", fileSize }), "INVALID", FAILED);
  }
  for (const range of [
    { before: -1 }, { after: -1 }, { around: -1 }, { before: 2 ** 53 }, { after: 2 ** 53 },
    { around: 9e18 }, { before: 1.5 }, { after: "1" }, { limit: -1 }, { limit: 0 }, { limit: 1e12 },
  ]) {
    const answer = await ana.asks("chat-history", { roomId: "algebra", ...range });
    assert.ok(answer.ok || answer.code === "INVALID", JSON.stringify([range, answer]));
  }
});

story("ids have at most 128 characters", {}, async (world) => {
  const ana = await world.person("ana");
  assert.equal((await ana.asks("join-room", { roomId: "é".repeat(128) })).ok, true);
  for (const roomId of ["x".repeat(129), "a\nb"]) {
    assert.equal((await ana.asks("join-room", { roomId })).code, "INVALID");
  }
  await assert.rejects(world.person("x".repeat(129)), { message: "Authentication error: Invalid token" });
});

story("no command takes binary", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  for (const transport of ["websocket", "polling"]) {
    const person = await world.person("ana", { transports: [transport] });
    for (const payload of [
      Buffer.from("hi"),
      { roomId: "algebra", message: Buffer.from("hi") },
      { roomId: "algebra", message: "hi", extra: Buffer.alloc(10) },
    ]) {
      const answer = await person.asks("send-message", payload);
      assert.deepEqual([answer.ok, answer.code, answer.retryable], [false, "INVALID", false]);
      person.says("send-message", payload);
      assert.equal((await person.hears("error")).code, "INVALID");
    }
    await stillThere(person);
  }
  await silent("receive-message", ana, ben);
});

story("a message event has at most 50 KB, a frame at most 1 MB", {}, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  for (const transports of [["websocket"], ["polling"]]) {
    const person = await world.person("mallory", { transports });
    await person.joins("algebra");
    for (const size of [51 * 1024, 900_000]) {
      const payload = { roomId: "algebra", message: "hi", extra: "x".repeat(size) };
      refused(await person.asks("send-message", payload), "TOO_LARGE", FAILED);
    }
    const gone = within(5000, "closed", new Promise((resolve) => person.socket.once("disconnect", resolve)));
    person.says("send-message", { roomId: "algebra", message: "x".repeat(1_000_001) });
    await gone;
  }
  await silent("receive-message", ana);
});

story("a frame in pieces is no larger than one in a piece", {}, async (world) => {
  const raw = await Raw.connect(world.server, token("mallory"));
  raw.ws.send('42["join-room",{"roomId":"', { fin: false });
  for (let piece = 0; piece < 12; piece += 1) raw.ws.send("x".repeat(100_000), { fin: false });
  await within(5000, "closed", raw.closed);
});

story("who asks for one namespace after the other and never polls is closed", {}, async (world) => {
  const ana = await world.person("ana", { transports: ["polling"] });
  const long = `40/${"x".repeat(30_000)}`;
  for (const packets of [Array(65).fill("40/a"), [long, `${long},{}`, long], Array(10_000).fill("40")]) {
    const polling = await Polling.open(world.server, token("mallory"));
    const answers = [];
    // Whether it asks all at once or piece by piece.
    for (let from = 0; from < packets.length && (answers.at(-1) ?? 200) === 200; from += 10) {
      answers.push((await polling.post(...packets.slice(from, from + 10))).status);
    }
    assert.equal(answers.at(-1), 400, `${packets.length} of ${packets[0].slice(0, 20)}`);
    assert.equal((await fetch(polling.url)).status, 400);
  }
  assert.equal(await world.server.metric('carillon_closed_total{reason="overloaded"}'), 3);

  // Who hears of it may go on asking, and what it shows with that is not counted.
  const polling = await Polling.open(world.server, token("ben"));
  for (let round = 0; round < 3; round += 1) {
    const answer = await polling.post(...Array(40).fill(`40/a,${JSON.stringify({ token: "x".repeat(3000) })}`));
    assert.equal(answer.status, 200);
    const heard = await polling.until("44/a");
    assert.equal(heard.filter((packet) => packet === '44/a,{"message":"Invalid namespace"}').length, 40);
  }
  await stillThere(ana);
});

story("a polling request over the limit is refused as too large", {}, async (world) => {
  const polling = await Polling.open(world.server, token("ana"));
  const response = await polling.post(`42["send-message",{"message":"${"x".repeat(1_000_001)}"}]`);
  assert.equal(response.status, 413);
});

story("sixty messages a minute are a user's, whatever the number of sockets", {}, async (world) => {
  const [ana, tab, ben] = await world.people("ana", "ana", "ben");
  for (const person of [ana, tab, ben]) await person.joins("algebra");
  const since = Date.now();
  const answers = await Promise.all(
    Array.from({ length: 75 }, (_, index) =>
      (index % 2 ? ana : tab).asks("send-message", { roomId: "algebra", message: `${index}` })),
  );
  const refilled = Math.ceil((Date.now() - since) / 1000);
  const sent = answers.filter((answer) => answer.ok);
  assert.ok(sent.length >= 60 && sent.length <= 60 + refilled, `${sent.length}`);
  const seqs = sent.map((answer) => answer.seq).sort((a, b) => a - b);
  assert.deepEqual(seqs, seqs.map((_, index) => index + 1));
  for (const answer of answers.filter((one) => !one.ok)) {
    refused(answer, "RATE_LIMITED", SLOW_DOWN, true);
    assert.ok(answer.retryAfterMs > 0 && answer.retryAfterMs <= 60_000, `${answer.retryAfterMs}`);
  }

  // Neither a new socket nor another namespace is a new bucket, and no bucket is another's.
  const message = { roomId: "algebra", message: "one more" };
  const again = await world.person("ana", { path: "/chat" });
  refused(await again.asks("send-message", message), "RATE_LIMITED", SLOW_DOWN, true);
  ana.says("send-message", message);
  const told = await ana.hears("error");
  refused(told, "RATE_LIMITED", SLOW_DOWN, true);
  assert.ok(told.retryAfterMs > 0);
  assert.equal((await ben.asks("send-message", message)).ok, true);
  assert.equal((await ana.asks("typing-indicator", { roomId: "algebra", isTyping: true })).ok, true);
  assert.equal((await ana.asks("join-room", { roomId: "algebra" })).ok, true);

  const { retryAfterMs } = await ana.asks("send-message", message);
  await pause((retryAfterMs ?? 0) + 50);
  assert.equal((await ana.asks("send-message", message)).ok, true);
});

story("ten thousand messages on one socket are acknowledged in order, and none is lost", { long: true, ...FAST }, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  await ben.joins("algebra");
  await ana.joins("algebra");
  const count = 10_000;
  const heard = [];
  ben.socket.on("receive-message", (message) => heard.push([message.seq, message.message]));
  const acknowledged = [];
  await within(85_000, "all are acknowledged", new Promise((resolve) => {
    for (let index = 1; index <= count; index += 1) {
      ana.socket.emit("send-message", { roomId: "algebra", message: `${index}` }, (answer) => {
        acknowledged.push([answer.seq, `${index}`]);
        if (acknowledged.length === count) resolve();
      });
    }
  }));
  const expected = Array.from({ length: count }, (_, index) => [index + 1, `${index + 1}`]);
  assert.deepEqual(acknowledged, expected);
  await ben.settled();
  assert.deepEqual(heard, expected);
});

story("a public socket id opens nobody's polling session", {}, async (world) => {
  const ana = await world.person("ana", { transports: ["polling"] });
  await ana.joins("algebra");
  const unknown = { code: 1, message: "Session ID unknown" };
  const url = `${world.server.url}/socket.io/?EIO=4&transport=polling&sid=${ana.socket.id}`;
  for (const request of [{}, { method: "POST", body: '42["leave-room",{"roomId":"algebra"}]' }]) {
    const response = await fetch(url, request);
    assert.equal(response.status, 400);
    assert.deepEqual(await response.json(), unknown);
  }
  const upgrade = await fetch(url.replace("polling", "websocket"), { headers: { origin: "http://localhost:5173" } });
  assert.equal(upgrade.status, 400);
  await stillThere(ana);
});

story("the engine's refusals look as Node's", {}, async (world) => {
  const open = await Raw.connect(world.server, token("ana"));
  const base = `${world.server.url}/socket.io/?`;
  const polling = "EIO=4&transport=polling";
  for (const [query, method, code, message] of [
    ["EIO=4&transport=carrier-pigeon", "GET", 0, "Transport unknown"],
    ["EIO=4", "GET", 0, "Transport unknown"],
    [`${polling}&sid=unknown`, "GET", 1, "Session ID unknown"],
    [`${polling}&sid=AAAAAAAAAAAAAAAA`, "GET", 1, "Session ID unknown"],
    [polling, "POST", 2, "Bad handshake method"],
    ["EIO=4&transport=websocket", "GET", 3, "Bad request"],
    [`${polling}&sid=${open.handshake.sid}`, "GET", 3, "Bad request"],
    ["EIO=3&transport=polling", "GET", 5, "Unsupported protocol version"],
    ["transport=polling", "GET", 5, "Unsupported protocol version"],
  ]) {
    const response = await fetch(base + query, { method });
    assert.equal(response.status, 400, query);
    assert.deepEqual(await response.json(), { code, message }, query);
  }
  assert.equal((await open.asks(1, "heartbeat")).ok, true);
  open.close();
});

/** How many connections the server holds, by its own metrics. */
async function connections(server) {
  const { operations } = JSON.parse(server.log.find((line) => line.includes('"message":"metrics"')));
  const metrics = await (await fetch(`http://${operations}/metrics`)).text();
  return Number(/^carillon_connections (\d+)/m.exec(metrics)[1]);
}

story("a polling session that has ended is unknown and costs nothing more", {
  env: { CARILLON_SERVER__PING_INTERVAL: "300ms", CARILLON_SERVER__PING_TIMEOUT: "300ms" },
}, async (world) => {
  const { server } = world;
  const ends = {
    "a close packet": (polling) => polling.post("1"),
    "what is no packet": (polling) => polling.post("4abc"),
    "no answer to a ping": () => pause(1000),
  };
  const statuses = {};
  for (const [why, end] of Object.entries(ends)) {
    const polling = await Polling.open(server, token("ana"));
    await end(polling);
    const response = await fetch(polling.url);
    statuses[why] = [response.status, await response.json()];
  }
  await fetch(`${server.url}/socket.io/?EIO=4&transport=polling`);
  const ana = await world.person("ana", { transports: ["polling"] });
  ana.leaves();
  await eventually("all are forgotten", async () => (await connections(server)) === 0, 15_000);
  const unknown = [400, { code: 1, message: "Session ID unknown" }];
  assert.deepEqual(statuses, Object.fromEntries(Object.keys(ends).map((why) => [why, unknown])));
});

/** Fills the room until its slow reader's share exceeds what kernels buffer. */
async function floods(person, roomId, megabytes) {
  const messages = Math.ceil((megabytes * 1_000_000) / 16_000);
  for (let sent = 0; sent < messages; sent += 20) {
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => person.asks("send-message", { roomId, message: LARGE })),
    );
    assert.ok(answers.every((answer) => answer.ok));
  }
  return Math.ceil(messages / 20) * 20;
}

async function undisturbed(world) {
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  const heard = [];
  ben.socket.on("receive-message", (message) => heard.push(message.seq));
  return [ana, ben, heard];
}

const isGone = (event) => event.userId === "mallory" && event.status === "offline";

// These wait for limits, so they wait together.
describe("patience has an end", { concurrency: 4 }, () => {
  story("a socket that stops reading is closed, gone from presence, and disturbs nobody", { long: true, ...FAST }, async (world) => {
    const [ana, ben, heard] = await undisturbed(world);
    const raw = await Raw.connect(world.server, token("mallory"));
    await raw.asks(1, "join-room", { roomId: "algebra" });
    raw.ws.pause();
    const since = Date.now();
    const count = await floods(ana, "algebra", 16);
    await ben.hears("user-status-change", isGone, 35_000 - (Date.now() - since));
    await ben.settled();
    assert.deepEqual(heard, Array.from({ length: count }, (_, index) => index + 1));
    raw.ws.resume();
    await within(5000, "closed", raw.closed);
    await stillThere(ana);
  });

  story("a socket that has stalled for twenty seconds is closed, however little waits for it", {
    long: true,
    env: { ...FAST.env, CARILLON_LIMITS__UNSENT_BYTES: "1000000000" },
  }, async (world) => {
    const [ana, ben, heard] = await undisturbed(world);
    const raw = await Raw.connect(world.server, token("mallory"));
    await raw.asks(1, "join-room", { roomId: "algebra" });
    raw.ws.pause();
    const count = await floods(ana, "algebra", 16);
    await ben.hears("user-status-change", isGone, 36_000);
    await ben.settled();
    assert.equal(heard.length, count);
    raw.close();
  });

  story("a session that is polled no more is closed when too much waits for it", FAST, async (world) => {
    const [ana, ben, heard] = await undisturbed(world);
    const polling = await Polling.open(world.server, token("mallory"));
    await polling.post('421["join-room",{"roomId":"algebra"}]');
    await polling.until("431[");
    const count = await floods(ana, "algebra", 3);
    await ben.hears("user-status-change", isGone, 35_000);
    await ben.settled();
    assert.equal(heard.length, count);
    const response = await fetch(polling.url);
    assert.deepEqual([response.status, await response.json()], [400, { code: 1, message: "Session ID unknown" }]);
  });

  story("a session that is polled no more is closed within half a minute", { long: true }, async (world) => {
    const [ana, ben] = await undisturbed(world);
    const polling = await Polling.open(world.server, token("mallory"));
    await polling.post('421["join-room",{"roomId":"algebra"}]');
    await polling.until("431[");
    await ana.asks("send-message", { roomId: "algebra", message: "hello?" });
    await ben.hears("user-status-change", isGone, 36_000);
  });

  story("a connection that does not enter a namespace is closed within 45 seconds", { long: true }, async (world) => {
    const raw = await Raw.open(world.server);
    await within(46_000, "closed", raw.closed);
  });

  story("a client that reads again in time loses nothing", FAST, async (world) => {
    const [ana, , heard] = await undisturbed(world);
    const raw = await Raw.connect(world.server, token("cleo"));
    await raw.asks(1, "join-room", { roomId: "algebra" });
    raw.ws.pause();
    const count = await floods(ana, "algebra", 0.6);
    raw.ws.resume();
    await eventually("all has arrived", () =>
      raw.frames.filter((frame) => frame.startsWith('42["receive-message"')).length === count);
    const seqs = raw.frames
      .filter((frame) => frame.startsWith('42["receive-message"'))
      .map((frame) => JSON.parse(frame.slice(2))[1].seq);
    assert.deepEqual(seqs, heard);
    raw.close();
  });
});
