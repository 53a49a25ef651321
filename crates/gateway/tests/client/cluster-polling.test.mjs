// A plain round-robin balancer is enough: whichever node a request reaches, it finds its session.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { after, test } from "node:test";
import { ADVERTISED, Balancer, arrive, clusterStory, tagOf } from "./balancer.mjs";
import { POSTGRES, Person, Server, eventually, freshPostgres, pause, persists, story, token, within } from "./harness.mjs";
import { WebSocket } from "ws";
import { Polling, Raw } from "./raw.mjs";

const STOCK = { reconnection: true, reconnectionDelay: 200, reconnectionDelayMax: 400 };
const BUSY = { CARILLON_LIMITS__RATES__MESSAGE: "100000/1m", CARILLON_LIMITS__RATES__ROOM: "100000/1m" };
const QUERY = "/socket.io/?EIO=4&transport=polling";
const UNKNOWN = { status: 400, text: '{"code":1,"message":"Session ID unknown"}' };

async function ask(server, sid, options) {
  const response = await fetch(`${server.url}${QUERY}${sid ? `&sid=${sid}` : ""}`, options);
  return { status: response.status, text: await response.text() };
}

/** A client alone in a room, who counts what it hears. */
async function talker(world, id, options) {
  const person = await Person.connect(world.balancer, id, options);
  person.heard = [];
  person.lost = [];
  person.socket.on("receive-message", (event) => person.heard.push(event.message));
  person.socket.on("disconnect", (reason, why) => person.lost.push([reason, why?.message, why?.description, why?.context?.statusText].join(" ")));
  person.room = `room-of-${id}`;
  await persists(person, "join-room", { roomId: person.room });
  return person;
}

async function says(person, count) {
  const sent = [];
  for (let index = 0; index < count; index += 1) {
    const message = `${person.id} ${index}`;
    await persists(person, "send-message", { roomId: person.room, message, clientMsgId: randomUUID() });
    sent.push(message);
  }
  await eventually(`${person.id} hears all`, () => person.heard.length >= count);
  assert.deepEqual(person.heard, sent);
}

const crowd = (world, count, options) =>
  arrive(count, (index) => talker(world, `s${index}`, options));

/** The node that holds a session, and those that do not. */
function holder(world, sid) {
  const [tag] = sid.split(".");
  const owner = world.nodes.find((node) => tagOf(node) === tag);
  return { owner, others: world.nodes.filter((node) => node !== owner) };
}

for (const transports of [["polling"], ["websocket"], ["polling", "websocket"]]) {
  clusterStory(`sixty clients talk over ${transports} through any node`, { env: BUSY }, async (world) => {
    const people = await crowd(world, 60, { transports });
    await eventually("the upgrade", () => people.every((one) => one.socket.io.engine.transport.name === transports.at(-1)));
    await Promise.all(people.map((person) => says(person, 12)));
    for (const person of people) assert.deepEqual(person.lost, [], person.id);
    assert.deepEqual(world.balancer.refusals, []);
    const counts = world.nodes.map((node) => world.balancer.requests.get(node));
    assert.ok(Math.max(...counts) - Math.min(...counts) <= 1, `each has its share: ${counts}`);
    const sockets = async () => {
      const held = await Promise.all(world.nodes.map((node) => node.metric("carillon_sockets")));
      return held.reduce((one, other) => one + other);
    };
    await eventually("all are counted", async () => (await sockets()) === 60);
    if (transports[0] === "polling") {
      const forwarded = await Promise.all(world.nodes.map((node) => node.metric('carillon_forwarded_total{outcome="answered"}')));
      assert.ok(forwarded.every((count) => count > 20), `${forwarded}`);
    }
    for (const person of people) person.leaves();
    // Who leaves is gone at once, whoever is told.
    await eventually("nobody is left", async () => (await sockets()) === 0);
  });
}

