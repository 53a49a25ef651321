// Study groups: places, owners and rooms, and who hears what.
import assert from "node:assert/strict";
import { DATABASES, refused, silent, story } from "./harness.mjs";

const FAST = {
  env: {
    CARILLON_LIMITS__RATES__STUDY_GROUP: "100000/1m",
    CARILLON_LIMITS__RATES__MESSAGE: "100000/1m",
  },
};
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const KEYS = [
  "id", "name", "description", "room_id", "creator_id", "members", "max_members", "specialty",
  "is_public", "created_at", "updated_at", "owner_id",
];
const NOBODY = "0190a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b";
const NOT_FOUND = "Study group not found";

async function creates(person, group = {}) {
  const answer = await person.asks("study-group-create", { name: "Evenings", ...group });
  assert.equal(answer.ok, true, JSON.stringify(answer));
  await person.hears("study-group-created", ({ id }) => id === answer.group.id);
  return answer.group;
}

async function joins(person, group) {
  const answer = await person.asks("study-group-join", { groupId: group.id });
  assert.equal(answer.ok, true, JSON.stringify(answer));
  return person.hears("study-group-joined", (e) => e.group.id === group.id);
}

/** A group of these people, the first of them its owner; everybody has heard everything so far. */
async function groupOf(world, ids, options) {
  const people = await world.people(...ids);
  const group = await creates(people[0], options);
  for (const person of people.slice(1)) await joins(person, group);
  for (const person of people) {
    await person.settled();
    person.forget();
  }
  return [group, ...people];
}

const says = (person, group, message) => person.asks("study-group-message", { groupId: group.id, message });

story("who creates a group is its owner and only member, and everybody learns of it", { on: DATABASES }, async (world) => {
  const [ana, tab, ben] = await world.people("ana", "ana", "ben");
  const answer = await ana.asks("study-group-create", {
    name: "  <b>Hearts</b> & valves ", description: "Case\n<script>x</script>discussions", specialty: "Cardiology", maxMembers: 4,
  });
  const group = await ana.hears("study-group-created");
  assert.deepEqual(answer, { ok: true, group, roomId: group.room_id });
  assert.deepEqual(await tab.hears("study-group-created"), group);
  assert.deepEqual(Object.keys(group), KEYS);
  const { id, room_id, created_at, updated_at, ...rest } = group;
  assert.deepEqual(rest, {
    name: "Hearts & valves", description: "Case\ndiscussions", creator_id: "ana", members: ["ana"], max_members: 4,
    specialty: "Cardiology", is_public: true, owner_id: "ana",
  });
  assert.match(id, UUID);
  assert.match(room_id.replace(/^study-group:/, ""), UUID);
  assert.match(created_at, ISO);
  assert.equal(updated_at, created_at);
  for (const person of [ana, tab, ben]) {
    assert.deepEqual(await person.hears("study-group-available"), {
      id, name: "Hearts & valves", description: "Case\ndiscussions", specialty: "Cardiology",
      currentMembers: 1, maxMembers: 4,
    });
  }
  await silent("study-group-created", ana, tab, ben);
});

story("a private group is announced to nobody; what is left out has a default", {}, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  const group = await creates(ana, { isPublic: false });
  assert.deepEqual(
    [group.description, group.specialty, group.max_members, group.is_public],
    [null, null, 10, false],
  );
  await silent("study-group-available", ana, ben);
});

