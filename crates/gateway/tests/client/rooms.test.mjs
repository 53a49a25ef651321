// Rooms are joined by right, are one room in every namespace, and have no hole at the door.
import assert from "node:assert/strict";
import { DATABASES, Person, refused, silent, story, token, uniqueRoom, within } from "./harness.mjs";

const FAST = { env: { CARILLON_LIMITS__RATES__MESSAGE: "1000000/1m" } };

const sendsTo = async (person, message) =>
  assert.equal((await person.asks("send-message", { roomId: "algebra", message })).ok, true);
const refusesToJoin = async (person, roomId) =>
  refused(await person.asks("join-room", { roomId }), "FORBIDDEN", "Failed to join room");

story("a room with a reserved name is nobody's to join", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  for (const roomId of ["user:ben", "user:ana", "user:", "exam:1", "exam:0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b"]) {
    await refusesToJoin(ana, roomId);
    ana.says("join-room", { roomId });
    refused(await ana.hears("error"), "FORBIDDEN", "Failed to join room");
    ana.says("send-message", { roomId, message: "let me in" });
    refused(await ana.hears("error"), "NOT_A_MEMBER", "Failed to send message");
  }
  await silent("room-joined", ana);
  await silent("receive-message", ana, ben);
});

story("staff, too, join no reserved room by its name", {}, async (world) => {
  const admin = await world.person("admin", { claims: { role: "SUPER_ADMIN" } });
  await world.person("ben");
  for (const roomId of ["user:ben", "exam:1", "study-group:1"]) await refusesToJoin(admin, roomId);
});

story("other people's study groups are closed, whether they exist or not", {}, async (world) => {
  const ana = await world.person("ana");
  await refusesToJoin(ana, "study-group:0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b");
  await refusesToJoin(ana, "study-group:");
});

story("the socket id of somebody else is no room", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  const chat = await world.person("ben", { path: "/chat" });
  await refusesToJoin(ana, ben.socket.id);
  await refusesToJoin(ana, chat.socket.id);
  await refusesToJoin(ana, ana.socket.id);
  await ben.joins("algebra");
  await ben.asks("send-message", { roomId: "algebra", message: "private" });
  await silent("receive-message", ana);
});

story("a mentor's room is open to the mentor, to students and to staff", {}, async (world) => {
  const mentor = await world.person("m1", { claims: { role: "MENTOR" } });
  const student = await world.person("s1", { claims: { role: "STUDENT" } });
  const proctor = await world.person("p1", { claims: { role: "PROCTOR" } });
  for (const person of [student, mentor, proctor]) await person.joins("mentor:m1");
  await student.asks("send-message", { roomId: "mentor:m1", message: "may I ask?" });
  assert.equal((await mentor.hears("receive-message")).sender_id, "s1");
});

story("a student's mentoring room is open to that student and to staff only", {}, async (world) => {
  const student = await world.person("s1", { claims: { role: "STUDENT" } });
  const other = await world.person("s2", { claims: { role: "STUDENT" } });
  const mentor = await world.person("m1", { claims: { role: "MENTOR" } });
  await student.joins("mentor:s1");
  await mentor.joins("mentor:s1");
  await refusesToJoin(other, "mentor:s1");
  await refusesToJoin(other, "mentor:nobody");
  await refusesToJoin(other, "mentor:");
  await student.asks("send-message", { roomId: "mentor:s1", message: "my grades" });
  await mentor.hears("receive-message");
  await silent("receive-message", other);
});

story("a stranger to a room can do nothing in it", {}, async (world) => {
  const [ana, cleo] = await world.people("ana", "cleo");
  const room = uniqueRoom();
  await ana.joins(room);
  const { id } = await ana.asks("send-message", { roomId: room, message: "hello" });
  await ana.hears("receive-message");
  for (const [name, payload, message] of [
    ["send-message", { roomId: room, message: "me too" }, "Failed to send message"],
    ["typing-indicator", { roomId: room, isTyping: true }, undefined],
    ["mark-message-read", { messageId: id }, undefined],
    ["chat-history", { roomId: room }, undefined],
  ]) {
    const answer = await cleo.asks(name, payload);
    assert.deepEqual([answer.ok, answer.code, answer.retryable], [false, "NOT_A_MEMBER", false], name);
    if (message) assert.equal(answer.message, message);
  }
  for (const name of ["receive-message", "typing-indicator", "message-read"]) {
    await silent(name, ana, cleo);
  }
});

story("a member may send without joining again after a reconnect", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  ana.leaves();
  const back = await world.person("ana");
  assert.equal((await back.asks("send-message", { roomId: "algebra", message: "back" })).ok, true);
  assert.equal((await ben.hears("receive-message")).message, "back");
});

