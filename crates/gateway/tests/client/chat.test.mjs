// Chat as a frontend sees it: every event of the contract with its exact name and keys, and what
// is true behind them.
import assert from "node:assert/strict";
import { DATABASES, refused, silent, story, uniqueRoom, within } from "./harness.mjs";

const FAST = { env: { CARILLON_LIMITS__RATES__MESSAGE: "100000/1m", CARILLON_LIMITS__RATES__ROOM: "100000/1m" } };
const MISSING = "Room ID and message are required";
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

/** Sends so many messages, in order. */
async function sends(person, roomId, count, from = 1) {
  const sent = Array.from({ length: count }, (_, index) =>
    person.asks("send-message", { roomId, message: `message ${from + index}` }),
  );
  return Promise.all(sent);
}

async function roomOf(world, ...ids) {
  const room = uniqueRoom();
  const people = await world.people(...ids);
  for (const person of people) await person.joins(room);
  for (const person of people) {
    await person.settled();
    person.forget();
  }
  return [room, ...people];
}

const seqs = (messages) => messages.map((message) => message.seq);
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

story("the first to join a room creates it and finds it empty", { on: DATABASES }, async (world) => {
  const ana = await world.person("ana");
  assert.deepEqual(await ana.joins("algebra"), {
    roomId: "algebra", messages: [], seq: 0, lastReadSeq: 0, unreadCount: 0, hasMore: false,
  });
  const answer = await ana.asks("join-room", { roomId: "algebra" });
  assert.equal(answer.ok, true);
  assert.equal(answer.roomId, "algebra");
});

story("a join shows the newest fifty messages, oldest first", { on: DATABASES, ...FAST }, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  await ana.joins("algebra");
  await sends(ana, "algebra", 53);
  const joined = await ben.joins("algebra");
  assert.deepEqual(Object.keys(joined), ["roomId", "messages", "seq", "lastReadSeq", "unreadCount", "hasMore"]);
  assert.deepEqual(seqs(joined.messages), range(4, 53));
  assert.deepEqual(joined.messages.map((m) => m.message), range(4, 53).map((n) => `message ${n}`));
  assert.equal(joined.seq, 53);
  assert.equal(joined.hasMore, true);
});

story("a room of exactly fifty messages has no more than it shows", FAST, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  await ana.joins("algebra");
  await sends(ana, "algebra", 50);
  const joined = await ben.joins("algebra");
  assert.deepEqual(seqs(joined.messages), range(1, 50));
  assert.equal(joined.hasMore, false);
});

story("what was said before somebody came does not count as unread, what is said after does", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  await ana.joins("algebra");
  await sends(ana, "algebra", 3);
  const first = await ben.joins("algebra");
  assert.deepEqual([first.unreadCount, first.lastReadSeq], [0, 3]);
  ben.leaves();
  await sends(ana, "algebra", 2);
  const again = await (await world.person("ben")).joins("algebra");
  assert.deepEqual([again.seq, again.unreadCount, again.lastReadSeq], [5, 2, 3]);
});

story("the others in a room hear who joins and who leaves it", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  await ana.joins("algebra");
  await ben.joins("algebra");
  const who = { roomId: "algebra", userId: "ben", userName: "ben Name" };
  assert.deepEqual(await ana.hears("user-joined-room"), who);
  ben.says("leave-room", { roomId: "algebra" });
  assert.deepEqual(await ben.hears("room-left"), { roomId: "algebra" });
  assert.deepEqual(await ana.hears("user-left-room"), who);
  await silent("user-joined-room", ana, ben);
  await silent("user-left-room", ben);
});

story("a second tab neither joins nor leaves a room for its user", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  const tab = await world.person("ben");
  await tab.joins(room);
  await silent("user-joined-room", ana, ben);
  assert.equal((await tab.asks("leave-room", { roomId: room })).ok, true);
  await silent("user-left-room", ana, ben);
  assert.equal((await ben.asks("leave-room", { roomId: room })).ok, true);
  assert.equal((await ana.hears("user-left-room")).userId, "ben");
});