clusterStory("clients of version 2 talk through any node, too", { env: { ...BUSY, CARILLON_SERVER__ALLOW_EIO3: "true" } }, async (world) => {
  const people = [];
  for (const transports of [["polling"], ["polling", "websocket"], ["websocket"]]) {
    const name = `old${people.length}`;
    people.push(...await arrive(8, (index) => talker(world, `${name}-${index}`, { client: "2.5", transports })));
  }
  await Promise.all(people.map((person) => says(person, 8)));
  for (const person of people) assert.deepEqual(person.lost, [], person.id);
  assert.deepEqual(world.balancer.refusals, []);
  for (const person of people) person.leaves();
});

clusterStory("who moves to a WebSocket at another node is who they were", { nodes: 2, env: { CARILLON_SERVER__ALLOW_EIO3: "true" } }, async (world) => {
  const [one, other] = world.nodes;
  const query = `EIO=3&token=${token("ana")}&transport=`;
  const opened = await fetch(`${one.url}/socket.io/?${query}polling`);
  const { sid } = JSON.parse(/\{.*\}/.exec(await opened.text())[0]);
  const ws = new WebSocket(`${other.url.replace("http", "ws")}/socket.io/?${query}websocket&sid=${sid}`, ["v2", "v1"]);
  const raw = new Raw(ws);
  await within(5000, "the WebSocket opens", new Promise((resolve) => ws.on("open", resolve)));
  assert.equal(ws.protocol, "v2");
  raw.send("2probe");
  await raw.next("3probe");
  raw.send("5", "40/chat,");
  // Two namespaces, each of which is answered when it is let in.
  assert.deepEqual([await raw.next("40"), await raw.next("40")].sort(), ["40", "40/chat,"]);
  raw.close();
});

clusterStory("large messages pass, and what is too large is refused", { env: { CARILLON_SERVER__MAX_PAYLOAD: "100000" } }, async (world) => {
  const ana = await talker(world, "ana", { transports: ["polling"] });
  const message = "𝄞".repeat(4000);
  for (let index = 0; index < 6; index += 1) {
    assert.equal((await ana.asks("send-message", { roomId: ana.room, message })).ok, true);
    assert.equal((await ana.hears("receive-message")).message, message);
  }
  const polling = await Polling.open(world.balancer, token("ben"));
  const { others } = holder(world, polling.handshake.sid);
  for (const size of [100_001, 3_000_000, 3_000_000, 3_000_000]) {
    const { status } = await ask(others[0], polling.handshake.sid, { method: "POST", body: "4".repeat(size) });
    assert.equal(status, 413, `${size} bytes`);
  }
  ana.leaves();
});

clusterStory("the ids that others see have no tag, and the session's own is not among them", { nodes: 2 }, async (world) => {
  const polling = await Polling.open(world.balancer, token("ana"));
  assert.match(polling.handshake.sid, /^[a-z2-7]{6}\.[\w-]{16}$/);
  const { sid } = JSON.parse(polling.connected.slice(2));
  assert.match(sid, /^[\w-]{20}$/);
  const ws = await world.person("ben");
  assert.match(ws.socket.id, /^[\w-]{20}$/);
});

clusterStory("a poll that is broken off at one node ends its session at the other", {}, async (world) => {
  const polling = await Polling.open(world.balancer, token("ana"));
  const { sid } = polling.handshake;
  const { owner, others } = holder(world, sid);
  const left = () => owner.metric('carillon_closed_total{reason="left"}');
  await polling.post('420["heartbeat"]');
  await polling.until("43");
  assert.equal(await left(), 0);
  const leaves = new AbortController();
  const poll = fetch(`${others[0].url}${QUERY}&sid=${sid}`, { signal: leaves.signal }).catch((error) => error.name);
  await pause(300); // It waits at the owner by then.
  leaves.abort();
  assert.equal(await poll, "AbortError");
  await eventually("the owner hears of it", async () => (await left()) === 1);
  for (const node of world.nodes) assert.deepEqual(await ask(node, sid), UNKNOWN);
});

