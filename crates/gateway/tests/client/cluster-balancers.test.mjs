// nginx and HAProxy with the configurations of examples/deploy, in front of three nodes: long polling
// without cookies, WebSockets, who asks, and nodes that come and go under traffic.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import { test } from "node:test";
import { buffer } from "node:stream/consumers";
import { arrive, clusterStory, tagOf } from "./balancer.mjs";
import { Person, Server, eventually, pause, persists, token } from "./harness.mjs";
import { Haproxy, Nginx } from "./programs.mjs";
import { Polling } from "./raw.mjs";

const STOCK = { reconnection: true, reconnectionDelay: 200, reconnectionDelayMax: 400 };
const BUSY = { CARILLON_LIMITS__RATES__MESSAGE: "100000/1m", CARILLON_LIMITS__RATES__ROOM: "100000/1m" };

/** Says what it was told of the client. */
const backend = http.createServer((request, response) => {
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(request.headers));
});
backend.listen(0, "127.0.0.1").unref();
await once(backend, "listening");
const ENVIRONMENT = {
  ...BUSY,
  CARILLON_SERVER__TRUSTED_PROXIES: "127.0.0.1",
  CARILLON_PROXY__UPSTREAM: `http://127.0.0.1:${backend.address().port}`,
};

function balancerStory(Balancer, title, options, run) {
  if (!Balancer.PROGRAM) return test(title, { skip: `no ${Balancer.name.toLowerCase()}` }, () => {});
  return clusterStory(title, { env: ENVIRONMENT, ...options }, async (world, t) => {
    world.program = await Balancer.start(world.nodes);
    try {
      await run(world, t);
    } catch (error) {
      console.error(world.program.said.split("\n").slice(-20).join("\n"));
      throw error;
    } finally {
      await world.program.end();
    }
  });
}

/** A client alone in a room, who counts what it hears and why it was cut off. */
async function talker(server, id, options) {
  const person = await Person.connect(server, id, { ...STOCK, ...options });
  Object.assign(person, { heard: [], sent: [], lost: [], room: `room-of-${id}`, server });
  person.socket.on("receive-message", (event) => person.heard.push(event.message));
  person.socket.on("disconnect", (reason) => person.lost.push(reason));
  await person.joins(person.room);
  return person;
}

const crowd = (server, count, options, from = 0) =>
  arrive(count, (index) => talker(server, `s${from + index}`, options));

async function says(person) {
  const message = `${person.id} ${person.sent.length}`;
  await persists(person, "send-message", { roomId: person.room, message, clientMsgId: randomUUID() });
  person.sent.push(message);
}

const heard = (people) => eventually("all is heard", () => people.every((person) => person.heard.length >= person.sent.length), 10_000);

/** The node that holds a polling client's session. */
const owner = (world, person) => world.nodes.find((node) => person.socket.io.engine.id.startsWith(`${tagOf(node)}.`));

async function ask(url, { headers = {}, localAddress } = {}) {
  const sent = http.get(url, { headers, localAddress, agent: false });
  const [response] = await once(sent, "response");
  return { status: response.statusCode, headers: response.headers, text: (await buffer(response)).toString() };
}