story("who sends into a room their page was lost from is shown it, and hears it again", { on: DATABASES }, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  for (const person of [ana, ben]) await person.joins("algebra");
  await sendsTo(ben, "before");
  ana.leaves();
  await sendsTo(ben, "meanwhile");
  // Two at once: the second may be judged before the first has put the page back.
  const back = await world.person("ana");
  const sent = ["back", "again"].map((message) => back.asks("send-message", { roomId: "algebra", message }));
  assert.deepEqual((await Promise.all(sent)).map((reply) => reply.seq), [3, 4]);
  const shown = (await back.hears("room-joined")).messages;
  assert.deepEqual(shown.map((message) => message.message), ["before", "meanwhile"]);
  for (const message of ["back", "again"]) assert.equal((await back.hears("receive-message")).message, message);
  await sendsTo(ben, "welcome");
  assert.equal((await back.hears("receive-message")).message, "welcome");
  assert.equal((await ben.hears("receive-message", (m) => m.seq === 4)).message, "again");
});

story("a room is one room in every namespace, and everybody hears everything once", {}, async (world) => {
  const paths = ["/", "/api", "/chat"];
  const people = [];
  for (const [index, path] of paths.entries()) {
    people.push(await world.person(`user${index}`, { path: path === "/" ? "" : path }));
  }
  for (const person of people) await person.joins("algebra");
  for (const [index, person] of people.entries()) {
    const { seq } = await person.asks("send-message", { roomId: "algebra", message: `from ${index}` });
    for (const listener of people) {
      assert.equal((await listener.hears("receive-message", (m) => m.seq === seq)).message, `from ${index}`);
    }
    person.says("typing-indicator", { roomId: "algebra", isTyping: true });
    for (const other of people.filter((one) => one !== person)) {
      assert.equal((await other.hears("typing-indicator")).userId, person.id);
    }
  }
  await silent("receive-message", ...people);
  await silent("typing-indicator", ...people);
});

story("two namespaces on one connection are two sockets in the room", {}, async (world) => {
  const ana = await world.person("ana");
  const chat = new Person(ana.socket.io.socket("/chat", { auth: { token: token("ana") } }), "ana");
  await within(5000, "the second namespace", new Promise((resolve) => {
    chat.socket.once("connect", resolve);
    chat.socket.connect();
  }));
  assert.notEqual(chat.socket.id, ana.socket.id);
  for (const socket of [ana, chat]) await socket.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "hi" });
  for (const socket of [ana, chat]) await socket.hears("receive-message");
  await silent("receive-message", ana, chat);
  await ana.asks("leave-room", { roomId: "algebra" });
  await chat.asks("send-message", { roomId: "algebra", message: "still here" });
  await chat.hears("receive-message");
  await silent("receive-message", ana);
});

story("an unknown namespace is refused by its name", {}, async (world) => {
  for (const path of ["/admin", "/Chat", "/chat/rooms"]) {
    await assert.rejects(world.person("ana", { path }), { message: "Invalid namespace" });
  }
  for (const path of ["/exam", "/leaderboard", "/notification", "/study-group"]) {
    assert.equal((await (await world.person("ana", { path })).asks("heartbeat")).ok, true);
  }
});

story("joining a busy room has no hole", { on: DATABASES, ...FAST }, async (world) => {
  const room = uniqueRoom();
  const publishers = await world.people("pub0", "pub1", "pub2", "pub3");
  for (const publisher of publishers) await publisher.joins(room);

  let over = false;
  const publishing = publishers.map(async (publisher) => {
    let last = 0;
    while (!over) {
      const answer = await publisher.asks("send-message", { roomId: room, message: "tick" });
      assert.equal(answer.ok, true);
      last = answer.seq;
    }
    return last;
  });

  const seen = [];
  for (let index = 0; index < 30; index += 1) {
    const joiner = await world.person(`join${index}`);
    const told = { id: joiner.id, seqs: [], early: 0, hasJoined: false };
    joiner.socket.on("receive-message", (message) => {
      if (!told.hasJoined) told.early += 1;
      told.seqs.push(message.seq);
    });
    joiner.socket.on("room-joined", ({ messages }) => {
      told.hasJoined = true;
      told.seqs.push(...messages.map((message) => message.seq));
    });
    await joiner.joins(room);
    seen.push({ joiner, told });
  }
  over = true;
  const last = Math.max(...(await Promise.all(publishing)));
  for (const { joiner, told } of seen) {
    await joiner.settled();
    const first = told.seqs[0];
    const expected = Array.from({ length: last - first + 1 }, (_, index) => first + index);
    assert.deepEqual(told.seqs, expected, `${told.id} misses, repeats or misorders a message`);
    assert.equal(told.early, 0, `${told.id} hears the room before it has joined`);
  }
});
