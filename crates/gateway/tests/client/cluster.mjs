// Several nodes, and what they meet at: a throw-away Redis and one PostgreSQL.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { createInterface } from "node:readline";
import tls from "node:tls";
import { createAdapter } from "@socket.io/redis-adapter";
import { Emitter } from "@socket.io/redis-emitter";
import { createClient } from "redis";
import { Server as NodeIo } from "socket.io";
import { Person, POSTGRES, Server, conformance, eventually, within } from "./harness.mjs";

/** Where there is no Redis, the stories about several nodes are skipped. */
const redisServer = process.env.CARILLON_TEST_REDIS
  ?? ["/usr/bin/redis-server", "/usr/local/bin/redis-server", "/usr/bin/valkey-server"].find(existsSync);

export async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A certificate for 127.0.0.1, and that of the authority that signed it: files in PEM. */
export function certify(directory) {
  const [ca, caKey, certificate, key, request, names] = ["ca.pem", "ca.key", "redis.pem", "redis.key", "redis.csr", "names"]
    .map((name) => path.join(directory, name));
  const openssl = (...args) => execFileSync("openssl", args, { stdio: ["ignore", "ignore", "pipe"] });
  const made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  openssl("req", "-x509", ...made, "-keyout", caKey, "-out", ca, "-days", "2", "-subj", "/CN=Stories");
  openssl("req", ...made, "-keyout", key, "-out", request, "-subj", "/CN=redis");
  writeFileSync(names, "subjectAltName=IP:127.0.0.1,DNS:localhost\n");
  openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", caKey, "-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", names);
  return { ca, certificate, key };
}

/**
 * A Redis of a test's own, with nothing in it; it keeps its port when it is started again. With
 * `isSecret` it speaks TLS, with `password` it wants one, and `program` may be another one's.
 */
export class Redis {
  static async start({ isSecret = false, password, program = redisServer } = {}) {
    const redis = new Redis();
    redis.directory = mkdtempSync(path.join(tmpdir(), "carillon-redis-"));
    redis.port = await freePort();
    Object.assign(redis, { password, program });
    if (isSecret) redis.files = certify(redis.directory);
    await redis.launch();
    return redis;
  }

  get url() {
    const password = this.password ? `:${encodeURIComponent(this.password)}@` : "";
    return `${this.files ? "rediss" : "redis"}://${password}127.0.0.1:${this.port}`;
  }

  async launch() {
    const listening = this.files
      ? ["--port", "0", "--tls-port", this.port, "--tls-auth-clients", "no", "--tls-cert-file", this.files.certificate,
        "--tls-key-file", this.files.key, "--tls-ca-cert-file", this.files.ca]
      : ["--port", this.port];
    this.child = spawn(
      this.program,
      [...listening, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", this.directory,
        ...(this.password ? ["--requirepass", this.password] : [])],
      { stdio: "ignore" },
    );
    this.exited = once(this.child, "exit");
    await eventually("Redis answers", () => this.#isThere());
  }

  #isThere() {
    return new Promise((resolve) => {
      const socket = this.files
        ? tls.connect({ port: this.port, host: "127.0.0.1", rejectUnauthorized: false })
        : net.connect(this.port, "127.0.0.1");
      socket.on(this.files ? "secureConnect" : "connect", () => socket.write("PING\r\n"));
      socket.on("data", (data) => {
        resolve(/PONG|NOAUTH/.test(data));
        socket.destroy();
      });
      socket.on("error", () => resolve(false));
    });
  }

  /** A client of Node's, for a test to look or to publish with. */
  async client() {
    const client = createClient({ url: this.url, socket: this.files && { ca: readFileSync(this.files.ca) } });
    client.on("error", () => {});
    await client.connect();
    return client;
  }

  async kill() {
    this.child.kill("SIGKILL");
    await this.exited;
  }

  freeze() {
    this.child.kill("SIGSTOP");
  }

  thaw() {
    this.child.kill("SIGCONT");
  }