const REFUSALS = [
  ["study-group-create", {}, "INVALID", "Group name is required"],
  ["study-group-create", { name: "" }, "INVALID", "Group name is required"],
  ["study-group-create", { name: "<script>x</script>" }, "INVALID", "Group name is required"],
  ["study-group-create", { name: 7 }, "INVALID", "Group name is required"],
  ["study-group-create", { name: "x".repeat(256) }, "INVALID", "Failed to create study group"],
  ["study-group-create", { name: "x", description: "x".repeat(2001) }, "INVALID", "Failed to create study group"],
  ["study-group-create", { name: "x", specialty: "x".repeat(101) }, "INVALID", "Failed to create study group"],
  ["study-group-create", { name: "x", maxMembers: 1 }, "INVALID", "Failed to create study group"],
  ["study-group-create", { name: "x", maxMembers: 501 }, "INVALID", "Failed to create study group"],
  ["study-group-create", { name: "x", maxMembers: -5 }, "INVALID", "Failed to create study group"],
  ["study-group-create", { name: "x", maxMembers: "10" }, "INVALID", "Failed to create study group"],
  ["study-group-join", {}, "INVALID", "Group ID is required"],
  ["study-group-join", { groupId: 7 }, "INVALID", "Group ID is required"],
  ["study-group-join", { groupId: NOBODY }, "NOT_FOUND", NOT_FOUND],
  ["study-group-join", { groupId: "no uuid" }, "NOT_FOUND", NOT_FOUND],
  ["study-group-leave", {}, "INVALID", "Group ID is required"],
  ["study-group-leave", { groupId: NOBODY }, "NOT_FOUND", NOT_FOUND],
  ["study-group-message", {}, "INVALID", "Group ID and message are required"],
  ["study-group-message", { groupId: NOBODY }, "INVALID", "Group ID and message are required"],
  ["study-group-message", { groupId: NOBODY, message: "hi" }, "NOT_FOUND", NOT_FOUND],
  ["study-group-invite", { groupId: NOBODY, userId: "ana" }, "NOT_FOUND", NOT_FOUND],
  ["study-group-kick", { groupId: NOBODY, userId: "ana" }, "NOT_FOUND", NOT_FOUND],
];

story("a refusal has the contract's text, as an error event and as an acknowledgement", FAST, async (world) => {
  const ana = await world.person("ana");
  for (const [name, payload, code, message] of REFUSALS) {
    refused(await ana.asks(name, payload), code, message);
    ana.says(name, payload);
    refused(await ana.hears("error"), code, message);
  }
  for (const name of ["study-group-created", "study-group-available", "study-group-joined"]) await silent(name, ana);
});

story("who joins is shown the group with them in it, and the room hears it with them", { on: DATABASES }, async (world) => {
  const [ana, ben, tab, cleo] = await world.people("ana", "ben", "ben", "cleo");
  const group = await creates(ana, { maxMembers: 2 });
  const answer = await ben.asks("study-group-join", { groupId: group.id });
  for (const socket of [ben, tab]) {
    const joined = await socket.hears("study-group-joined");
    assert.deepEqual(Object.keys(joined), ["group", "roomId"]);
    assert.deepEqual({ ok: true, ...joined }, answer);
    assert.deepEqual({ ...joined.group, updated_at: group.updated_at }, { ...group, members: ["ana", "ben"] });
    assert.equal(joined.roomId, group.room_id);
  }
  for (const socket of [ana, ben, tab]) {
    assert.deepEqual(await socket.hears("study-group-member-joined"), {
      groupId: group.id, userId: "ben", userName: "ben Name", memberCount: 2,
    });
  }
  refused(await ben.asks("study-group-join", { groupId: group.id }), "ALREADY_MEMBER", "Already a member of this group");
  refused(await cleo.asks("study-group-join", { groupId: group.id }), "GROUP_FULL", "Study group is full");
  await silent("study-group-member-joined", ana, ben, tab, cleo);
  await silent("study-group-joined", ana, ben, tab, cleo);

  // Every socket of a member hears what is said, however it is said.
  await says(ana, group, "welcome");
  await tab.asks("send-message", { roomId: group.room_id, message: "thanks" });
  for (const socket of [ana, ben, tab]) {
    for (const message of ["welcome", "thanks"]) {
      assert.equal((await socket.hears("receive-message")).message, message);
    }
  }
  await silent("receive-message", ana, ben, tab, cleo);
});