story("who has left a room hears nothing more of it, and is a member all the same", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  await ben.asks("leave-room", { roomId: room });
  await sends(ana, room, 1);
  await silent("receive-message", ben);
  assert.equal((await ben.asks("send-message", { roomId: room, message: "from outside" })).ok, true);
  assert.equal((await ana.hears("receive-message", (m) => m.seq === 2)).message, "from outside");
});

story("a message reaches everybody in the room, its sender included, exactly once", { on: DATABASES }, async (world) => {
  const [room, ana, tab, ben] = await roomOf(world, "ana", "ana", "ben");
  ana.says("send-message", { roomId: room, message: "Is ∅ open?" });
  const heard = [];
  for (const person of [ana, tab, ben]) heard.push(await person.hears("receive-message"));
  assert.deepEqual(heard[1], heard[0]);
  assert.deepEqual(heard[2], heard[0]);
  const { id, created_at, ...row } = heard[0];
  assert.match(id, UUID);
  assert.match(created_at, ISO);
  assert.deepEqual(row, {
    room_id: room, sender_id: "ana", sender_name: "ana Name", sender_avatar: null,
    message: "Is ∅ open?", message_type: "text", file_url: null, file_name: null, file_size: null,
    is_read: false, seq: 1, clientMsgId: null,
  });
  await silent("receive-message", ana, tab, ben);
});

story("an acknowledgement names the message, its place and its time", {}, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  const answer = await ana.asks("send-message", {
    roomId: room, message: "a diagram", messageType: "image", fileUrl: "/uploads/a.png",
    fileName: "a.png", fileSize: 5_000_000_000, clientMsgId: "k1",
  });
  const heard = await ana.hears("receive-message");
  assert.deepEqual(answer, {
    ok: true, id: heard.id, roomId: room, seq: 1, createdAt: heard.created_at, clientMsgId: "k1",
  });
  assert.deepEqual(
    [heard.message_type, heard.file_url, heard.file_name, heard.file_size, heard.clientMsgId],
    ["image", "/uploads/a.png", "a.png", 5_000_000_000, "k1"],
  );
});

story("a member who is online elsewhere is told of a new message", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  await ben.asks("leave-room", { roomId: room });
  await ana.asks("send-message", { roomId: room, message: "x".repeat(150) });
  assert.deepEqual(await ben.hears("new-message-notification"), {
    roomId: room, senderName: "ana Name", message: "x".repeat(100),
  });
  await silent("new-message-notification", ana);
});

story("typing is shown to the others in the room and to none of one's own tabs", {}, async (world) => {
  const [room, ana, tab, ben] = await roomOf(world, "ana", "ana", "ben");
  const [stranger] = await world.people("cleo");
  const typing = { roomId: room, userId: "ana", userName: "ana Name", isTyping: true };
  ana.says("typing-indicator", { roomId: room, isTyping: true });
  assert.deepEqual(await ben.hears("typing-indicator"), typing);
  ana.says("typing-indicator", { roomId: room, isTyping: false });
  assert.deepEqual(await ben.hears("typing-indicator"), { ...typing, isTyping: false });
  await silent("typing-indicator", ana, tab, ben, stranger);
});

story("typing that is not repeated ends after six seconds", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  ana.says("typing-indicator", { roomId: room, isTyping: true });
  await ben.hears("typing-indicator");
  const since = Date.now();
  const { isTyping } = await ben.hears("typing-indicator", () => true, 8000);
  const took = Date.now() - since;
  assert.equal(isTyping, false);
  assert.ok(took >= 5500 && took <= 7000, `${took} ms`);
});

