// Notifications: told at once to whoever listens, kept for whoever does not, each exactly once.
import assert from "node:assert/strict";
import { DATABASES, POSTGRES, eventually, pause, refused, silent, story } from "./harness.mjs";

const FAST = {
  env: {
    CARILLON_LIMITS__RATES__NOTIFICATION: "100000/1m",
    CARILLON_LIMITS__RATES__MESSAGE: "100000/1m",
  },
};
const FAILED = "Failed to send notification";
const MENTOR = { claims: { role: "MENTOR" } };
const NOTICE = { type: "SYSTEM", title: "Exam tomorrow", message: "Room 12" };
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const KEYS = ["id", "user_id", "type", "title", "message", "data", "is_read", "priority", "action_url", "created_at"];
const NOBODY = "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b";

async function sends(person, notice = {}) {
  const answer = await person.asks("notification-send", { ...NOTICE, ...notice });
  assert.equal(answer.ok, true, JSON.stringify(answer));
  return answer.notificationId;
}

/** Somebody who has been here long enough for pushes to come at once. */
async function listener(world, id, options) {
  const person = await world.person(id, options);
  const marker = await sends(person, { title: "are you listening?" });
  await person.hears("new-notification", (n) => n.id === marker);
  await person.asks("notification-read-all");
  await person.hears("notifications-read-all");
  person.forget();
  return person;
}

story("a notification to oneself comes to every socket as the contract's row", { on: DATABASES }, async (world) => {
  const ana = await listener(world, "ana");
  const tab = await world.person("ana", { path: "/notification" });
  const notice = {
    ...NOTICE, data: { examId: "e1", deep: [1.5, null, "ü"] }, priority: "high", actionUrl: "/exams/e1",
  };
  const answer = await ana.asks("notification-send", notice);
  assert.deepEqual(Object.keys(answer), ["ok", "notificationId", "timestamp"]);
  const { ok, ...sent } = answer;
  assert.deepEqual(await ana.hears("notification-sent"), sent);
  assert.match(sent.timestamp, ISO);
  for (const socket of [ana, tab]) {
    const heard = await socket.hears("new-notification");
    assert.deepEqual(Object.keys(heard), KEYS);
    assert.deepEqual(heard, {
      id: sent.notificationId, user_id: "ana", type: "SYSTEM", title: "Exam tomorrow", message: "Room 12",
      data: { examId: "e1", deep: [1.5, null, "ü"] }, is_read: false, priority: "high",
      action_url: "/exams/e1", created_at: sent.timestamp,
    });
    assert.match(heard.id, UUID);
  }
  await silent("new-notification", ana, tab);
  await silent("notification-sent", tab);
});

story("a plain notification has every key, empty ones as null", {}, async (world) => {
  const ana = await listener(world, "ana");
  ana.says("notification-send", NOTICE);
  const heard = await ana.hears("new-notification");
  assert.deepEqual(Object.keys(heard), KEYS);
  assert.deepEqual([heard.data, heard.priority, heard.action_url], [null, "normal", null]);
  assert.equal((await ana.hears("notification-sent")).notificationId, heard.id);
});

story("staff who teach or administer write to others, nobody else does", {}, async (world) => {
  const ben = await listener(world, "ben");
  for (const role of ["STUDENT", "REVIEWER", "PROCTOR"]) {
    const person = await world.person(`a ${role}`, { claims: { role } });
    const notice = { ...NOTICE, userId: "ben" };
    refused(await person.asks("notification-send", notice), "FORBIDDEN", "Unauthorized");
    person.says("notification-send", notice);
    refused(await person.hears("error"), "FORBIDDEN", "Unauthorized");
    await sends(person, { userId: person.id });
  }
  for (const role of ["SUPER_ADMIN", "PROGRAM_ADMIN", "MENTOR"]) {
    const person = await world.person(`a ${role}`, { claims: { role } });
    await sends(person, { userId: "ben", title: role });
    assert.equal((await ben.hears("new-notification")).title, role);
    await silent("new-notification", person);
  }
  await silent("new-notification", ben);
});