story("a message to a group is a message to its room", { on: DATABASES }, async (world) => {
  const [group, ana, ben] = await groupOf(world, ["ana", "ben"]);
  const cleo = await world.person("cleo");
  const one = await says(ana, group, "<b>hi</b><script>x</script>");
  const heard = await ben.hears("receive-message");
  assert.deepEqual(one, { ok: true, id: heard.id, roomId: group.room_id, seq: 1, createdAt: heard.created_at });
  const two = await ben.asks("send-message", { roomId: group.room_id, message: "<b>hi</b>" });
  assert.deepEqual(Object.keys(two), Object.keys(one));
  const other = await ana.hears("receive-message", ({ seq }) => seq === 2);
  assert.deepEqual(Object.keys(other), Object.keys(heard));
  assert.deepEqual([heard.message, heard.message_type, heard.room_id], [other.message, other.message_type, other.room_id]);
  const keyed = { groupId: group.id, message: "once", clientMsgId: "k" };
  const [first, again] = [await ana.asks("study-group-message", keyed), await ana.asks("study-group-message", keyed)];
  assert.deepEqual(again, first);

  refused(await says(cleo, group, "me too"), "NOT_A_MEMBER", "Not a member of this group");
  refused(await says(ana, group, "<script>x</script>"), "INVALID", "Group ID and message are required");
  refused(
    await cleo.asks("send-message", { roomId: group.room_id, message: "me too" }),
    "NOT_A_MEMBER", "Failed to send message",
  );
  refused(await cleo.asks("join-room", { roomId: group.room_id }), "FORBIDDEN", "Failed to join room");
  const { messages } = await ben.joins(group.room_id);
  assert.deepEqual(messages.map(({ seq }) => seq), [1, 2, 3]);
});

story("group messages and room messages are counted together", { env: { CARILLON_LIMITS__RATES__MESSAGE: "4/1h" } }, async (world) => {
  const [group, ana] = await groupOf(world, ["ana"]);
  for (let n = 0; n < 2; n += 1) {
    assert.equal((await says(ana, group, "a")).ok, true);
    assert.equal((await ana.asks("send-message", { roomId: group.room_id, message: "b" })).ok, true);
  }
  for (const answer of [
    await says(ana, group, "c"),
    await ana.asks("send-message", { roomId: group.room_id, message: "c" }),
  ]) {
    refused(answer, "RATE_LIMITED", "Rate limit exceeded. Please slow down.", true);
  }
});

story("a private group is absent to those who are not invited, and the invited are told", { on: DATABASES }, async (world) => {
  const [group, ana, ben] = await groupOf(world, ["ana"], { isPublic: false }).then(async ([g, a]) => [g, a, await world.person("ben")]);
  const cleo = await world.person("cleo");
  const absent = await ben.asks("study-group-join", { groupId: NOBODY });
  for (const [name, more] of [
    ["study-group-join"], ["study-group-leave"], ["study-group-message", { message: "hi" }],
    ["study-group-invite", { userId: "ben" }], ["study-group-kick", { userId: "ana" }],
  ]) {
    refused(await ben.asks(name, { groupId: group.id, ...more }), "NOT_FOUND", NOT_FOUND);
  }
  assert.deepEqual(await ben.asks("study-group-join", { groupId: group.id }), absent);

  const invitation = { groupId: group.id, userId: "ben" };
  for (let again = 0; again < 2; again += 1) {
    assert.deepEqual(await ana.asks("study-group-invite", invitation), { ok: true, ...invitation });
  }
  const told = await ben.hears("new-notification");
  assert.equal(told.data.groupId, group.id);
  assert.match(told.message, /ana Name/);
  await silent("new-notification", ben, cleo);
  refused(await cleo.asks("study-group-join", { groupId: group.id }), "NOT_FOUND", NOT_FOUND);
  assert.equal((await joins(ben, group)).group.members.length, 2);

  // Members who are neither owner nor admin invite and remove nobody.
  refused(
    await ben.asks("study-group-invite", { groupId: group.id, userId: "cleo" }),
    "FORBIDDEN", "Failed to invite to study group",
  );
  refused(
    await ben.asks("study-group-kick", { groupId: group.id, userId: "ana" }),
    "FORBIDDEN", "Failed to remove from study group",
  );
  refused(await ana.asks("study-group-invite", invitation), "ALREADY_MEMBER", "Already a member of this group");
  refused(
    await ana.asks("study-group-invite", { groupId: group.id, userId: "nobody" }),
    "INVALID", "Failed to invite to study group",
  );
  // An invitation is used up.
  await ben.asks("study-group-leave", { groupId: group.id });
  refused(await ben.asks("study-group-join", { groupId: group.id }), "NOT_FOUND", NOT_FOUND);
});