story("typing ends with the message, with leaving, and with the last tab's connection", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  const types = async (person) => {
    person.says("typing-indicator", { roomId: room, isTyping: true });
    await ben.hears("typing-indicator", (e) => e.isTyping);
  };
  const stops = () => ben.hears("typing-indicator", (e) => e.userId === "ana" && !e.isTyping, 2000);

  await types(ana);
  await ana.asks("send-message", { roomId: room, message: "done" });
  await stops();

  await types(ana);
  await ana.asks("leave-room", { roomId: room });
  await stops();

  await ana.joins(room);
  const tab = await world.person("ana");
  await tab.joins(room);
  await types(ana);
  tab.leaves();
  await silent("typing-indicator", ben);
  ana.leaves();
  await stops();
});

story("reading a message is told to its author and to all sockets of the reader", { on: DATABASES }, async (world) => {
  const [room, ana, ben, tab] = await roomOf(world, "ana", "ben", "ben");
  const [first, second] = await sends(ana, room, 2);
  ben.says("mark-message-read", { messageId: first.id });
  const read = { messageId: first.id, roomId: room, readBy: "ben" };
  for (const person of [ana, ben, tab]) assert.deepEqual(await person.hears("message-read"), read);
  for (const person of [ben, tab]) {
    const { rev, ...count } = await person.hears("unread-count");
    assert.equal(typeof rev, "number");
    assert.deepEqual(count, { roomId: room, unreadCount: 1, lastReadSeq: 1 });
  }
  await silent("unread-count", ana);

  const { messages } = await ana.joins(room);
  assert.deepEqual(messages.map((m) => [m.seq, m.is_read]), [[1, true], [2, false]]);
  const answer = await tab.asks("mark-message-read", { messageId: second.id });
  assert.equal(answer.ok, true);
  assert.equal((await ana.hears("message-read")).messageId, second.id);
  assert.equal((await ben.hears("unread-count")).unreadCount, 0);
});

story("a message read twice is told to its author once", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  const [first, second] = await sends(ana, room, 2);
  for (const { id } of [second, second, second]) {
    assert.equal((await ben.asks("mark-message-read", { messageId: id })).ok, true);
  }
  await ana.hears("message-read");
  await silent("message-read", ana);
  // The shipped frontend marks every message it shows; going back does not move the position.
  assert.equal((await ben.asks("mark-message-read", { messageId: first.id })).ok, true);
  const { lastReadSeq, unreadCount } = await ben.joins(room);
  assert.deepEqual([lastReadSeq, unreadCount], [2, 0]);
});

story("an author cannot read a message on behalf of the others", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  const [{ id }] = await sends(ana, room, 1);
  ana.says("mark-message-read", { messageId: id });
  await silent("message-read", ana, ben);
  await silent("error", ana);
  assert.equal((await ben.joins(room)).messages[0].is_read, false);
});

story("an outsider cannot read a message, and cannot tell a foreign one from none", {}, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  const cleo = await world.person("cleo");
  const [{ id }] = await sends(ana, room, 1);
  const foreign = await cleo.asks("mark-message-read", { messageId: id });
  const absent = await cleo.asks("mark-message-read", { messageId: "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b" });
  assert.equal(foreign.ok, false);
  assert.deepEqual(absent, foreign);
  cleo.says("mark-message-read", { messageId: id });
  await silent("message-read", ana, cleo);
  await silent("error", cleo);
  assert.equal((await ana.joins(room)).messages[0].is_read, false);
});