story("what is no notification is refused, and nothing is told", {}, async (world) => {
  const mentor = await listener(world, "mentor", MENTOR);
  const wrong = [
    [{ type: undefined }, "INVALID"], [{ title: undefined }, "INVALID"], [{ message: undefined }, "INVALID"],
    [{ type: "" }, "INVALID"], [{ title: "  " }, "INVALID"], [{ message: "" }, "INVALID"], [{ title: 7 }, "INVALID"],
    [{ type: "x".repeat(51) }, "INVALID"], [{ title: "x".repeat(256) }, "INVALID"],
    [{ message: "x".repeat(4001) }, "INVALID"], [{ priority: "loud" }, "INVALID"], [{ priority: 1 }, "INVALID"],
    [{ actionUrl: "javascript:alert(1)" }, "INVALID"], [{ actionUrl: "//evil.example" }, "INVALID"],
    [{ actionUrl: "/\\evil.example" }, "INVALID"], [{ actionUrl: "exams" }, "INVALID"],
    [{ data: "x".repeat(8192) }, "TOO_LARGE"], [{ expiresAt: "yesterday" }, "INVALID"],
    [{ dedupeKey: "a", collapseKey: "b" }, "INVALID"], [{ userId: 7 }, "INVALID"],
    [{ userId: "nobody" }, "NOT_FOUND"],
  ];
  for (const [change, code] of wrong) {
    const notice = { ...NOTICE, ...change };
    refused(await mentor.asks("notification-send", notice), code, FAILED);
    mentor.says("notification-send", notice);
    refused(await mentor.hears("error"), code, FAILED);
  }
  for (const actionUrl of ["/exams", "https://x.example/a", "http://x.example"]) {
    await sends(mentor, { actionUrl });
    assert.equal((await mentor.hears("new-notification")).action_url, actionUrl);
  }
  await silent("new-notification", mentor);
});

story("reading is one's own business, comes to every tab, and twice is once", { on: DATABASES }, async (world) => {
  const ana = await listener(world, "ana");
  const [tab, eve] = await world.people("ana", "eve");
  const [first, second] = [await sends(ana), await sends(ana)];
  refused(
    await eve.asks("notification-read", { notificationId: first }),
    "NOT_FOUND", "Failed to mark notification as read",
  );
  refused(
    await ana.asks("notification-read", { notificationId: NOBODY }),
    "NOT_FOUND", "Failed to mark notification as read",
  );
  for (const wrong of [undefined, {}, { notificationId: 7 }, { notificationId: "" }]) {
    refused(await ana.asks("notification-read", wrong), "INVALID", "Notification ID is required");
  }
  await silent("notification-read", ana, tab, eve);

  let last = -1;
  for (const [notificationId, unreadCount] of [[second, 1], [second, 1], [first, 0], [second, 0]]) {
    ana.says("notification-read", { notificationId });
    for (const socket of [ana, tab]) {
      const { rev, ...read } = await socket.hears("notification-read");
      assert.deepEqual(read, { notificationId, unreadCount });
      if (socket === tab) last = rev;
      else assert.ok(rev > last, "a later count is known by its higher rev");
    }
  }
  await silent("notification-read", ana, tab, eve);
});

story("read-all takes no argument, null or an object, and tells every tab", { on: DATABASES }, async (world) => {
  const ana = await listener(world, "ana");
  const tab = await world.person("ana");
  for (const args of [[], [null], [{}]]) {
    const id = await sends(ana);
    ana.says("notification-read-all", ...args);
    for (const socket of [ana, tab]) {
      const told = await socket.hears("notifications-read-all");
      assert.deepEqual(Object.keys(told), ["unreadCount", "rev"]);
      assert.equal(told.unreadCount, 0);
    }
    assert.equal((await ana.asks("notification-read", { notificationId: id })).unreadCount, 0);
  }
});

story("read-all up to one leaves the newer ones unread", { on: DATABASES }, async (world) => {
  const [ana, eve] = await world.people("ana", "eve");
  const ids = [];
  for (let index = 0; index < 4; index += 1) ids.push(await sends(ana));
  const foreign = await sends(eve);
  assert.equal((await ana.asks("notification-read-all", { upTo: ids[1] })).unreadCount, 2);
  assert.equal((await ana.hears("notifications-read-all")).unreadCount, 2);
  for (const upTo of [foreign, NOBODY]) {
    refused(
      await ana.asks("notification-read-all", { upTo }),
      "NOT_FOUND", "Failed to mark all notifications as read",
    );
  }
  assert.equal((await ana.asks("notification-read", { notificationId: ids[3] })).unreadCount, 1);
  assert.equal((await ana.asks("notification-read-all")).unreadCount, 0);
  assert.equal((await eve.asks("notification-read", { notificationId: foreign })).unreadCount, 0);
});

