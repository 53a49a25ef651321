// Fault experiments: what is done to a cluster, and what comes of it, measured. Stories ask of it what
// must hold at a small size; scripts/drill does so at full size and prints it.
import { once } from "node:events";
import { io as connect } from "socket.io-client";
import { FaultProxy } from "./faults.mjs";
import { Person, eventually, pause, within } from "./harness.mjs";
import { NodePeer, cutsOff } from "./cluster.mjs";
import { Crowd, audit, quantile } from "./crowd.mjs";

export const COMES_BACK = { reconnection: true, reconnectionDelay: 100, reconnectionDelayMax: 500 };
export const range = (count) => Array.from({ length: count }, (_, at) => at + 1);

/** Members of rooms at several places, one of each room at each place, who talk and keep count. */
export class Talk {
  #isOver = false;

  /**
   * Each member says `each` messages, `everyMs`, and is cut off after one with the likelihood `cuts`.
   * `places` are what they connect to: the nodes, unless said otherwise.
   */
  static async begin(cluster, { rooms = 4, each = Infinity, everyMs = 100, cuts = 0, patienceMs = 3000, prefix = "", places = cluster.nodes, options = COMES_BACK } = {}) {
    const talk = new Talk();
    talk.places = places;
    talk.rooms = Array.from({ length: rooms }, (_, at) => `${prefix}room-${at}`);
    talk.members = await Promise.all(talk.rooms.flatMap((room) => places.map(async (place, at) => {
      const person = await Person.connect(place, `${room}-${at}`, options);
      cluster.keep({ dispose: () => person.leaves() });
      return Talk.#member(person, room, at);
    })));
    await Promise.all(talk.members.map(({ person, room }) => person.joins(room)));
    talk.said = Promise.all(talk.members.map((member) => talk.#speaks(member, { each, everyMs, cuts, patienceMs })));
    return talk;
  }

  static #member(person, room, place) {
    const member = { person, room, place, heard: [], resyncs: 0, answers: [], refused: [], acknowledged: [], typing: new Map(), foreign: 0, lost: [], recovered: 0 };
    const { socket } = person;
    socket.on("receive-message", ({ seq }) => member.heard.push(seq));
    socket.on("carillon:resync", () => { member.resyncs += 1; });
    socket.on("typing-indicator", ({ userId }) => member.typing.set(userId, Date.now()));
    socket.on("foreign", (at) => { member.foreign = Math.max(member.foreign, at); });
    socket.on("disconnect", (reason) => member.lost.push(reason));
    socket.on("connect", () => { if (socket.recovered) member.recovered += 1; });
    return member;
  }

  async #speaks(member, { each, everyMs, cuts, patienceMs }) {
    for (let count = 0; count < each && !this.#isOver; count += 1) {
      const clientMsgId = `${member.person.id}-${count}`;
      for (;;) {
        const began = Date.now();
        // Repeated until it is answered, as a client does that wants to be sure.
        const said = { roomId: member.room, message: clientMsgId, clientMsgId };
        const answer = await member.person.socket.timeout(patienceMs).emitWithAck("send-message", said).catch(() => null);
        if (answer?.ok) {
          member.answers.push([Date.now(), Date.now() - began]);
          member.acknowledged.push(clientMsgId);
          break;
        }
        member.refused.push([Date.now(), answer?.code ?? "late"]);
        await pause(100);
      }
      if (Math.random() < cuts) await cutsOff(member.person);
      if (everyMs) await pause(everyMs * (0.5 + Math.random()));
    }
  }

  /** Ends the talk; everything said has been acknowledged then. */
  async ends(ms = 60_000) {
    this.#isOver = true;
    await within(ms, "everything is said", this.said);
  }

  /** Who has not heard everything once and in order; waits a moment for what is under way. */
  async faults(ms = 5000) {
    const all = new Map();
    for (const { room, acknowledged } of this.members) all.set(room, (all.get(room) ?? 0) + acknowledged.length);
    await eventually("everything is heard", () => this.members.every(({ room, heard }) => heard.length >= all.get(room)), ms).catch(() => {});
    return this.members.flatMap(({ person, room, heard, resyncs }) => {
      const expected = range(all.get(room));
      const isWhole = heard.length === expected.length && heard.every((seq, at) => seq === at + 1);
      if (isWhole && resyncs === 0) return [];
      const at = heard.findIndex((seq, index) => seq !== index + 1);
      return [`${person.id} heard ${heard.length} of ${expected.length}, first wrong at ${at < 0 ? heard.length : at}: ${heard.slice(Math.max(0, at - 2), at + 3)}; ${resyncs} resyncs`];
    });
  }