clusterStory("clients of a node that is killed are back on the others at once", { env: BUSY }, async (world) => {
  const people = await crowd(world, 30, { ...STOCK, transports: ["polling"] });
  const [killed] = world.nodes;
  const own = people.filter((person) => person.socket.io.engine.id.startsWith(tagOf(killed)));
  assert.ok(own.length > 5);
  const since = Date.now();
  const back = own.map((person) => within(6000, `${person.id} is back`, new Promise((resolve) => person.socket.once("connect", resolve))));
  await killed.kill();
  await Promise.all(back);
  assert.ok(Date.now() - since < 5000, `${Date.now() - since} ms`);
  world.balancer.takeOut(killed);
  await Promise.all(people.map(async (person) => {
    await eventually(`${person.id} is here`, () => person.socket.connected);
    assert.equal((await person.asks("heartbeat")).ok, true);
  }));
  // At its address there is somebody new, who knows nothing of what was.
  const stale = `${tagOf(killed)}.${"A".repeat(16)}`;
  await killed.restart();
  for (const node of world.nodes) assert.deepEqual((await eventually("an answer", async () => {
    const answer = await ask(node, stale);
    return answer.status === 400 && answer;
  }, 10_000)), UNKNOWN);
  for (const person of people) person.leaves();
});

clusterStory("a node that goes away takes nobody's session with it but its own", { env: BUSY }, async (world) => {
  const people = await crowd(world, 30, { ...STOCK, transports: ["polling"] });
  const [leaving] = world.nodes;
  const others = people.filter((person) => !person.socket.io.engine.id.startsWith(tagOf(leaving)));
  assert.ok(others.length > 10);
  const before = world.balancer.requests.get(leaving);
  assert.ok(before > 0);
  world.balancer.takeOut(leaving);
  const since = Date.now();
  assert.equal((await leaving.terminate()).code, 0);
  assert.ok(Date.now() - since < 10_000, `${Date.now() - since} ms`);
  for (const person of others) {
    assert.equal((await person.asks("heartbeat")).ok, true);
    assert.deepEqual(person.lost, [], person.id);
  }
  await Promise.all(people.map((person) => eventually(`${person.id} is here`, () => person.socket.connected)));
  // It has said good-bye.
  const { default: pg } = await import("pg");
  const client = new pg.Client({ connectionString: world.server.databaseUrl });
  await client.connect();
  const { rows } = await client.query("SELECT tag FROM nodes ORDER BY tag");
  await client.end();
  assert.deepEqual(rows.map(({ tag }) => tag), world.nodes.slice(1).map(tagOf).sort());
  for (const person of people) person.leaves();
});

clusterStory("what is forged reaches nothing", {}, async (world) => {
  const [one, other] = world.nodes;
  const polling = await Polling.open(one, token("ana"));
  const { sid } = polling.handshake;
  const [tag, engine] = sid.split(".");
  assert.equal(tag, tagOf(one));
  for (const forged of [`zzzzzz.${engine}`, `${tagOf(other)}.${engine}`, `${tag}.${"A".repeat(16)}`, `${tag}.${tag}.${engine}`, `.${engine}`, `${tag}.`, "x"]) {
    for (const node of world.nodes) assert.deepEqual(await ask(node, forged), UNKNOWN, forged);
  }
  // Who says to be a node is sent nowhere, and may do no more than any client.
  const headers = { "x-carillon-handover": `${"a".repeat(40)} 192.0.2.1 https` };
  assert.deepEqual(await ask(other, sid, { headers }), UNKNOWN);
  assert.equal((await ask(one, sid, { headers, method: "DELETE" })).status, 400);
  for (const method of ["DELETE", "PUT"]) assert.equal((await ask(other, sid, { method })).status, 400);
  const websocket = await fetch(`${other.url}${QUERY.replace("polling", "websocket")}&sid=${sid}`);
  assert.deepEqual([websocket.status, (await websocket.json()).code], [400, 3]);
  assert.equal((await ask(one, sid, { headers, method: "POST", body: '420["heartbeat"]' })).text, "ok");
  await polling.until("43");
  // A row that leads back to where it was read.
  const { default: pg } = await import("pg");
  const client = new pg.Client({ connectionString: one.databaseUrl });
  await client.connect();
  const { rows } = await client.query("SELECT secret FROM nodes");
  await client.query("INSERT INTO nodes (tag, address, secret) VALUES ('looped', $1, 'wrong')", [`http://localhost:${one.port}`]);
  await client.end();
  assert.deepEqual(await ask(one, `looped.${"A".repeat(16)}`), UNKNOWN);
  assert.equal(rows.length, 3);
  for (const node of world.nodes) {
    for (const { secret } of rows) assert.ok(node.log.every((line) => !line.includes(secret)));
  }
});

