// Several nodes, and what goes wrong: Redis, nodes and links that end in the middle of things.
import assert from "node:assert/strict";
import { once } from "node:events";
import { DATABASES, Person, eventually, pause, within } from "./harness.mjs";
import { Redis, cutsOff, together } from "./cluster.mjs";
import { Balancer } from "./balancer.mjs";

const COMES_BACK = { reconnection: true, reconnectionDelay: 100, reconnectionDelayMax: 500 };
const range = (count) => Array.from({ length: count }, (_, at) => at + 1);

together("every member hears the same, whatever Redis and the network do", { nodes: 3 }, async (cluster) => {
  const rooms = Array.from({ length: 20 }, (_, at) => `room-${at}`);
  const MESSAGES = 30;
  const members = await Promise.all(rooms.flatMap((room) => [0, 1, 2].map(async (node) => {
    const person = await cluster.person(node, `${room}-${node}`, COMES_BACK);
    const member = { person, room, node, heard: [], resyncs: 0 };
    person.socket.on("receive-message", ({ seq }) => member.heard.push(seq));
    person.socket.on("carillon:resync", () => { member.resyncs += 1; });
    return member;
  })));
  await Promise.all(members.map(({ person, room }) => person.joins(room)));
  const speak = async (member) => {
    for (let count = 0; count < MESSAGES / 3; count += 1) {
      const clientMsgId = `${member.person.id}-${count}`;
      for (;;) {
        // Repeated until it is answered, as a client does that wants to be sure.
        const said = { roomId: member.room, message: clientMsgId, clientMsgId };
        const answer = await member.person.socket.timeout(3000).emitWithAck("send-message", said).catch(() => null);
        if (answer?.ok) break;
        await pause(100);
      }
      if (Math.random() < 0.01 * 3) await cutsOff(member.person);
    }
  };
  const speaking = Promise.all(members.map(speak));
  await pause(400);
  await cluster.redis.kill();
  await pause(1500);
  await cluster.redis.launch();
  await within(60_000, "everything is said", speaking);
  await eventually("everything is heard", () => members.every(({ heard }) => heard.length >= MESSAGES), 5000).catch(() => {});
  for (const { person, heard, resyncs } of members) {
    assert.deepEqual([person.id, heard, resyncs], [person.id, range(MESSAGES), 0]);
  }
});

together("a deadline comes though the node that watched it is gone", { nodes: 3 }, async (cluster) => {
  const closesAt = Date.now() + 9_000;
  const exam = {
    title: "Anatomy", durationMinutes: 10, attemptsAllowed: 1, closesAt: new Date(closesAt).toISOString(),
    questions: [{ id: "q0", kind: "single_choice", text: "?", options: ["a", "b"], correct: 1 }],
  };
  assert.equal((await cluster.nodes[0].api("PUT", "/v1/exams/anatomy", exam)).status, 200);
  const students = await Promise.all(range(12).map((at) => cluster.person(at % 3, `s${at}`)));
  for (const [at, student] of students.entries()) {
    student.says("join-exam", { examId: "anatomy" });
    const { participantCount } = await student.hears("exam-joined");
    // Of all nodes.
    assert.equal(participantCount, at + 1);
    assert.equal((await student.asks("exam-answer", { examId: "anatomy", questionIndex: 0, answer: 1 })).ok, true);
  }
  const staying = students.filter((_, at) => (at + 1) % 3 === 2);
  await pause(closesAt - 2_000 - Date.now());
  cluster.nodes[1].child.kill("SIGSTOP");
  await pause(closesAt - 1_000 - Date.now());
  await cluster.nodes[0].kill();
  const attempts = async () => (await cluster.nodes[2].api("GET", "/v1/exams/anatomy/attempts?limit=100")).body.items;
  await eventually("all attempts are final", async () => (await attempts()).every(({ status }) => status === "COMPLETED"), 15_000);
  assert.ok(Date.now() < closesAt + 12_000, "within 12 s");
  await Promise.all(staying.map((student) => student.hears("exam-completed")));
  // The node that slept does nothing a second time.
  await pause(Math.max(0, closesAt + 6_000 - Date.now()));
  cluster.nodes[1].child.kill("SIGCONT");
  await pause(3_000);
  const final = await attempts();
  assert.equal(final.length, 12);
  for (const attempt of final) {
    assert.equal(Date.parse(attempt.completedAt), closesAt, JSON.stringify(attempt));
    assert.equal(attempt.deadlineAt, attempt.completedAt);
  }
  const { body } = await cluster.nodes[2].api("GET", "/v1/exams/anatomy/results?limit=100");
  assert.equal(body.items.length, 12);
  await Promise.all(staying.map((student) => student.settled()));
  for (const student of staying) assert.deepEqual(student.unheard("exam-completed"), []);
});