  /** How long answers took that came between two moments. */
  answers(from, to = Date.now()) {
    return this.members.flatMap(({ answers }) => answers.filter(([at]) => at >= from && at <= to).map(([, ms]) => ms));
  }

  refused(from, to = Date.now()) {
    return this.members.flatMap(({ refused }) => refused.filter(([at]) => at >= from && at <= to).map(([, code]) => code));
  }

  get heard() {
    return this.members.reduce((sum, { heard }) => sum + heard.length, 0);
  }

  /** Each of a room hears each other of it type, from now on: what only Redis carries. */
  async crosses(ms) {
    const room = this.members.filter((member) => member.room === this.rooms[0]);
    const began = Date.now();
    let isTyping = false;
    await eventually("typing crosses between all nodes", async () => {
      isTyping = !isTyping;
      for (const { person } of room) person.says("typing-indicator", { roomId: this.rooms[0], isTyping });
      await pause(100);
      return room.every((one) => room.every((other) => one === other || (one.typing.get(other.person.id) ?? 0) > began));
    }, ms);
    return Date.now() - began;
  }

  /** A Node server's words reach the members at every place, and theirs its client. */
  async crossesTo(peer, ms) {
    const [room] = this.rooms;
    const members = this.members.filter((member) => member.room === room);
    const began = Date.now();
    await eventually("broadcasts cross to the Node server and back", async () => {
      peer.io.to(room).emit("foreign", Date.now());
      for (const { person } of members) person.says("typing-indicator", { roomId: room, isTyping: true });
      await pause(100);
      return members.every(({ foreign, person }) => foreign > began && (peer.typing.get(person.id) ?? 0) > began);
    }, ms);
    return Date.now() - began;
  }
}

/** A Node server on that Redis, with a client of its own who is in the rooms of the talk. */
export async function nodePeer(cluster, talk, redis) {
  const peer = await NodePeer.start(redis);
  peer.io.on("connection", (socket) => socket.join(talk.rooms));
  peer.typing = new Map();
  const zoe = connect(peer.url, { transports: ["websocket"], forceNew: true });
  let isGone = false;
  peer.leaves = async () => {
    if (isGone) return;
    isGone = true;
    zoe.disconnect();
    await peer.dispose();
  };
  cluster.keep({ dispose: () => peer.leaves() });
  zoe.on("typing-indicator", ({ userId }) => peer.typing.set(userId, Date.now()));
  await once(zoe, "connect");
  return peer;
}

/** What every node says of itself. */
async function readiness(nodes) {
  return Promise.all(nodes.map(async (node) => {
    const response = await fetch(`${node.url}/readyz`);
    const body = await response.json();
    return { status: response.status, detail: body.detail };
  }));
}

/**
 * Something happens to Redis while people talk, and ends again. `isAway`: it cannot be reached
 * meanwhile, and the nodes are to say so.
 */
export async function redisFault(cluster, talk, peer, { breaks, mends = () => {}, holdMs, isAway = false }) {
  const peerBeforeMs = await talk.crossesTo(peer, 8000);
  const began = Date.now();
  await breaks();
  const seen = [];
  let degradedMs;
  while (Date.now() - began < holdMs) {
    const all = await readiness(cluster.nodes);
    seen.push(...all.map(({ status }) => status));
    if (degradedMs === undefined && all.every(({ detail }) => detail === "degraded")) degradedMs = Date.now() - began;
    await pause(100);
  }
  const ended = Date.now();
  const during = talk.answers(began, ended);
  const refused = talk.refused(began, ended);
  await mends();
  const [backMs, peerBackMs] = await Promise.all([talk.crosses(20_000), talk.crossesTo(peer, 20_000)].map((one) => one.catch(() => Infinity)));
  await eventually("the nodes say so", async () => (await readiness(cluster.nodes)).every(({ detail }) => detail !== "degraded"), 5000).catch(() => {});
  return {
    isAway, degradedMs, backMs, peerBeforeMs, peerBackMs, refused,
    isReady: seen.every((status) => status === 200),
    answers: during.length,
    p99Ms: quantile(during, 0.99),
    isHealthy: (await readiness(cluster.nodes)).every(({ detail }) => detail !== "degraded"),
  };
}