clusterStory("forged tags, however many, ask the database a few times a second", { nodes: 1 }, async (world) => {
  const since = Date.now();
  const tags = Array.from({ length: 300 }, (_, index) => `aaa${String(index).replace(/\d/g, (digit) => "abcdefghij"[digit]).padStart(3, "a")}`);
  const answers = await Promise.all(tags.map((tag) => ask(world.server, `${tag}.${"A".repeat(16)}`)));
  for (const answer of answers) assert.deepEqual(answer, UNKNOWN);
  assert.ok(Date.now() - since < 5000);
});

story("polls find their way while the database is away", { on: POSTGRES }, async () => {
  const direct = new URL(await freshPostgres());
  const links = new Set();
  let isOpen = true;
  const tunnel = net.createServer((client) => {
    if (!isOpen) return client.destroy();
    const upstream = net.connect(Number(direct.port), direct.hostname);
    for (const [end, far] of [[client, upstream], [upstream, client]]) {
      links.add(end);
      end.on("error", () => {}).on("close", () => (links.delete(end), far.destroy()));
    }
    client.pipe(upstream).pipe(client);
  });
  await new Promise((resolve) => tunnel.listen(0, "127.0.0.1", resolve));
  const through = new URL(direct);
  through.port = String(tunnel.address().port);
  const nodes = [];
  let balancer;
  try {
    for (let index = 0; index < 2; index += 1) nodes.push(await Server.start({ databaseUrl: through.href, env: ADVERTISED }));
    balancer = await Balancer.over(nodes);
    const world = { balancer, nodes };
    const ana = await talker(world, "ana", { transports: ["polling"] });
    await ana.settled();
    await eventually("they know each other", async () => {
      const [one, other] = await Promise.all(nodes.map((node, index) => ask(nodes[1 - index], `${tagOf(node)}.${"A".repeat(16)}`)));
      return one.status === 400 && other.status === 400;
    });
    isOpen = false;
    for (const end of links) end.destroy();
    await eventually("it is away", async () => (await fetch(`${nodes[0].url}/readyz`)).status === 503, 10_000);
    for (let index = 0; index < 10; index += 1) await ana.settled();
    assert.deepEqual(ana.lost, []);
    assert.deepEqual(balancer.refusals, []);
    // Whose it would be cannot be said: that is no reason to take it for nobody's.
    const { status } = await ask(nodes[0], `zzzzzz.${"A".repeat(16)}`);
    assert.equal(status, 502);
    isOpen = true;
    await eventually("it is back", async () => (await ask(nodes[0], `zzzzzz.${"A".repeat(16)}`)).status === 400, 15_000);
    await ana.settled();
    assert.deepEqual(ana.lost, []);
    ana.leaves();
  } finally {
    balancer?.close();
    for (const node of nodes) await node.dispose();
    for (const end of links) end.destroy();
    tunnel.close();
  }
});

const directory = mkdtempSync(path.join(tmpdir(), "carillon-cluster-"));
after(() => rmSync(directory, { recursive: true, force: true }));
const [certificate, key] = ["node.crt", "node.key"].map((file) => path.join(directory, file));
execFileSync("openssl", [
  "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
  "-subj", "/CN=node", "-addext", "subjectAltName=IP:127.0.0.1",
  "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate,
], { stdio: "ignore" });

clusterStory("nodes that speak TLS reach each other over it", {
  nodes: 2,
  scheme: "https",
  env: { CARILLON_SERVER__TLS__CERTIFICATE: certificate, CARILLON_SERVER__TLS__KEY: key, SSL_CERT_FILE: certificate },
}, async (world) => {
  for (const transports of [["polling"], ["polling", "websocket"]]) {
    const people = await crowd(world, 6, { transports });
    await eventually("the upgrade", () => people.every((one) => one.socket.io.engine.transport.name === transports.at(-1)));
    await Promise.all(people.map((person) => says(person, 4)));
    assert.deepEqual(world.balancer.refusals, []);
    for (const person of people) person.leaves();
  }
  const forwarded = await world.server.metric('carillon_forwarded_total{outcome="answered"}');
  assert.ok(forwarded > 0);
});