together("nodes are restarted one after the other, and nobody loses anything", { nodes: 3, env: { CARILLON_CLUSTER__ADVERTISE: "127.0.0.1" } }, async (cluster) => {
  const balancer = await Balancer.over(cluster.nodes);
  cluster.keep({ dispose: () => balancer.close() });
  const people = await Promise.all(range(60).map(async (at) => {
    const person = await Person.connect({ url: balancer.url }, `p${at}`, { ...COMES_BACK, transports: at % 2 ? ["websocket"] : ["polling", "websocket"] });
    cluster.keep({ dispose: () => person.leaves() });
    return { person, room: `room-${at % 10}`, heard: [], acknowledged: [], refused: 0, most: 0 };
  }));
  const watcher = await Person.connect({ url: balancer.url }, "watcher", COMES_BACK);
  cluster.keep({ dispose: () => watcher.leaves() });
  await watcher.joins("room-0");
  for (const one of people) {
    await one.person.joins(one.room);
    one.person.socket.on("receive-message", ({ client_msg_id, clientMsgId, message }) => one.heard.push(clientMsgId ?? client_msg_id ?? message));
    // Who could not go on is shown the room instead, and told so.
    one.shown = new Set();
    one.person.socket.on("room-joined", ({ messages }) => messages.forEach((message) => one.shown.add(message.clientMsgId)));
    one.person.socket.on("disconnect", () => { one.gone = Date.now(); one.refused = 0; });
    one.person.socket.io.on("reconnect_error", () => { one.refused += 1; one.most = Math.max(one.most, one.refused); });
    one.person.socket.on("connect", () => { one.back = Math.max(one.back ?? 0, Date.now() - one.gone); });
  }
  let isOver = false;
  const speak = async (one) => {
    for (let count = 0; !isOver && count < 50; count += 1) {
      const clientMsgId = `${one.person.id}-${count}`;
      for (let tries = 0; tries < 20; tries += 1) {
        const said = { roomId: one.room, message: clientMsgId, clientMsgId };
        const answer = await one.person.socket.timeout(4000).emitWithAck("send-message", said).catch(() => null);
        if (answer?.ok) { one.acknowledged.push(clientMsgId); break; }
        await pause(100);
      }
      await pause(1_200);
    }
  };
  const speaking = Promise.all(people.map(speak));
  for (const node of [...cluster.nodes]) {
    const began = Date.now();
    balancer.takeOut(node);
    const { code } = await node.terminate();
    assert.equal(code, 0);
    assert.ok(Date.now() - began < 20_000, "gone within 20 s");
    await node.restart();
    balancer.nodes.push(node);
    await cluster.together(10_000);
    await eventually("everybody is back", () => people.every(({ person }) => person.socket.connected), 10_000);
  }
  isOver = true;
  await speaking;
  let lost;
  await eventually("everything is heard", () => people.every((one) => {
    const said = people.filter(({ room }) => room === one.room).flatMap(({ acknowledged }) => acknowledged);
    const missing = said.filter((id) => !one.heard.includes(id) && !one.shown.has(id));
    if (missing.length) lost = [one.person.id, missing, one.person.unheard("carillon:resync"), one.person.socket.recovered];
    return missing.length === 0;
  }), 8000).catch((error) => { throw new Error(`${error.message}: ${JSON.stringify(lost)}`); });
  for (const one of people) {
    assert.equal(new Set(one.heard).size, one.heard.length, `${one.person.id} hears nothing twice`);
    assert.ok(one.most <= 3, `refused ${one.most} times in a row`);
  }
  const times = people.map(({ back }) => back).sort((a, b) => a - b);
  assert.ok(times.at(-1) < 8_000, `back after ${times.at(-1)} ms`);
  // Nobody was shown offline for it.
  assert.deepEqual(watcher.unheard("user-status-change").filter(({ status }) => status === "offline"), []);
});

together("a Redis with a password is one like any other", { on: [DATABASES[0]], nodes: 0 }, async (cluster) => {
  const redis = cluster.keep(await Redis.start());
  await redis.kill();
  await redis.launch("--requirepass", "a secret");
  cluster.options.env.REDIS_URL = `redis://:a%20secret@127.0.0.1:${redis.port}`;
  const node = await cluster.add();
  await eventually("it is let in", async () => (await node.metric("carillon_redis_up")) === 1);
  assert.ok(!(await node.run("config", "show")).includes("a%20secret"));
  assert.ok(!node.log.some((line) => line.includes("a secret") || line.includes("a%20secret")));
});

together("a text at the end of a foreign event is no offset", { on: [DATABASES[0]], nodes: 1 }, async (cluster) => {
  const { io } = await cluster.peer();
  const ana = await cluster.person(0, "ana", COMES_BACK);
  await ana.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "one" });
  await ana.hears("receive-message");
  const { id } = ana.socket;
  for (const args of [[], ["a text"], [1, "text"]]) {
    io.to("algebra").emit("foreign", ...args);
    await new Promise((resolve) => ana.socket.once("foreign", resolve));
    await pause(200);
    const back = once(ana.socket, "connect");
    await cutsOff(ana);
    await within(5000, "Ana is back", back);
    assert.deepEqual([ana.socket.recovered, ana.socket.id], [true, id], JSON.stringify(args));
  }
});