story("who leaves hears nothing more; who remains hears that they have left", { on: DATABASES }, async (world) => {
  const [group, ana, ben, cleo] = await groupOf(world, ["ana", "ben", "cleo"]);
  const tab = await world.person("ben");
  assert.deepEqual(await ben.asks("study-group-leave", { groupId: group.id }), { ok: true, groupId: group.id });
  for (const socket of [ben, tab]) assert.deepEqual(await socket.hears("study-group-left"), { groupId: group.id });
  for (const socket of [ana, cleo]) {
    assert.deepEqual(await socket.hears("study-group-member-left"), {
      groupId: group.id, userId: "ben", userName: "ben Name", memberCount: 2,
    });
  }
  await says(ana, group, "gone?");
  await cleo.hears("receive-message");
  await silent("receive-message", ben, tab);
  await silent("study-group-member-left", ben, tab);
  await silent("study-group-owner-changed", ana, cleo);
  await silent("study-group-left", ana, cleo);
  refused(await ben.asks("study-group-leave", { groupId: group.id }), "NOT_A_MEMBER", "Failed to leave study group");
  await silent("study-group-member-left", ana, cleo);
  refused(await ben.asks("join-room", { roomId: group.room_id }), "FORBIDDEN", "Failed to join room");
  assert.deepEqual((await joins(ben, group)).group.members, ["ana", "cleo", "ben"]);
});

story("an owner who leaves is followed by the oldest member; the last to leave ends the group", { on: DATABASES }, async (world) => {
  const [group, ana, ben, cleo] = await groupOf(world, ["ana", "ben", "cleo"]);
  const stranger = await world.person("dan");
  await ana.asks("study-group-leave", { groupId: group.id });
  for (const socket of [ben, cleo]) {
    assert.deepEqual(await socket.hears("study-group-owner-changed"), { groupId: group.id, ownerId: "ben" });
  }
  assert.equal((await joins(ana, group)).group.owner_id, "ben");
  assert.equal((await ben.asks("study-group-kick", { groupId: group.id, userId: "ana" })).memberCount, 2);
  await ben.asks("study-group-leave", { groupId: group.id });
  await cleo.hears("study-group-owner-changed", ({ ownerId }) => ownerId === "cleo");
  await silent("study-group-deleted", ana, ben, cleo, stranger);
  await cleo.asks("study-group-leave", { groupId: group.id });
  for (const person of [ana, ben, cleo, stranger]) {
    assert.deepEqual(await person.hears("study-group-deleted"), { groupId: group.id });
  }
  for (const person of [ana, cleo]) {
    refused(await person.asks("study-group-join", { groupId: group.id }), "NOT_FOUND", NOT_FOUND);
    refused(await says(person, group, "hello?"), "NOT_FOUND", NOT_FOUND);
    refused(await person.asks("join-room", { roomId: group.room_id }), "FORBIDDEN", "Failed to join room");
  }
  await silent("study-group-deleted", ana, ben, cleo, stranger);
});

story("who is removed is out at once, with every socket and for those that come later", { on: DATABASES, ...FAST }, async (world) => {
  const [group, ana, ben, cleo] = await groupOf(world, ["ana", "ben", "cleo"]);
  const tab = await world.person("ben", { path: "/chat" });
  await tab.joins(group.room_id);
  const answer = await ana.asks("study-group-kick", { groupId: group.id, userId: "ben" });
  assert.deepEqual(answer, { ok: true, groupId: group.id, userId: "ben", memberCount: 2 });
  await says(cleo, group, "just us");
  await ben.hears("study-group-left");
  const late = await world.person("ben");
  for (const socket of [ana, cleo]) {
    assert.equal((await socket.hears("study-group-member-left")).userId, "ben");
    await socket.hears("receive-message");
  }
  await says(ana, group, "and again");
  for (const socket of [ben, tab, late]) {
    await silent("receive-message", socket);
    refused(await socket.asks("send-message", { roomId: group.room_id, message: "hi" }), "NOT_A_MEMBER", "Failed to send message");
    refused(await socket.asks("chat-history", { roomId: group.room_id }), "NOT_A_MEMBER", "Failed to load messages");
    refused(await socket.asks("join-room", { roomId: group.room_id }), "FORBIDDEN", "Failed to join room");
  }
  refused(
    await ana.asks("study-group-kick", { groupId: group.id, userId: "ben" }),
    "NOT_A_MEMBER", "Not a member of this group",
  );
  refused(
    await ana.asks("study-group-kick", { groupId: group.id, userId: "ana" }),
    "FORBIDDEN", "Failed to remove from study group",
  );
});

