// A real server, real clients: starts the built binary on free ports and speaks to it with the
// npm client. Waits are for events, with a deadline that only a failure reaches.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import client25 from "socket.io-client-2.5";
import { io as io31 } from "socket.io-client-3.1";
import { io as io40 } from "socket.io-client-4.0";
import { io as io44 } from "socket.io-client-4.4";
import { io as io46 } from "socket.io-client-4.6";
import { io as io47 } from "socket.io-client-4.7";
import { io as io48 } from "socket.io-client";

/** 2.x in the words of the others: it says who it is in a query, and hears of a refusal otherwise. */
function io25(url, { auth, ...options }) {
  const { socket: open } = client25.Manager.prototype;
  const socket = client25(url, { query: auth, ...options });
  socket.io.socket = (path, more) => inNewWords(open.call(socket.io, path, { query: more.auth }));
  return inNewWords(socket);
}

function inNewWords(socket) {
  const { onevent } = socket;
  socket.onAny = (listener) => {
    socket.onevent = (packet) => {
      listener(...packet.data);
      onevent.call(socket, packet);
    };
  };
  socket.timeout = () => ({
    emit: (name, payload, done) => socket.emit(name, payload, (answer) => done(null, answer)),
  });
  socket.on("error", (reason) => socket.emit("connect_error", new Error(reason.message ?? reason)));
  return socket;
}

export const CLIENTS = { "4.8": io48, "4.7": io47, "4.6": io46, "4.4": io44, "4.0": io40, "3.1": io31, "2.5": io25 };
/** What a server is told for that client. */
export const lets = (client) => (client === "2.5" ? { env: { CARILLON_SERVER__ALLOW_EIO3: "true" } } : {});
export const SECRET = "0f8c1d4e5b6a79881726354433221100";
/** A key with every right in the tenant of the tokens; every server here knows it. */
export const API_KEY = "ck_stories0123456789abcdefghijklmnopqrstuvw";
const API_KEYS = `[[api_keys]]
name = "stories"
tenant = "default"
key = "${API_KEY}"
scopes = ["*"]
`;

const root = fileURLToPath(new URL("../../../../", import.meta.url));
export const binary = process.env.CARILLON_BIN ?? path.join(root, "target/debug/carillon");
/** The edge with the fixture of the protocols' own test suites behind it. */
export const conformance =
  process.env.CARILLON_CONFORMANCE ?? path.join(root, "target/debug/examples/conformance");

const base64url = (value) => Buffer.from(value).toString("base64url");

/** A token signed with the server's secret; claims win over the defaults. */
export function token(user, claims = {}, { secret = SECRET, header = {} } = {}) {
  const now = Math.floor(Date.now() / 1000);
  const head = base64url(JSON.stringify({ alg: "HS256", typ: "JWT", ...header }));
  const body = base64url(
    JSON.stringify({ userId: user, name: `${user} Name`, iat: now, exp: now + 3600, ...claims }),
  );
  const signature = createHmac("sha256", secret).update(`${head}.${body}`).digest("base64url");
  return `${head}.${body}.${signature}`;
}

/** A server with its own database; `restart` keeps port and database. */
export class Server {
  static async start(options = {}) {
    const server = new Server(options);
    await server.#launch();
    return server;
  }

  constructor({ env = {}, databaseUrl, config, toml = "", scheme = "http" } = {}) {
    this.scheme = scheme;
    this.directory = mkdtempSync(path.join(tmpdir(), "carillon-test-"));
    this.databaseUrl = databaseUrl ?? `sqlite:${this.directory}/carillon.db`;
    this.env = env;
    // A file of a test's own is used as it is; `toml` is added to the file every server has.
    this.config = config ?? path.join(this.directory, "carillon.toml");
    if (!config) writeFileSync(this.config, `${API_KEYS}\n${toml}`);
    this.port = 0;
    this.log = [];
  }

  get url() {
    return `${this.scheme}://127.0.0.1:${this.port}`;
  }