for (const Balancer of [Nginx, Haproxy]) {
  const name = Balancer.name.toLowerCase();

  balancerStory(Balancer, `long-polling clients without cookies are spread evenly by ${name}`, {}, async (world) => {
    const people = await crowd(world.program, 90, { transports: ["polling"] });
    for (let round = 0; round < 4; round += 1) await Promise.all(people.map(says));
    await heard(people);
    for (const person of people) {
      assert.deepEqual(person.heard, person.sent, person.id);
      assert.deepEqual(person.lost, [], person.id);
    }
    const held = world.nodes.map((node) => people.filter((person) => owner(world, person) === node).length);
    assert.ok(Math.min(...held) >= 12, `${held}`);
    const passed = await Promise.all(world.nodes.map((node) => node.metric('carillon_forwarded_total{outcome="answered"}')));
    // HAProxy has learned where each session is. With nginx each node passes on about two thirds of
    // what it gets.
    if (Balancer === Haproxy) assert.deepEqual(passed, [0, 0, 0]);
    else assert.ok(Math.min(...passed) * 4 > Math.max(...passed), `${passed}`);
    const { headers } = await ask(`${world.program.url}/socket.io/?EIO=4&transport=polling`);
    assert.equal(headers["set-cookie"], undefined);
    for (const person of people) person.leaves();
  });

  for (const transports of [["websocket"], ["polling", "websocket"]]) {
    balancerStory(Balancer, `${transports.join(", then ")} passes ${name}`, {}, async (world) => {
      const people = await crowd(world.program, 30, { transports });
      await eventually("the upgrade", () => people.every((one) => one.socket.io.engine.transport.name === "websocket"));
      for (let round = 0; round < 4; round += 1) await Promise.all(people.map(says));
      await heard(people);
      for (const person of people) {
        assert.deepEqual(person.heard, person.sent, person.id);
        assert.deepEqual(person.lost, [], person.id);
      }
      for (const node of world.nodes) await eventually("each has some", async () => (await node.metric("carillon_sockets")) > 0);
      for (const person of people) person.leaves();
    });
  }

  balancerStory(Balancer, `who breaks off a poll at ${name} leaves`, {}, async (world) => {
    const polling = await Polling.open(world.program, token("ana"));
    await polling.post('420["heartbeat"]');
    await polling.until("43");
    const node = world.nodes.find((one) => polling.handshake.sid.startsWith(tagOf(one)));
    const leaves = new AbortController();
    const poll = fetch(polling.url, { signal: leaves.signal }).catch((error) => error.name);
    await pause(300); // It waits at the owner by then.
    leaves.abort();
    assert.equal(await poll, "AbortError");
    await eventually("the owner hears of it", async () => (await node.metric('carillon_closed_total{reason="left"}')) === 1);
  });

  balancerStory(Balancer, `who asks is what ${name} says, and not what a client says`, {}, async (world) => {
    const lies = { "x-forwarded-for": "203.0.113.9", forwarded: "for=203.0.113.9;proto=https", "x-forwarded-proto": "https", "x-forwarded-host": "evil.example" };
    for (const headers of [{}, lies]) {
      const told = JSON.parse((await ask(`${world.program.url}/echo`, { headers, localAddress: "127.0.0.3" })).text);
      assert.match(told.forwarded, /^for=127\.0\.0\.3;proto=http;/);
      assert.deepEqual(told["x-forwarded-for"].split(", ").slice(-2), ["127.0.0.3", "127.0.0.1"]);
      assert.deepEqual([told["x-forwarded-proto"], told.host, told["x-forwarded-host"]], ["http", `127.0.0.1:${world.program.port}`, `127.0.0.1:${world.program.port}`]);
    }
    // Past the balancer nobody is believed.
    const told = JSON.parse((await ask(`${world.server.url}/echo`, { headers: lies, localAddress: "127.0.0.3" })).text);
    assert.deepEqual([told["x-forwarded-for"], told["x-forwarded-proto"]], ["127.0.0.3", "http"]);
  });

  balancerStory(Balancer, `nodes come and go behind ${name} under traffic`, { nodes: 2 }, async (world) => {
    const [leaving, staying] = world.nodes;
    const people = [
      ...await crowd(world.program, 20, { transports: ["polling"] }),
      ...await crowd(world.program, 10, { transports: ["websocket"] }, 20),
    ];
    let isOver = false;
    const refused = [];
    // They go on talking; who is cut off comes back and says it again.
    const talking = people.map(async (person) => {
      while (!isOver) {
        if (person.socket.connected) {
          const message = `${person.id} ${person.sent.length}`;
          const answer = await new Promise((resolve) => person.socket.timeout(15_000).emit("send-message", { roomId: person.room, message, clientMsgId: randomUUID() }, (error, reply) => resolve(error ?? reply)));
          if (answer.ok) person.sent.push(message);
          else if (person.socket.connected && person.lost.length === 0) refused.push(`${person.id}: ${answer.message ?? JSON.stringify(answer)}`);
        }
        await pause(150);
      }
    });
    const polled = people.slice(0, 20);
    const share = (node) => polled.filter((person) => owner(world, person) === node);

    const joining = await Server.start({ databaseUrl: world.server.databaseUrl, env: world.server.env });
    world.nodes.push(joining);
    world.program.reload(world.nodes);
    let late = 100;
    await eventually("new clients come to the new node", async () => {
      const person = await talker(world.program, `s${late++}`, { transports: ["polling"] });
      const isThere = owner(world, person) === joining;
      person.leaves();
      return isThere;
    }, 20_000);
    for (const person of people) assert.deepEqual(person.lost, [], `${person.id} when a node came`);

    const own = share(leaving);
    assert.ok(own.length > 0 && share(staying).length > 0);
    world.program.reload([staying, joining]);
    await pause(1500); // A moment to take effect.
    for (const person of polled) assert.deepEqual(person.lost, [], `${person.id} when a node was taken out`);
    const others = polled.filter((person) => owner(world, person) !== leaving);
    const { code } = await leaving.terminate();
    assert.equal(code, 0);
    await eventually("everybody is back", () => people.every((person) => person.socket.connected), 10_000);
    await pause(1000);
    isOver = true;
    await Promise.all(talking);
    for (const person of others) {
      assert.deepEqual(person.lost, [], `${person.id} had nothing to do with it`);
      assert.deepEqual(person.heard.filter((message) => person.sent.includes(message)), person.sent, person.id);
    }
    assert.deepEqual(refused, []);
    for (const person of people) person.leaves();
  });
}