story("a member who comes back hears the group without asking", { on: DATABASES }, async (world) => {
  const [group, ana, ben] = await groupOf(world, ["ana", "ben"]);
  ben.leaves();
  const back = await world.person("ben");
  const chat = await world.person("ben", { path: "/chat" });
  await back.settled();
  await chat.settled();
  await says(ana, group, "hello again");
  for (const socket of [back, chat]) assert.equal((await socket.hears("receive-message")).message, "hello again");
  await silent("receive-message", back, chat);
  await world.server.kill();
  await world.server.restart();
  const [one, other] = [await world.person("ana"), await world.person("ben")];
  await other.settled();
  await says(one, group, "after the fall");
  assert.equal((await other.hears("receive-message")).message, "after the fall");
});

story("five places have five takers, however many come at once", { on: DATABASES, ...FAST }, async (world) => {
  const owner = await world.person("owner");
  const group = await creates(owner, { maxMembers: 6 });
  const people = await world.people(...Array.from({ length: 20 }, (_, n) => `p${n}`));
  const answers = await Promise.all(people.map((one) => one.asks("study-group-join", { groupId: group.id })));
  const inside = people.filter((_, n) => answers[n].ok);
  assert.equal(inside.length, 5);
  for (const answer of answers.filter(({ ok }) => !ok)) refused(answer, "GROUP_FULL", "Study group is full");
  const counts = [];
  for (let n = 2; n <= 6; n += 1) counts.push((await owner.hears("study-group-member-joined")).memberCount);
  assert.deepEqual(counts, [2, 3, 4, 5, 6]);
  await silent("study-group-member-joined", owner);

  // Everybody leaves at once: one deletion, one owner after another until then.
  const everybody = [owner, ...inside];
  const left = await Promise.all(everybody.map((one) => one.asks("study-group-leave", { groupId: group.id })));
  assert.ok(left.every(({ ok }) => ok));
  for (const person of [owner, ...people]) await person.hears("study-group-deleted");
  await silent("study-group-deleted", owner, ...people);
});

story("members hear exactly what was said while they were members", { on: DATABASES, ...FAST }, async (world) => {
  const owner = await world.person("owner");
  const group = await creates(owner, { maxMembers: 10 });
  const speaker = await world.person("speaker");
  await joins(speaker, group);
  let over = false;
  const speaking = (async () => {
    while (!over) assert.equal((await says(speaker, group, "tick")).ok, true);
  })();
  const order = [];
  owner.socket.on("receive-message", ({ seq }) => order.push(seq));
  owner.socket.on("study-group-member-joined", ({ userId }) => order.push(`+${userId}`));
  owner.socket.on("study-group-member-left", ({ userId }) => order.push(`-${userId}`));
  const guests = await world.people("g0", "g1", "g2", "g3");
  for (const guest of guests) {
    guest.order = [];
    guest.socket.on("receive-message", ({ seq }) => guest.order.push(seq));
  }
  for (let round = 0; round < 5; round += 1) {
    await Promise.all(guests.map(async (guest, n) => {
      await joins(guest, group);
      if (n % 2) await guest.asks("study-group-leave", { groupId: group.id });
      else await owner.asks("study-group-kick", { groupId: group.id, userId: guest.id });
    }));
  }
  over = true;
  await speaking;
  await Promise.all([owner, ...guests].map((person) => person.settled()));
  // What each guest heard is what the owner heard between their coming and their going.
  for (const guest of guests) {
    let isIn = false;
    const expected = [];
    for (const entry of order) {
      if (entry === `+${guest.id}`) isIn = true;
      else if (entry === `-${guest.id}`) isIn = false;
      else if (isIn && typeof entry === "number") expected.push(entry);
    }
    assert.deepEqual(guest.order, expected, `${guest.id} hears too much or too little`);
  }
});

story("a group is one group in every namespace", {}, async (world) => {
  const ana = await world.person("ana", { path: "/study-group" });
  const ben = await world.person("ben", { path: "/api" });
  const group = await creates(ana);
  await ben.hears("study-group-available", ({ id }) => id === group.id);
  await joins(ben, group);
  assert.equal((await ana.hears("study-group-member-joined")).userId, "ben");
  await says(ana, group, "hi");
  assert.equal((await ben.hears("receive-message")).message, "hi");
});