story("unread counts are what a recount gives, whatever happens in whatever order", { on: DATABASES, ...FAST }, async (world) => {
  const seed = Number(process.env.CARILLON_TEST_SEED ?? Date.now() % 1_000_000);
  let state = seed;
  const random = (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    return Math.floor((state / 0x80000000) * below);
  };
  const [room, ...people] = await roomOf(world, "ana", "ben", "cleo");
  const messages = [];
  const position = new Map(people.map(({ id }) => [id, 0]));
  const unread = (id) =>
    messages.filter((m) => m.seq > position.get(id) && m.sender !== id).length;
  for (let step = 0; step < 80; step += 1) {
    const person = people[random(people.length)];
    if (messages.length === 0 || random(2) === 0) {
      const { id, seq } = await person.asks("send-message", { roomId: room, message: `${step}` });
      messages.push({ id, seq, sender: person.id });
    } else {
      const message = messages[random(messages.length)];
      await person.asks("mark-message-read", { messageId: message.id });
      if (message.sender !== person.id) {
        position.set(person.id, Math.max(position.get(person.id), message.seq));
      }
    }
    const { id } = people[random(people.length)];
    const asked = people.find((one) => one.id === id);
    const joined = await asked.joins(room);
    assert.deepEqual(
      { unreadCount: joined.unreadCount, lastReadSeq: joined.lastReadSeq },
      { unreadCount: unread(id), lastReadSeq: position.get(id) },
      `seed ${seed}, step ${step}, ${id}`,
    );
  }
});

story("history is read in pages before, after and around a place", { on: DATABASES, ...FAST }, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  await sends(ana, room, 120);
  const page = (rest) => ana.asks("chat-history", { roomId: room, ...rest });

  const newest = await page({});
  assert.deepEqual(Object.keys(newest).sort(), ["hasMore", "messages", "ok", "roomId", "seq"]);
  assert.deepEqual([newest.ok, newest.roomId, newest.seq, newest.hasMore], [true, room, 120, true]);
  assert.deepEqual(seqs(newest.messages), range(71, 120));

  const before = await page({ before: 71, limit: 30 });
  assert.deepEqual([seqs(before.messages), before.hasMore], [range(41, 70), true]);
  const start = await page({ before: 11, limit: 30 });
  assert.deepEqual([seqs(start.messages), start.hasMore], [range(1, 10), false]);
  const after = await page({ after: 100, limit: 5 });
  assert.deepEqual([seqs(after.messages), after.hasMore], [range(101, 105), true]);
  const end = await page({ after: 115, limit: 5 });
  assert.deepEqual([seqs(end.messages), end.hasMore], [range(116, 120), false]);
  const none = await page({ after: 120 });
  assert.deepEqual([none.messages, none.hasMore], [[], false]);

  const around = seqs((await page({ around: 60, limit: 10 })).messages);
  assert.equal(around.length, 10);
  assert.deepEqual(around, range(around[0], around[0] + 9));
  assert.ok(around.includes(60) && around[0] >= 54 && around[0] <= 57, `${around}`);
  assert.ok((await page({ limit: 1000 })).messages?.length <= 100);
});

story("history is told as an event to those who ask for no acknowledgement", {}, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  await sends(ana, room, 3);
  ana.says("chat-history", { roomId: room, before: 3, limit: 1 });
  const { messages, ...page } = await ana.hears("chat-history");
  assert.deepEqual(page, { roomId: room, hasMore: true, seq: 3 });
  assert.deepEqual(seqs(messages), [2]);
});

story("history has one direction at a time, and is closed to strangers", {}, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  const cleo = await world.person("cleo");
  const both = await ana.asks("chat-history", { roomId: room, before: 3, after: 1 });
  assert.deepEqual([both.ok, both.code], [false, "INVALID"]);
  const foreign = await cleo.asks("chat-history", { roomId: room });
  const absent = await cleo.asks("chat-history", { roomId: uniqueRoom() });
  assert.equal(foreign.ok, false);
  assert.deepEqual(absent, foreign);
});

story("a message sent again under its clientMsgId is the same message", { on: DATABASES }, async (world) => {
  const [room, ana, tab, ben] = await roomOf(world, "ana", "ana", "ben");
  const message = { roomId: room, message: "once", clientMsgId: "k1" };
  const answers = await Promise.all([ana, tab, ana, tab].map((one) => one.asks("send-message", message)));
  for (const answer of answers) assert.deepEqual(answer, answers[0]);
  assert.equal(answers[0].ok, true);
  await ben.hears("receive-message");
  await silent("receive-message", ben);

  refused(
    await ana.asks("send-message", { ...message, message: "something else" }),
    "IDEMPOTENCY_MISMATCH", "Failed to send message",
  );
  const bens = await ben.asks("send-message", message);
  assert.notEqual(bens.id, answers[0].id);
  assert.deepEqual(seqs((await ben.joins(room)).messages), [1, 2]);
});