/** Something happens to the database while people talk, and ends again. */
export async function databaseFault(cluster, talk, { breaks, mends = () => {}, holdMs }) {
  const pids = cluster.nodes.map(({ child }) => child.pid);
  const began = Date.now();
  await breaks();
  await pause(holdMs);
  await mends();
  const ended = Date.now();
  const isAnswered = () => talk.places.every((_, place) =>
    talk.members.some((member) => member.place === place && member.answers.some(([at, ms]) => at - ms > ended)));
  await eventually("every node answers again", isAnswered, 30_000).catch(() => {});
  const backMs = isAnswered() ? Date.now() - ended : Infinity;
  return {
    backMs,
    answers: talk.answers(began, ended).length,
    p99Ms: quantile(talk.answers(began), 0.99),
    refused: [...new Set(talk.refused(began))],
    refusals: talk.refused(began).length,
    isAlive: cluster.nodes.every(({ child }, at) => child.exitCode === null && child.signalCode === null && child.pid === pids[at]),
  };
}

/** Links between clients and their nodes go bad, and good again. Each node has a proxy before it. */
export async function linkFault(cluster, { rooms = 2, everyMs = 600, holdMs, prefix, breaks, mends = (proxy) => proxy.mend() }) {
  const places = await Promise.all(cluster.nodes.map(({ port }) => FaultProxy.before(port)));
  for (const proxy of places) cluster.keep(proxy);
  const talk = await Talk.begin(cluster, { rooms, everyMs, prefix, places, patienceMs: 30_000, options: { reconnection: true, transports: ["polling", "websocket"] } });
  await pause(1000);
  const began = Date.now();
  places.forEach(breaks);
  await pause(holdMs);
  const ended = Date.now();
  places.forEach(mends);
  await eventually("everybody is back", () => talk.members.every(({ person }) => person.socket.connected), 30_000);
  const backMs = Date.now() - ended;
  await talk.ends();
  const lost = talk.members.reduce((sum, member) => sum + member.lost.length, 0);
  const result = {
    backMs, lost,
    faults: await talk.faults(10_000),
    recovered: talk.members.reduce((sum, { recovered }) => sum + recovered, 0),
    answers: talk.answers(began, ended).length,
    p99Ms: quantile(talk.answers(began), 0.99),
    heard: talk.heard,
  };
  for (const { person } of talk.members) person.leaves();
  return result;
}

/**
 * Nodes are restarted one after the other while a crowd talks behind a balancer. `leaves` and
 * `returns` tell the balancer, where it does not find out by itself.
 */
export async function rollingRestart(cluster, { url, leaves = () => {}, returns = () => {}, everyMs = 1200, settleMs = 500, ...crowd }) {
  const people = cluster.keep(await Crowd.start({ url, ...crowd }));
  const watcher = await Person.connect({ url }, "watcher", COMES_BACK);
  cluster.keep({ dispose: () => watcher.leaves() });
  await watcher.joins("room-0");
  await people.talk(everyMs);
  await pause(Math.min(everyMs, 2000));
  const [exits, missing] = [[], []];
  for (const node of [...cluster.nodes]) {
    const began = Date.now();
    await leaves(node);
    const { code } = await node.terminate();
    exits.push({ code, ms: Date.now() - began });
    await node.restart();
    await returns(node);
    await cluster.together(10_000);
    await eventually("everybody is back", async () => (await people.present()).connected === people.count, 20_000).catch(() => {});
    missing.push(people.count - (await people.present()).connected);
    await pause(settleMs);
  }
  await within(120_000, "everything is said", people.hush());
  await settled(people);
  const result = audit(await people.ledgers());
  return { ...result, exits, missing, offline: watcher.unheard("user-status-change").filter(({ status }) => status === "offline") };
}

/** What is under way arrives: nobody has heard more for a second. */
async function settled(people) {
  let before = -1;
  for (let count = 0; count < 10; count += 1) {
    const { heard } = audit(await people.ledgers());
    if (heard === before) return;
    before = heard;
    await pause(1000);
  }
}

/**
 * A deadline comes just after one node was killed, and while another one sleeps; the `holder` of the
 * lease is the one or the other. `lead` is between now and the deadline, for everybody to begin.
 */
