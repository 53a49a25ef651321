// Many stock clients in processes of their own, who talk in rooms and keep a ledger: what each was
// acknowledged, what it heard, and how it came back when it was cut off.
import { fork } from "node:child_process";
import os from "node:os";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { io } from "socket.io-client";
import { eventually, pause, token } from "./harness.mjs";

/** Clients that arrive at a time, in one process. */
const ARRIVING = 25;
/** An answer that has not come by then is asked for again. */
const PATIENCE_MS = 15_000;

/** The value below which that share of them lies. */
export function quantile(values, share) {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)];
}

/** One client with the defaults of the library, but for what `options` say. */
class Guest {
  heard = [];
  acknowledged = [];
  refused = [];
  /** How long it was away, each time, and until it was shown its room again. */
  away = [];
  roomless = [];
  /** How long each answer took, and when it came. */
  answers = [];
  recovered = 0;
  resyncs = 0;
  mostFailures = 0;
  shown = new Set();
  #failures = 0;

  constructor(url, id, room, options) {
    Object.assign(this, { id, room, isInRoom: false });
    this.socket = io(url, { auth: { token: token(id) }, forceNew: true, ...options });
    this.socket.on("receive-message", ({ clientMsgId, client_msg_id, message }) => this.heard.push(clientMsgId ?? client_msg_id ?? message));
    this.socket.on("carillon:resync", () => { this.resyncs += 1; });
    this.socket.on("room-joined", ({ roomId, messages }) => {
      if (roomId !== room) return;
      // Who cannot go on is shown the room instead.
      for (const { clientMsgId } of messages) this.shown.add(clientMsgId);
      this.#isInRoom();
    });
    this.socket.on("disconnect", () => {
      this.goneAt = Date.now();
      this.isInRoom = false;
      this.#failures = 0;
    });
    this.socket.io.on("reconnect_error", () => {
      this.#failures += 1;
      this.mostFailures = Math.max(this.mostFailures, this.#failures);
    });
    this.socket.on("connect", () => {
      if (!this.goneAt) return;
      this.away.push(Date.now() - this.goneAt);
      if (!this.socket.recovered) return;
      this.recovered += 1;
      // Who goes on is in the room as before; what is said there next has to be heard.
      this.#isInRoom();
    });
  }

  #isInRoom() {
    if (!this.isInRoom && this.goneAt) this.roomless.push(Date.now() - this.goneAt);
    this.isInRoom = true;
  }

  async arrives() {
    await eventually(`${this.id} connects`, () => this.socket.connected, 60_000);
    this.socket.emit("join-room", { roomId: this.room });
    await eventually(`${this.id} is in the room`, () => this.isInRoom, 60_000);
  }

  async says(clientMsgId) {
    const began = Date.now();
    const said = { roomId: this.room, message: clientMsgId, clientMsgId };
    while (!this.isLeaving) {
      const answer = await this.socket.timeout(PATIENCE_MS).emitWithAck("send-message", said).catch(() => null);
      if (answer?.ok) {
        this.acknowledged.push(clientMsgId);
        this.answers.push([Date.now(), Date.now() - began]);
        return;
      }
      if (answer) this.refused.push(answer.code ?? "?");
      await pause(answer ? 500 : 50);
    }
  }

  get ledger() {
    const { id, room, heard, acknowledged, refused, away, roomless, answers, recovered, resyncs, mostFailures, shown } = this;
    return { id, room, heard, acknowledged, refused, away, roomless, answers, recovered, resyncs, mostFailures, shown: [...shown] };
  }
}

/** What a process does when it is told to. */
class Host {
  guests = [];
  #talking = [];
  #isTalking = false;

  async arrive({ url, ids, perRoom, options }) {
    const waiting = [...ids];
    const some = async () => {
      for (let at = waiting.shift(); at !== undefined; at = waiting.shift()) {
        const { prefix = "", transports, ...rest } = options;
        const chosen = transports ? { transports: transports[at % transports.length] } : {};
        const guest = new Guest(url, `${prefix}${at}`, `${prefix}room-${Math.floor(at / perRoom)}`, { ...chosen, ...rest });
        this.guests.push(guest);
        await guest.arrives();
      }
    };
    await Promise.all(Array.from({ length: ARRIVING }, some));
    return this.guests.length;
  }