story("what came while somebody was away comes once to all their sockets, oldest first", { on: DATABASES, ...FAST }, async (world) => {
  await (async () => (await world.person("ben")).leaves())();
  const mentor = await world.person("mentor", MENTOR);
  const sent = [];
  for (let index = 0; index < 5; index += 1) sent.push(await sends(mentor, { userId: "ben", title: `n${index}` }));
  const sockets = await world.people("ben", "ben", "ben", "ben");
  for (const socket of sockets) {
    for (const id of sent) assert.equal((await socket.hears("new-notification")).id, id);
  }
  // A fifth finds nothing left; a fresh one is the next thing everybody hears.
  const late = await listener(world, "ben");
  const fresh = await sends(mentor, { userId: "ben", title: "fresh" });
  assert.equal((await late.hears("new-notification")).id, fresh);
  for (const socket of [...sockets, late]) {
    if (socket !== late) await socket.hears("new-notification", (n) => n.id === fresh);
    const old = socket.unheard("new-notification").filter((n) => sent.includes(n.id));
    assert.deepEqual(old, []);
  }
});

story("of very many missed ones the newest fifty come, and all of them count", { on: DATABASES, ...FAST }, async (world) => {
  (await world.person("ben")).leaves();
  const mentor = await world.person("mentor", MENTOR);
  const sent = [];
  for (let index = 0; index < 60; index += 1) sent.push(await sends(mentor, { userId: "ben" }));
  const ben = await world.person("ben");
  for (const id of sent.slice(10)) assert.equal((await ben.hears("new-notification")).id, id);
  assert.equal((await ben.asks("notification-read", { notificationId: sent[0] })).unreadCount, 59);
  const again = await world.person("ben");
  const marker = await sends(mentor, { userId: "ben", title: "marker" });
  for (const socket of [ben, again]) {
    assert.equal((await socket.hears("new-notification")).id, marker);
  }
});

story("what was read meanwhile is not brought any more", { on: DATABASES }, async (world) => {
  const mentor = await listener(world, "mentor", MENTOR);
  const ben = await listener(world, "ben");
  ben.leaves();
  await eventually("ben is away", async () => {
    const id = await sends(mentor, { userId: "ben", title: "perhaps" });
    return id;
  });
  const first = await world.person("ben");
  await first.asks("notification-read-all");
  const marker = await sends(mentor, { userId: "ben", title: "marker" });
  await first.hears("new-notification", (n) => n.id === marker);
  assert.deepEqual(first.unheard("new-notification").filter((n) => n.title === "perhaps"), []);
});

story("the same dedupe key is the same notification, told once", { on: DATABASES }, async (world) => {
  const mentor = await world.person("mentor", MENTOR);
  const ben = await listener(world, "ben");
  const notice = { userId: "ben", dedupeKey: "exam-1-opens" };
  const answers = await Promise.all([1, 2, 3].map(() => sends(mentor, notice)));
  assert.equal(new Set(answers).size, 1);
  await ben.hears("new-notification", (n) => n.id === answers[0]);
  assert.notEqual(await sends(mentor, { dedupeKey: "exam-1-opens" }), answers[0], "a key is one user's");
  await silent("new-notification", ben);
  assert.equal((await ben.asks("notification-read", { notificationId: answers[0] })).unreadCount, 0);
  assert.equal(await sends(mentor, notice), answers[0], "also once it is read");
  await silent("new-notification", ben);
});

story("what happens again before it is read is one row with a count, unless it is urgent", { on: DATABASES }, async (world) => {
  const ana = await listener(world, "ana");
  const send = (message, more) => sends(ana, { collapseKey: "k", message, ...more });
  const id = await send("one");
  assert.equal("count" in (await ana.hears("new-notification")), false);
  assert.equal(await send("two"), id);
  const again = await ana.hears("new-notification");
  assert.deepEqual([again.id, again.message, again.count], [id, "two", 2]);
  const urgent = await send("now", { priority: "urgent" });
  assert.notEqual(urgent, id);
  assert.notEqual(await send("now", { priority: "urgent" }), urgent);
  assert.equal((await ana.asks("notification-read", { notificationId: id })).unreadCount, 2);
  const fresh = await send("three");
  assert.notEqual(fresh, id);
  const newest = await ana.hears("new-notification", (n) => n.id === fresh);
  assert.equal("count" in newest, false);
});