export async function examDeadline(cluster, { holder = "killed", students: count = 12, leadMs = 9_000, sleepMs = 8_000 }) {
  const held = await cluster.holder();
  const [first, watching] = cluster.nodes.filter((node) => node !== held);
  const [killed, asleep] = holder === "killed" ? [held, first] : [first, held];
  const closesAt = Date.now() + leadMs;
  const exam = {
    title: "Anatomy", durationMinutes: 10, attemptsAllowed: 1, closesAt: new Date(closesAt).toISOString(),
    questions: [{ id: "q0", kind: "single_choice", text: "?", options: ["a", "b"], correct: 1 }],
  };
  const made = await watching.api("PUT", "/v1/exams/anatomy", exam);
  if (made.status !== 200) throw new Error(`the exam: ${JSON.stringify(made.body)}`);
  const students = await Promise.all(range(count).map((at) => cluster.person(at % 3, `s${at}`)));
  const counted = [];
  for (const student of students) {
    student.says("join-exam", { examId: "anatomy" });
    // Of all nodes.
    counted.push((await student.hears("exam-joined")).participantCount);
    const answer = await student.asks("exam-answer", { examId: "anatomy", questionIndex: 0, answer: 1 });
    if (!answer.ok) throw new Error(`an answer: ${JSON.stringify(answer)}`);
  }
  const staying = students.filter((_, at) => cluster.nodes[(at + 1) % 3] === watching);
  await pause(closesAt - 2_000 - Date.now());
  if (await cluster.holder() !== held) throw new Error("another node has the lease");
  asleep.child.kill("SIGSTOP");
  const since = Date.now();
  await pause(closesAt - 1_000 - Date.now());
  await killed.kill();
  const list = async (what) => (await watching.api("GET", `/v1/exams/anatomy/${what}?limit=100`)).body.items;
  await eventually("all attempts are final", async () => (await list("attempts")).every(({ status }) => status === "COMPLETED"), 25_000).catch(() => {});
  const finalMs = Date.now() - closesAt;
  await Promise.all(staying.map((student) => student.hears("exam-completed")));
  const before = JSON.stringify([await list("attempts"), await list("results")]);
  // The node that slept does nothing a second time.
  await pause(Math.max(0, since + sleepMs - Date.now()));
  asleep.child.kill("SIGCONT");
  await pause(3_000);
  const [attempts, results] = [await list("attempts"), await list("results")];
  await Promise.all(staying.map((student) => student.settled()));
  const [finished, finishedAsleep] = await Promise.all([watching, asleep].map((node) => node.metric("carillon_exam_attempts_finished_total")));
  return {
    finished, finishedAsleep, closesAt, counted, attempts, results, finalMs,
    isUnchanged: JSON.stringify([attempts, results]) === before,
    again: staying.flatMap((student) => student.unheard("exam-completed")),
  };
}

/** A node is killed: some of its people come back elsewhere, some do not, and those of others watch. */
export async function killedNode(cluster, { returning = 10, leaving = 3, missed = 10 }) {
  const [first, second] = cluster.nodes;
  const way = cluster.keep(await FaultProxy.before(first.port));
  const person = async (place, id, options) => {
    const one = await Person.connect(place, id, options);
    cluster.keep({ dispose: () => one.leaves() });
    await one.joins("algebra");
    return one;
  };
  const watcher = await person(cluster.nodes.at(-1), "watcher");
  const speaker = await person(cluster.nodes.at(-1), "speaker");
  const back = await Promise.all(range(returning).map(async (at) => {
    const one = await person(way, `back-${at}`, { reconnection: true });
    const member = { one, id: one.socket.id, heard: [] };
    one.socket.on("receive-message", ({ message }) => member.heard.push(message));
    return member;
  }));
  const gone = await Promise.all(range(leaving).map((at) => person(first, `gone-${at}`)));
  const says = async (message) => {
    const { ok } = await speaker.asks("send-message", { roomId: "algebra", message });
    if (!ok) throw new Error(`refused: ${message}`);
  };
  await says("before");
  await eventually("all hear it", () => back.every(({ heard }) => heard.length === 1));
  // Sessions are written within a moment.
  await pause(500);
  const offline = [];
  watcher.socket.on("user-status-change", ({ userId, status }) => { if (status === "offline") offline.push([userId, Date.now()]); });
  const returned = back.map(({ one }) => once(one.socket, "connect").then(() => Date.now()));
  way.target = second.port;
  const began = Date.now();
  await first.kill();
  for (const at of range(missed)) await says(`missed ${at}`);
  const times = await within(20_000, "all are back", Promise.all(returned));
  await says("after");
  await eventually("all hear it", () => back.every(({ heard }) => heard.includes("after")), 8000).catch(() => {});
  await eventually("they are offline", () => offline.length >= gone.length, 20_000).catch(() => {});
  const offlineMs = Math.max(0, ...offline.map(([, at]) => at - began));
  // Whoever else would go offline would do so by now.
  await pause(Math.max(0, began + 15_000 - Date.now()));
  const expected = ["before", ...range(missed).map((at) => `missed ${at}`), "after"];
  return {
    offlineMs, backMs: quantile(times.map((at) => at - began), 1),
    offline: offline.map(([id]) => id).sort(),
    expectedOffline: gone.map(({ id }) => id).sort(),
    recovered: back.filter(({ one, id }) => one.socket.recovered && one.socket.id === id).length,
    wrong: back.filter(({ heard }) => JSON.stringify(heard) !== JSON.stringify(expected)).map(({ one, heard }) => `${one.id}: ${heard}`),
  };
}