story("two equal messages without a clientMsgId are two messages", {}, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  const [one, two] = await Promise.all([1, 2].map(() => ana.asks("send-message", { roomId: room, message: "hi" })));
  assert.notEqual(one.id, two.id);
  assert.deepEqual([one.seq, two.seq], [1, 2]);
});

story("only harmless HTML is kept of a message", {}, async (world) => {
  const [room, ana] = await roomOf(world, "ana");
  for (const [raw, clean] of [
    ["<b>a</b><i>b</i><em>c</em><strong>d</strong><p>e<br>f</p>", "<b>a</b><i>b</i><em>c</em><strong>d</strong><p>e<br>f</p>"],
    ["<script>alert(1)</script>hello", "hello"],
    ["<img src=x onerror=alert(1)>hello", "hello"],
    ["<svg onload=alert(1)>hello</svg>", "hello"],
    ["<b onclick=\"alert(1)\" style=\"color:red\">hello</b>", "<b>hello</b>"],
    ["<a href=\"https://x.example\" target=\"_blank\">x</a>", "<a href=\"https://x.example\" target=\"_blank\">x</a>"],
    ["<a href=\"javascript:alert(1)\">x</a>", "<a>x</a>"],
    ["<a href=\"JaVaScRiPt&#58;alert(1)\">x</a>", "<a>x</a>"],
    ["2 < 3 & 4", "2 &lt; 3 &amp; 4"],
  ]) {
    assert.equal((await ana.asks("send-message", { roomId: room, message: raw })).ok, true, raw);
    assert.equal((await ana.hears("receive-message")).message, clean);
  }
});

story("a message of which nothing is left counts as missing", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  for (const message of ["", "   ", "<script>alert(1)</script>", "<img src=x>"]) {
    refused(await ana.asks("send-message", { roomId: room, message }), "INVALID", MISSING);
    ana.says("send-message", { roomId: room, message });
    refused(await ana.hears("error"), "INVALID", MISSING);
  }
  await silent("receive-message", ana, ben);
});

story("a file is a link to the web or to a path on the same site", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  const send = (fileUrl) => ana.asks("send-message", { roomId: room, message: "a file", fileUrl });
  for (const good of ["https://x.example/a.pdf", "http://x.example/a.pdf", "/uploads/a.pdf"]) {
    assert.equal((await send(good)).ok, true, good);
    assert.equal((await ben.hears("receive-message")).file_url, good);
  }
  for (const bad of [
    "javascript:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "data:text/html,x",
    "vbscript:x", "file:///etc/passwd", "//evil.example/a", "/\\evil.example", "\\\\evil.example",
  ]) {
    refused(await send(bad), "INVALID", "Failed to send message");
  }
  await silent("receive-message", ben);
});

story("a message has at most four thousand characters", {}, async (world) => {
  const [room, ana, ben] = await roomOf(world, "ana", "ben");
  for (const message of ["x".repeat(4000), "𝄞".repeat(4000), "e\u0301".repeat(4000)]) {
    assert.equal((await ana.asks("send-message", { roomId: room, message })).ok, true);
    assert.equal((await ben.hears("receive-message")).message, message.normalize("NFC"));
  }
  const message = "x".repeat(4001);
  refused(await ana.asks("send-message", { roomId: room, message }), "TOO_LARGE", "Failed to send message");
  await silent("receive-message", ben);
});