  /** Each says something so often, not all at once. */
  talk({ everyMs }) {
    this.#isTalking = true;
    this.#talking = this.guests.map(async (guest) => {
      await pause(Math.random() * everyMs);
      for (let count = 0; this.#isTalking; count += 1) {
        await guest.says(`${guest.id}-${count}`);
        await pause(everyMs * (0.5 + Math.random()));
      }
    });
  }

  async hush() {
    this.#isTalking = false;
    await Promise.all(this.#talking);
  }

  present() {
    return {
      connected: this.guests.filter(({ socket }) => socket.connected).length,
      inRoom: this.guests.filter(({ isInRoom, socket }) => isInRoom && socket.connected).length,
    };
  }

  heard({ message }) {
    return this.guests.filter(({ heard }) => heard.includes(message)).length;
  }

  ledgers() {
    return this.guests.map((guest) => guest.ledger);
  }

  leave() {
    for (const guest of this.guests) {
      guest.isLeaving = true;
      guest.socket.disconnect();
    }
    setTimeout(() => process.exit(0), 100);
  }
}

/** All of them, seen from the process that started them. */
export class Crowd {
  #asked = 0;
  #waiting = new Map();

  /**
   * So many clients, `perRoom` in each room. They share the machine with what they are clients of, and
   * are to give way to it: `niceness`. `transports` is a list of which each client gets one in turn.
   */
  static async start({ url, count, processes = 1, perRoom = 10, niceness = 5, ...options }) {
    const crowd = new Crowd();
    crowd.count = count;
    crowd.children = Array.from({ length: processes }, () => crowd.#fork(niceness));
    // A room has members in every process.
    const ids = Array.from({ length: count }, (_, at) => at);
    await Promise.all(crowd.children.map((child, index) => crowd.#ask(child, "arrive", {
      url, perRoom, options, ids: ids.filter((at) => at % processes === index),
    })));
    return crowd;
  }

  #fork(niceness) {
    const child = fork(fileURLToPath(import.meta.url), ["crowd"], { serialization: "advanced" });
    os.setPriority(child.pid, niceness);
    child.on("message", ({ id, result, error }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error) reject(new Error(error));
      else resolve(result);
    });
    child.on("exit", (code) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`clients ended with ${code}`));
    });
    return child;
  }

  #ask(child, what, parameters = {}) {
    const id = this.#asked++;
    child.send({ id, what, parameters });
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  async #all(what, parameters) {
    return Promise.all(this.children.map((child) => this.#ask(child, what, parameters)));
  }

  talk(everyMs) {
    return this.#all("talk", { everyMs });
  }

  /** Resolves when everything that was said has been acknowledged. */
  hush() {
    return this.#all("hush");
  }

  async present() {
    const all = await this.#all("present");
    const sum = (name) => all.reduce((total, one) => total + one[name], 0);
    return { connected: sum("connected"), inRoom: sum("inRoom") };
  }

  /** How many have heard it. */
  async heard(message) {
    return (await this.#all("heard", { message })).reduce((total, one) => total + one, 0);
  }

  async ledgers() {
    return (await this.#all("ledgers")).flat();
  }

  async dispose() {
    const gone = this.children.filter(({ exitCode }) => exitCode === null).map((child) => once(child, "exit"));
    for (const child of this.children) if (child.connected) child.send({ what: "leave" });
    await Promise.race([Promise.all(gone), pause(3000)]);
    for (const child of this.children) child.kill("SIGKILL");
  }
}

/** What ledgers say together: nothing is lost, nothing is heard twice. */
export function audit(ledgers) {
  const rooms = new Map();
  for (const ledger of ledgers) rooms.set(ledger.room, [...(rooms.get(ledger.room) ?? []), ledger]);
  const lost = [];
  const twice = [];
  for (const members of rooms.values()) {
    const acknowledged = members.flatMap((member) => member.acknowledged);
    for (const { id, heard, shown } of members) {
      const known = new Set([...heard, ...shown]);
      for (const message of acknowledged) if (!known.has(message)) lost.push(`${id}: ${message}`);
      const once = new Set();
      for (const message of heard) {
        if (once.has(message)) twice.push(`${id}: ${message}`);
        once.add(message);
      }
    }
  }
  const sum = (of) => ledgers.reduce((total, ledger) => total + of(ledger), 0);
  return {
    lost, twice,
    acknowledged: sum(({ acknowledged }) => acknowledged.length),
    heard: sum(({ heard }) => heard.length),
    refused: ledgers.flatMap(({ refused }) => refused),
    away: ledgers.flatMap(({ away }) => away),
    roomless: ledgers.flatMap(({ roomless }) => roomless),
    answers: ledgers.flatMap(({ answers }) => answers),
    recovered: sum(({ recovered }) => recovered),
    resyncs: sum(({ resyncs }) => resyncs),
    mostFailures: Math.max(0, ...ledgers.map(({ mostFailures }) => mostFailures)),
  };
}

if (process.argv[2] === "crowd" && process.send) {
  const host = new Host();
  process.on("message", async ({ id, what, parameters }) => {
    try {
      const result = await host[what](parameters);
      if (id !== undefined) process.send({ id, result });
    } catch (error) {
      process.send({ id, error: error.stack });
    }
  });
  process.on("disconnect", () => process.exit(0));
}