/** How long it takes until what is done to somebody on one node is so on another. */
export async function putOut(cluster) {
  const [ana, ben] = [await cluster.person(0, "ana"), await cluster.person(1, "ben")];
  const { group } = await ana.asks("study-group-create", { name: "Evenings" });
  const groupId = group.id;
  await ben.asks("study-group-join", { groupId });
  const timed = async (does, isDone) => {
    const began = Date.now();
    await does();
    await isDone;
    return Date.now() - began;
  };
  const kickMs = await timed(() => ana.asks("study-group-kick", { groupId, userId: "ben" }), undefined)
    + await timed(() => eventually("it is refused", async () => !(await ben.asks("study-group-message", { groupId, message: "?" })).ok), undefined);
  const api = (...request) => () => cluster.nodes[0].api(...request);
  const revokeMs = await timed(api("POST", "/v1/users/ben/revoke"), within(5000, "Ben is cut", once(ben.socket, "disconnect")));
  const cat = await cluster.person(1, "cat");
  const cutMs = await timed(api("DELETE", "/v1/users/cat/connections"), within(5000, "Cat is cut", once(cat.socket, "disconnect")));
  return { kickMs, revokeMs, cutMs };
}

/**
 * All clients of a node at once lose it and come back on the others, behind a balancer that was told
 * before; `bystanders` are on the others all the time. The clients are told a word in every room when
 * they are back.
 */
export async function herd(cluster, { url, moves, count, perRoom = 50, processes = 4, bystanders = 40 }) {
  const [first, ...others] = cluster.nodes;
  const people = cluster.keep(await Crowd.start({ url, count, perRoom, processes, prefix: "herd-", niceness: 10, transports: [["websocket"]] }));
  await moves(others);
  const beside = cluster.keep(await Crowd.start({ url, count: bystanders, perRoom: 10, prefix: "beside-", niceness: 0, transports: [["websocket"]] }));
  const watcher = await Person.connect({ url }, "watcher", COMES_BACK);
  cluster.keep({ dispose: () => watcher.leaves() });
  await watcher.joins("herd-room-0");
  await beside.talk(500);
  await pause(3000);
  const calm = quantile(audit(await beside.ledgers()).answers.map(([, ms]) => ms), 0.99);
  const began = Date.now();
  await first.kill();
  await eventually("everybody is back in the room", async () => {
    await pause(200);
    return (await people.present()).inRoom === count;
  }, 60_000).catch(() => {});
  const backMs = Date.now() - began;
  const present = await people.present();
  // In their rooms: they hear what is said there.
  const speaker = await cluster.person(1, "herald");
  const rooms = range(Math.ceil(count / perRoom)).map((at) => `herd-room-${at - 1}`);
  for (const roomId of rooms) {
    await speaker.joins(roomId);
    const said = { roomId, message: "welcome back", clientMsgId: `welcome-${roomId}` };
    await eventually("the herald is answered", async () => (await speaker.asks("send-message", said)).ok, 15_000);
  }
  let welcomed = 0;
  await eventually("they hear it", async () => {
    const ledgers = await people.ledgers();
    welcomed = ledgers.filter(({ room, heard }) => heard.filter((one) => one === `welcome-${room}`).length === 1).length;
    return welcomed === count;
  }, 10_000).catch(() => {});
  await beside.hush();
  const [ledger, theirs] = [audit(await people.ledgers()), audit(await beside.ledgers())];
  return {
    backMs, welcomed, calmP99Ms: calm, present,
    awayP50Ms: quantile(ledger.away, 0.5),
    awayMaxMs: quantile(ledger.away, 1),
    roomP99Ms: quantile(ledger.roomless, 0.99),
    recovered: ledger.recovered,
    mostFailures: ledger.mostFailures,
    besideP99Ms: quantile(theirs.answers.filter(([at]) => at >= began && at <= began + Math.max(backMs, 3000)).map(([, ms]) => ms), 0.99),
    besideRefused: theirs.refused,
    besideFaults: [...theirs.lost, ...theirs.twice],
    besideAway: theirs.away.length,
    offline: watcher.unheard("user-status-change").filter(({ status }) => status === "offline").length,
    watched: Math.min(perRoom, count),
  };
}
