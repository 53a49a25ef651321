// Several nodes on one database, and a balancer that knows nothing of sessions.
import http from "node:http";
import https from "node:https";
import net from "node:net";
import { once } from "node:events";
import { buffer } from "node:stream/consumers";
import tls from "node:tls";
import { POSTGRES, Server, story } from "./harness.mjs";

/** Reached where it listens. */
export const ADVERTISED = { CARILLON_CLUSTER__ADVERTISE: "127.0.0.1" };

/** The tag that a node's session ids begin with. */
export function tagOf(server) {
  const line = server.log.findLast((entry) => entry.includes('"message":"in the cluster"'));
  return line && JSON.parse(line)["node.tag"];
}

/** Sends each request, and each WebSocket, to the next node: no cookies, no addresses. */
export class Balancer {
  #next = 0;
  // A node closes what is idle for 30 s; used just then, a connection fails.
  #http = new http.Agent({ keepAlive: true, timeout: 10_000 });
  #https = new https.Agent({ keepAlive: true, timeout: 10_000, rejectUnauthorized: false });
  #sockets = new Set();

  static async over(nodes) {
    const balancer = new Balancer(nodes);
    // Clients, balancer and stories share one thread: whoever connects may have to wait.
    balancer.server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 });
    await once(balancer.server, "listening");
    balancer.url = `http://127.0.0.1:${balancer.server.address().port}`;
    return balancer;
  }

  constructor(nodes) {
    this.nodes = [...nodes];
    /** Requests by node, and what was refused. */
    this.requests = new Map(nodes.map((node) => [node, 0]));
    this.refusals = [];
    this.server = http.createServer((request, response) => {
      this.#pass(request, response).catch((error) => {
        this.refusals.push({ status: 0, text: `${error}`, method: request.method, url: request.url });
        response.destroy();
      });
    });
    this.server.keepAliveTimeout = 60_000;
    this.server.on("upgrade", (request, socket, head) => this.#tunnel(request, socket, head));
    this.server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  /** Nothing new goes to that node. */
  takeOut(node) {
    this.nodes = this.nodes.filter((one) => one !== node);
  }

  #pick() {
    this.#next += 1;
    const node = this.nodes[this.#next % this.nodes.length];
    this.requests.set(node, this.requests.get(node) + 1);
    return node;
  }

  async #pass(request, response) {
    const body = await buffer(request);
    const headers = { ...request.headers, "x-forwarded-for": request.socket.remoteAddress };
    for (let tries = this.nodes.length; tries > 0; tries -= 1) {
      const node = this.#pick();
      const [module, agent] = node.scheme === "https" ? [https, this.#https] : [http, this.#http];
      const passed = module.request(node.url + request.url, { method: request.method, headers, agent });
      // Who leaves breaks off what was asked for them.
      const leave = () => response.writableFinished || passed.destroy();
      response.on("close", leave);
      try {
        passed.end(body);
        const [answer] = await once(passed, "response");
        if (answer.statusCode >= 400) {
          const text = await buffer(answer);
          this.refusals.push({ node, status: answer.statusCode, text: text.toString(), method: request.method, url: request.url });
          response.writeHead(answer.statusCode, answer.headers).end(text);
        } else {
          response.writeHead(answer.statusCode, answer.headers);
          answer.on("error", (error) => {
            if (response.destroyed) return;
            this.refusals.push({ node, status: answer.statusCode, text: `broken off: ${error.code}`, method: request.method, url: request.url });
            response.destroy();
          }).pipe(response);
        }
        return;
      } catch (error) {
        if (error.code === "ECONNREFUSED") continue;
        this.refusals.push({ node, status: 502, text: error.code ?? error.message, method: request.method, url: request.url });
        break;
      } finally {
        if (response.writableFinished) response.off("close", leave);
      }
    }
    response.writeHead(502).end();
  }

  #tunnel(request, socket, head) {
    const node = this.#pick();
    const [host, port] = ["127.0.0.1", node.port];
    const upstream = node.scheme === "https" ? tls.connect({ host, port, rejectUnauthorized: false }) : net.connect(port, host);
    const lines = request.rawHeaders.flatMap((name, index, all) => (index % 2 ? [] : [`${name}: ${all[index + 1]}`]));
    upstream.write([`GET ${request.url} HTTP/1.1`, ...lines, "", ""].join("\r\n"));
    upstream.write(head);
    socket.pipe(upstream).pipe(socket);
    for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
      one.on("error", () => other.destroy()).on("close", () => other.destroy());
    }
  }

  /** Requests that found no session. */
  get unknown() {
    return this.refusals.filter(({ text }) => text.includes("Session ID unknown"));
  }

  close() {
    for (const socket of this.#sockets) socket.destroy();
    this.server.close();
    this.#http.destroy();
    this.#https.destroy();
  }
}

/** So many, a few at a time: they all share one thread, and none has for ever to connect. */
export async function arrive(count, one) {
  const all = [];
  while (all.length < count) {
    const next = Array.from({ length: Math.min(10, count - all.length) }, (_, index) => one(all.length + index));
    all.push(...await Promise.all(next));
  }
  return all;
}

/** A story of three nodes: `world.nodes`, the first of them `world.server`, and `world.balancer`. */
export function clusterStory(title, { env = {}, nodes = 3, ...options }, run) {
  const together = { ...ADVERTISED, ...env };
  story(title, { on: POSTGRES, env: together, ...options }, async (world, t) => {
    world.nodes = [world.server];
    try {
      while (world.nodes.length < nodes) {
        const { databaseUrl, scheme } = world.server;
        world.nodes.push(await Server.start({ databaseUrl, scheme, env: together }));
      }
      world.balancer = await Balancer.over(world.nodes);
      await run(world, t);
    } catch (error) {
      for (const node of world.nodes.slice(1)) console.error(node.log.slice(-20).join("\n"));
      console.error(world.balancer?.refusals.slice(-10).map(({ status, text, method }) => `${method} ${status} ${text}`).join("\n"));
      throw error;
    } finally {
      world.dispose();
      world.balancer?.close();
      for (const node of world.nodes.slice(1)) await node.dispose();
    }
  });
}