const REFUSALS = [
  ["join-room", {}, "INVALID", "Room ID is required"],
  ["join-room", { roomId: "" }, "INVALID", "Room ID is required"],
  ["join-room", { roomId: 7 }, "INVALID", "Room ID is required"],
  ["join-room", { roomId: "exam:1" }, "FORBIDDEN", "Failed to join room"],
  ["leave-room", {}, "INVALID", "Room ID is required"],
  ["send-message", {}, "INVALID", MISSING],
  ["send-message", { roomId: "algebra" }, "INVALID", MISSING],
  ["send-message", { message: "hi" }, "INVALID", MISSING],
  ["send-message", { roomId: "algebra", message: ["hi"] }, "INVALID", MISSING],
  ["send-message", { roomId: "algebra", message: "hi", fileSize: "big" }, "INVALID", "Failed to send message"],
  ["send-message", { roomId: "physics", message: "hi" }, "NOT_A_MEMBER", "Failed to send message"],
  ["typing-indicator", {}, "INVALID", "Room ID is required"],
  ["typing-indicator", { isTyping: true }, "INVALID", "Room ID is required"],
  ["mark-message-read", {}, "INVALID", "Message ID is required"],
  ["mark-message-read", { messageId: 7 }, "INVALID", "Message ID is required"],
  ["chat-history", {}, "INVALID", "Room ID is required"],
];

story("a refusal has the contract's text, as an error event and as an acknowledgement", {}, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  for (const [name, payload, code, message] of REFUSALS) {
    await within(5000, `${name} ${JSON.stringify(payload)}`, (async () => {
      refused(await ana.asks(name, payload), code, message);
      await silent("error", ana);
      ana.says(name, payload);
      const told = await ana.hears("error");
      assert.equal("ok" in told, false);
      refused(told, code, message);
    })());
  }
});

story("what the contract calls silent is silent, unless an answer is asked for", {}, async (world) => {
  const ana = await world.person("ana");
  const silence = [
    ["typing-indicator", { roomId: "physics", isTyping: true }],
    ["mark-message-read", { messageId: "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b" }],
    ["heartbeat", 7],
  ];
  for (const [name, payload] of silence) {
    ana.says(name, payload);
    await silent("error", ana);
    const answer = await ana.asks(name, payload);
    assert.equal(answer.ok, false, name);
    assert.equal(typeof answer.message, "string");
  }
});

story("a heartbeat is answered with the server's time", {}, async (world) => {
  const ana = await world.person("ana");
  for (const args of [[], [null], [{}]]) {
    ana.says("heartbeat", ...args);
    const ack = await ana.hears("heartbeat-ack");
    assert.deepEqual(Object.keys(ack), ["timestamp"]);
    assert.match(ack.timestamp, ISO);
  }
});

story("a burst of messages and commands is answered in the order it was sent", {
  on: DATABASES, env: { CARILLON_LIMITS__RATES__MESSAGE: "1000/1m" },
}, async (world) => {
  const ana = await world.person("ana");
  const ben = await world.person("ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  // A socket that has joined nothing is a member all the same.
  const other = await world.person("ana");
  for (const socket of [ana, other]) {
    const answers = [];
    const ask = (name, payload, what) => new Promise((resolve) => socket.socket.emit(name, payload, (answer) => {
      answers.push([what, answer.ok]);
      resolve();
    }));
    const asked = [];
    for (let n = 0; n < 30; n++) {
      asked.push(ask("send-message", { roomId: "algebra", message: `m${n}` }, `m${n}`));
      if (n % 10 === 4) asked.push(ask("send-message", { roomId: "elsewhere", message: "no" }, "refused"));
      if (n % 10 === 9) asked.push(ask("heartbeat", {}, "heartbeat"));
    }
    await Promise.all(asked);
    const expected = Array.from({ length: 30 }, (_, n) => [
      [`m${n}`, true], ...(n % 10 === 4 ? [["refused", false]] : []), ...(n % 10 === 9 ? [["heartbeat", true]] : []),
    ]).flat();
    assert.deepEqual(answers, expected);
    await ben.hears("receive-message", (e) => e.message === "m29");
    const heard = ben.unheard("receive-message").map((e) => e.message);
    assert.deepEqual(heard, Array.from({ length: 29 }, (_, n) => `m${n}`));
    ben.forget();
  }
});