  async dispose() {
    this.thaw();
    await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A Node server in the same cluster, as its users would write it. */
export class NodePeer {
  static async start(redis, options = {}) {
    const peer = new NodePeer();
    peer.clients = [createClient({ url: redis.url }), createClient({ url: redis.url })];
    for (const client of peer.clients) client.on("error", () => {});
    await Promise.all(peer.clients.map((client) => client.connect()));
    peer.http = createServer().listen(0, "127.0.0.1");
    await once(peer.http, "listening");
    peer.io = new NodeIo(peer.http, { adapter: createAdapter(...peer.clients, options) });
    // Subscribed by then.
    await eventually("the Node server is part of the cluster", async () => {
      const [channel] = Object.values(await peer.clients[0].pubSubNumSub("socket.io-request#/#"));
      return channel > 0;
    });
    return peer;
  }

  get url() {
    return `http://127.0.0.1:${this.http.address().port}`;
  }

  async dispose() {
    await this.io.close();
    // What it unsubscribed from is answered first.
    for (const client of this.clients) await client.close();
  }
}

/** The adapter by itself, told what to do; see its example `peer`. */
export class AdapterPeer {
  static async start(redis) {
    const peer = new AdapterPeer();
    peer.child = spawn(path.join(path.dirname(conformance), "peer"), [redis.url], { stdio: ["pipe", "pipe", "inherit"] });
    peer.lines = createInterface({ input: peer.child.stdout })[Symbol.asyncIterator]();
    peer.exited = once(peer.child, "exit");
    await peer.next();
    return peer;
  }

  /** The next line that is an answer. */
  async next() {
    for (;;) {
      const { value } = await within(8000, "a line of the adapter", this.lines.next());
      const said = JSON.parse(value);
      if (said?.broadcast === undefined) return said;
    }
  }

  async asks(...command) {
    this.child.stdin.write(`${JSON.stringify(command)}\n`);
    return this.next();
  }

  async dispose() {
    this.child.stdin.end();
    await this.exited;
  }
}

/** Breaks a person's link as a network would; resolves when they notice. */
export function cutsOff(person) {
  const { engine } = person.socket.io;
  const gone = once(person.socket, "disconnect");
  if (engine.transport.name === "websocket") engine.transport.ws.terminate?.() ?? engine.transport.ws.close();
  else engine.transport.doClose = () => {};
  engine.onError?.("cut") ?? engine._onError("cut");
  return gone;
}

/** Nodes of ours on one database and one Redis, and people who connect to them. */
export class Cluster {
  #disposables = [];

  static async start(database, { nodes = 2, redis, env = {}, ...options } = {}) {
    const cluster = new Cluster();
    cluster.redis = redis ?? cluster.keep(await Redis.start());
    cluster.options = { ...(await database.fresh()), ...options, env: { REDIS_URL: cluster.redis.url, ...env } };
    cluster.nodes = [];
    for (let count = 0; count < nodes; count += 1) await cluster.add();
    return cluster;
  }

  /** Disposed of with the cluster. */
  keep(disposable) {
    this.#disposables.push(disposable);
    return disposable;
  }

  async add() {
    const node = this.keep(await Server.start(this.options));
    this.nodes.push(node);
    if (!this.isRedisAway) await this.together();
    return node;
  }

  /** All nodes have heard of all others. */
  async together(ms = 8000) {
    await eventually("the nodes know each other", async () => {
      const running = this.nodes.filter((node) => node.child.exitCode === null && node.child.signalCode === null);
      const peers = await Promise.all(running.map((node) => node.metric("carillon_cluster_peers")));
      return peers.every((count) => count >= running.length - 1);
    }, ms);
  }

  /** The one node that does what the whole cluster does once. */
  async holder(ms = 8000) {
    let holders;
    await eventually("one node holds the lease", async () => {
      const running = this.nodes.filter((node) => node.child.exitCode === null && node.child.signalCode === null);
      const held = await Promise.all(running.map((node) => node.metric('carillon_leases_held{name="periodic"}')));
      holders = running.filter((_, at) => held[at] === 1);
      return holders.length === 1;
    }, ms);
    return holders[0];
  }

  async person(node, id, options) {
    const person = await Person.connect(this.nodes[node], id, options);
    this.keep({ dispose: () => person.leaves() });
    return person;
  }

  async peer(options) {
    return this.keep(await NodePeer.start(this.redis, options));
  }

  async emitter() {
    const client = await this.redis.client();
    this.keep({ dispose: () => client.close() });
    return new Emitter(client);
  }

  async dispose() {
    for (const disposable of this.#disposables.reverse()) await disposable.dispose();
  }
}

/** A story about several nodes; on PostgreSQL, unless it says otherwise. */
export function together(title, { on = POSTGRES, ...options }, run) {
  if (on.length === 0) test(title, { skip: "no PostgreSQL" }, () => {});
  const skip = redisServer ? false : "no Redis";
  for (const database of on) {
    test(title, { skip, timeout: 120_000 }, async (t) => {
      const cluster = await Cluster.start(database, options);
      try {
        await run(cluster, t);
      } catch (error) {
        for (const [at, node] of cluster.nodes.entries()) console.error(`node ${at}:\n${node.log.slice(-12).join("\n")}`);
        throw error;
      } finally {
        await cluster.dispose();
      }
    });
  }
}