story("what has expired neither counts nor comes", { on: DATABASES }, async (world) => {
  (await world.person("ben")).leaves();
  const mentor = await world.person("mentor", MENTOR);
  const kept = await sends(mentor, { userId: "ben", title: "kept" });
  const expiresAt = new Date(Date.now() + 700).toISOString();
  await sends(mentor, { userId: "ben", title: "brief", expiresAt });
  const own = await sends(mentor);
  await sends(mentor, { expiresAt });
  await eventually("the expired one is not counted any more", async () => {
    return (await mentor.asks("notification-read", { notificationId: own })).unreadCount === 0;
  });
  const ben = await world.person("ben");
  assert.equal((await ben.hears("new-notification")).id, kept);
  assert.equal((await ben.asks("notification-read", { notificationId: kept })).unreadCount, 0);
  await silent("new-notification", ben);
});

story("what has expired is not counted into what comes after it", { on: DATABASES }, async (world) => {
  const ana = await listener(world, "ana");
  const expiresAt = new Date(Date.now() + 700).toISOString();
  await sends(ana, { collapseKey: "k", message: "one", expiresAt });
  await ana.hears("new-notification");
  await pause(900);
  await sends(ana, { collapseKey: "k", message: "two" });
  const { message, count = 1 } = await ana.hears("new-notification");
  assert.deepEqual([message, count], ["two", 1]);
});

story("a room that is not read is one notification, whatever is said in it", { on: DATABASES }, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  ben.leaves();
  await eventually("Ben has left", async () => (await world.server.metric("carillon_connections")) === 1);
  const sent = [];
  for (const message of ["one", "two", "three"]) {
    sent.push(await ana.asks("send-message", { roomId: "algebra", message }));
  }
  const back = await world.person("ben");
  const told = await back.hears("new-notification");
  assert.deepEqual(
    [told.type, told.title, told.message, told.data, told.count],
    ["MESSAGE", "New message from ana Name", "three", { roomId: "algebra", messageId: sent[2].id }, 3],
  );
  assert.equal((await back.asks("notification-read", { notificationId: told.id })).unreadCount, 0);
  await silent("new-notification", back);
});

story("a notification that is stored while its user comes is not left behind", { on: DATABASES, ...FAST }, async (world) => {
  (await world.person("ben")).leaves();
  const mentor = await world.person("mentor", MENTOR);
  const sent = [];
  let over = false;
  const sending = (async () => {
    while (!over) sent.push(await sends(mentor, { userId: "ben", title: `n${sent.length}` }));
  })();
  await eventually("some are stored", () => sent.length > 5);
  const ben = await world.person("ben");
  const heard = [];
  ben.socket.on("new-notification", ({ id }) => heard.push(id));
  await ben.hears("new-notification");
  const before = sent.length;
  await eventually("some more are pushed", () => sent.length > before + 20);
  over = true;
  await sending;
  await eventually("the last one has come", () => heard.includes(sent.at(-1)));
  assert.equal(new Set(heard).size, heard.length, "each once");
  const missed = sent.filter((id) => !heard.includes(id));
  // Only what is older than the newest fifty of those that were kept may be missing.
  const firstHeard = sent.indexOf(heard[0]);
  assert.deepEqual(missed, sent.slice(0, firstHeard));
});

story("what was stored elsewhere for somebody who listens here comes by itself, once", { on: POSTGRES }, async (world) => {
  const { default: pg } = await import("pg");
  // Her only socket has settled, so nothing but the search for what was missed can bring it.
  const ana = await listener(world, "ana");
  const client = new pg.Client({ connectionString: world.server.databaseUrl });
  await client.connect();
  try {
    // As a batch for many does, or another node that does not see her.
    await client.query(`
      INSERT INTO notifications (tenant_id, id, user_id, type, title, message, created_at)
      SELECT tenant_id, 'batch-' || n, id, 'SYSTEM', 'batch', 'message', now()
      FROM users, generate_series(1, 3) n WHERE id = 'ana'`);
  } finally {
    await client.end();
  }
  for (const n of [1, 2, 3]) assert.equal((await ana.hears("new-notification")).id, `batch-${n}`);
  const marker = await sends(ana);
  assert.equal((await ana.hears("new-notification")).id, marker);
  await silent("new-notification", ana);
});

story("an event that takes no payload of its own is refused when it is none", {}, async (world) => {
  const ana = await world.person("ana");
  refused(await ana.asks("notification-send", {}), "INVALID", FAILED);
  refused(await ana.asks("notification-send"), "INVALID", FAILED);
  refused(await ana.asks("notification-read-all", 7), "INVALID", "Failed to mark all notifications as read");
});