story("a node that is told nothing of others is as ever", { on: POSTGRES }, async (world) => {
  const polling = await Polling.open(world.server, token("ana"));
  const { sid } = polling.handshake;
  assert.match(sid, /^[\w-]{16}$/);
  assert.deepEqual(await ask(world.server, `aaaaaa.${sid}`), UNKNOWN);
  assert.equal((await polling.post('420["heartbeat"]')).status, 200);
  await polling.until("43");
  assert.equal((await ask(world.server, sid, { method: "DELETE" })).status, 400);
  assert.ok(world.server.log.every((line) => !line.includes("cluster")));
});

// CARILLON_TEST_SOAK="1000 300": so many clients for so many seconds.
const [clients, seconds] = (process.env.CARILLON_TEST_SOAK ?? "120 8").split(" ").map(Number);
test(`${clients} clients poll round robin for ${seconds} s, and nothing is lost`, {
  skip: POSTGRES.length === 0 ? "no PostgreSQL" : process.env.CARILLON_TEST_QUICK ? "long" : false,
  timeout: (seconds + 240) * 1000,
}, async (t) => {
  const databaseUrl = await freshPostgres();
  const nodes = [];
  let balancer;
  // As browsers: not every request opens a connection.
  const agent = new http.Agent({ keepAlive: true, timeout: 10_000 });
  const lag = monitorEventLoopDelay();
  lag.enable();
  const people = [];
  try {
    while (nodes.length < 3) nodes.push(await Server.start({ databaseUrl, env: { ...ADVERTISED, ...BUSY } }));
    balancer = await Balancer.over(nodes);
    await arrive(clients, async (index) => people.push(await talker({ balancer }, `s${index}`, { transports: ["polling"], agent })));
    const until = Date.now() + seconds * 1000;
    // A message from each of them every so often; the first ones spread over that time.
    const every = Math.max(1000, clients * 30);
    const waits = [];
    await Promise.all(people.map(async (person, index) => {
      await pause((every * index) / clients);
      person.sent = [];
      do {
        const since = Date.now();
        const message = `${person.id} ${person.sent.length}`;
        await persists(person, "send-message", { roomId: person.room, message, clientMsgId: randomUUID() });
        person.sent.push(message);
        waits.push(Date.now() - since);
        await pause(Math.max(0, every - (Date.now() - since)));
      } while (Date.now() < until);
    }));
    await eventually("all is heard", () => people.every((person) => person.heard.length >= person.sent.length), 30_000);
    for (const person of people) {
      assert.deepEqual(person.heard, person.sent, person.id);
      assert.deepEqual(person.lost, [], person.id);
    }
    assert.deepEqual(balancer.unknown, []);
    assert.deepEqual(balancer.refusals, []);
    waits.sort((one, other) => one - other);
    const at = (share) => waits[Math.floor((waits.length - 1) * share)];
    const requests = [...balancer.requests.values()];
    t.diagnostic(`${waits.length} messages, ${requests.join(" + ")} requests; answered after ${at(0.5)} ms, 99 %: ${at(0.99)} ms, at most ${at(1)} ms; this thread was late by ${Math.round(lag.percentile(99) / 1e6)} ms (99 %)`);
  } catch (error) {
    for (const node of nodes) console.error(node.log.filter((line) => !line.includes('"INFO"')).slice(-10).join("\n"));
    console.error(balancer?.refusals.slice(-10).map(({ status, text, method }) => `${method} ${status} ${text}`).join("\n"));
    for (const node of nodes) console.error((await node.metrics()).filter((line) => /^carillon_(closed|forwarded|commands)_total/.test(line)).join("\n"));
    console.error(`this thread was late by ${Math.round(lag.percentile(99) / 1e6)} ms, at most ${Math.round(lag.max / 1e6)} ms`);
    throw error;
  } finally {
    for (const person of people) person.leaves();
    agent.destroy();
    balancer?.close();
    for (const node of nodes) await node.dispose();
  }
});