  async #launch() {
    this.child = spawn(binary, ["serve", "--config", this.config], {
      cwd: this.directory,
      env: this.#environment(),
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.exited = once(this.child, "exit").then(([code, signal]) => ({ code, signal }));
    const lines = createInterface({ input: this.child.stderr });
    await new Promise((resolve, reject) => {
      lines.on("line", (line) => {
        this.log.push(line);
        if (!line.startsWith("{")) return;
        const entry = JSON.parse(line);
        if (entry.message === "ready") {
          this.port = Number(entry.address.split(":").at(-1));
          this.operations = entry.operations;
          resolve();
        }
      });
      this.exited.then(({ code }) =>
        reject(new Error(`the server ended with ${code}: ${this.log.slice(-5).join("\n")}`)),
      );
    });
  }

  #environment() {
    return {
      PATH: process.env.PATH,
      JWT_SECRET: SECRET,
      DATABASE_URL: this.databaseUrl,
      CARILLON_SERVER__LISTEN: `127.0.0.1:${this.port}`,
      CARILLON_OPERATIONS__LISTEN: "127.0.0.1:0",
      CARILLON_LOG__FORMAT: "json",
      ...this.env,
    };
  }

  /** Runs `carillon …` with this server's configuration; resolves to what it printed. */
  async run(...args) {
    const child = spawn(binary, [...args, "--config", this.config], {
      cwd: this.directory,
      env: this.#environment(),
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [ended, stdout, stderr] = await Promise.all([
      once(child, "exit"),
      text(child.stdout),
      text(child.stderr),
    ]);
    if (ended[0] !== 0) throw new Error(stderr);
    return stdout.trim();
  }

  /**
   * Asks the server API. `body` is sent as JSON, a string as it is; `key: null` sends none.
   * Resolves to {status, body, headers}.
   */
  async api(method, path, body, { key = API_KEY, idempotencyKey, headers = {} } = {}) {
    const response = await fetch(this.url + path, {
      method,
      headers: {
        ...(key === null ? {} : { authorization: `Bearer ${key}` }),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
        ...headers,
      },
      body: body === undefined || typeof body === "string" ? body : JSON.stringify(body),
    });
    const text = await response.text();
    return { status: response.status, body: text && JSON.parse(text), headers: response.headers };
  }

  /** The lines of its own metrics. */
  async metrics() {
    const { operations } = JSON.parse(this.log.findLast((line) => line.includes('"message":"metrics"')));
    return (await (await fetch(`http://${operations}/metrics`)).text()).split("\n");
  }

  /** A number of its own metrics, 0 while there is none. */
  async metric(name) {
    const lines = await this.metrics();
    return Number(lines.find((line) => line.startsWith(`${name} `))?.split(" ").at(-1) ?? 0);
  }

  async restart() {
    await this.#launch();
  }

  /** Ends the process as a power cut would. */
  async kill() {
    this.child.kill("SIGKILL");
    return this.exited;
  }

  async terminate() {
    this.child.kill("SIGTERM");
    return this.exited;
  }

  async dispose() {
    await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A story that fails leaves people behind who come back for ever, and its file would never end. */
const everybody = new Set();
if (process.env.NODE_TEST_CONTEXT) after(() => everybody.forEach((person) => person.leaves()));

/** A client that remembers what it heard, so that no event is missed between two waits. */
export class Person {
  #heard = [];
  #waiting = [];

  constructor(socket, id) {
    this.socket = socket;
    this.id = id;
    everybody.add(this);
    socket.onAny((name, ...args) => {
      // Durable events may carry a recovery offset as their last argument.
      const payload = typeof args.at(-1) === "string" ? args.at(-2) : args.at(-1);
      this.#heard.push({ name, payload });
      this.#settle();
    });
  }

  /** Connects; rejects on a connect_error. */
  static async connect(server, id, options = {}) {
    const { client = "4.8", path = "", claims, auth, ...rest } = options;
    const socket = CLIENTS[client](server.url + path, {
      auth: auth ?? { token: token(id, claims) },
      forceNew: true,
      transports: ["websocket"],
      reconnection: false,
      ...rest,
    });
    const person = new Person(socket, id);
    // Every transport the first connection has had.
    const { engine } = socket.io;
    person.transports = [engine.transport.name];
    engine.on("upgrade", (transport) => person.transports.push(transport.name));
    await within(5000, `${id} connects`, new Promise((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("connect_error", (error) => (rest.reconnection ? undefined : reject(error)));
    }));
    return person;
  }

  #settle() {
    this.#waiting = this.#waiting.filter(({ name, matches, resolve }) => {
      const index = this.#heard.findIndex((e) => e.name === name && matches(e.payload));
      if (index < 0) return true;
      resolve(this.#heard.splice(index, 1)[0].payload);
      return false;
    });
  }

  /** The next event of that name that matches, heard already or to come. */
  hears(name, matches = () => true, ms = 5000) {
    const heard = new Promise((resolve) => {
      this.#waiting.push({ name, matches, resolve });
      this.#settle();
    });
    return within(ms, `${this.id} hears ${name}`, heard);
  }

  /** What has been heard and not yet been asked for. */
  unheard(name) {
    return this.#heard.filter((e) => e.name === name).map((e) => e.payload);
  }

  forget() {
    this.#heard = [];
  }

  says(name, ...args) {
    this.socket.emit(name, ...args);
  }

  /** Emits and waits for the acknowledgement. */
  asks(name, ...args) {
    const answered = new Promise((resolve) => this.socket.emit(name, ...args, resolve));
    return within(8000, `${this.id} is answered to ${name}`, answered);
  }

  async joins(roomId) {
    this.says("join-room", { roomId });
    return this.hears("room-joined", (e) => e.roomId === roomId);
  }

  /** Everything this connection has been sent so far has arrived. */
  async settled() {
    await this.asks("heartbeat");
  }

  leaves() {
    this.socket.disconnect();
  }
}

/** Asks, and asks again when told to: a disk that is slow for a moment is nobody's loss. */
export async function persists(person, name, payload) {
  for (;;) {
    const answer = await new Promise((resolve) => person.socket.timeout(30_000).emit(name, payload, (error, reply) => resolve(error ?? reply)));
    if (answer.ok || !answer.retryable) {
      assert.equal(answer.ok, true, `${person.id}: ${answer.message ?? JSON.stringify(answer)} ${person.lost ?? ""}`);
      return;
    }
    await pause(answer.retryAfterMs ?? 1000);
  }
}

export async function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Polls a condition that has no event. */
export async function eventually(what, check, ms = 5000) {
  const deadline = Date.now() + ms;
  for (;;) {
    const result = await check();
    if (result) return result;
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
export const uniqueRoom = (name = "room") => `${name}-${randomBytes(4).toString("hex")}`;

/** Asserts that an acknowledgement or an `error` event is this refusal, and nothing else. */
export function refused(answer, code, message, retryable = false) {
  const { ok = false, detail, retryAfterMs, ...told } = answer;
  assert.deepEqual({ ok, ...told }, { ok: false, code, message, retryable });
}

/** Nobody has heard such an event, counting everything sent to them up to now. */
export async function silent(name, ...people) {
  await Promise.all(people.map((person) => person.settled()));
  for (const person of people) {
    assert.deepEqual(person.unheard(name), [], `${person.id} hears no ${name}`);
  }
}

/** What a story is told in: a server of its own, and the people who connect to it. */
class World {
  #people = [];

  constructor(server) {
    this.server = server;
  }

  async person(id, options) {
    const person = await Person.connect(this.server, id, options);
    this.#people.push(person);
    return person;
  }

  /** Asks the server API; see `Server.api`. */
  async api(method, path, body, options) {
    return this.server.api(method, path, body, options);
  }

  async people(...ids) {
    return Promise.all(ids.map((id) => this.person(id)));
  }

  dispose() {
    for (const person of this.#people) person.leaves();
  }
}

/**
 * One test with a fresh server; `on: DATABASES` tells it on every database there is. A `long` one
 * is left out of a quick run.
 */
export function story(title, { on = [DATABASES[0]], long = false, ...options }, run) {
  if (on.length === 0) test(title, { skip: "no PostgreSQL" }, () => {});
  const skip = long && process.env.CARILLON_TEST_QUICK ? "long" : false;
  for (const database of on) {
    test(on.length > 1 ? `${title} (${database.name})` : title, { skip, timeout: 90_000 }, async (t) => {
      const server = await Server.start({ ...(await database.fresh()), ...options });
      const world = new World(server);
      try {
        await run(world, t);
      } catch (error) {
        console.error(server.log.slice(-20).join("\n"));
        throw error;
      } finally {
        world.dispose();
        await server.dispose();
      }
    });
  }
}

/** The databases the suite runs against; PostgreSQL when the runner provides one. */
export const DATABASES = [
  { name: "sqlite", fresh: async () => ({}) },
  ...(process.env.CARILLON_TEST_POSTGRES
    ? [{ name: "postgres", fresh: async () => ({ databaseUrl: await freshPostgres() }) }]
    : []),
];

export const POSTGRES = DATABASES.filter((database) => database.name === "postgres");

export async function freshPostgres() {
  const { default: pg } = await import("pg");
  const url = new URL(process.env.CARILLON_TEST_POSTGRES);
  const client = new pg.Client({ connectionString: url.href });
  await client.connect();
  const name = `t_${randomBytes(6).toString("hex")}`;
  await client.query(`CREATE DATABASE ${name}`);
  await client.end();
  url.pathname = `/${name}`;
  return url.href;
}
