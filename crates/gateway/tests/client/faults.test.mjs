// The proxy that makes a network worse does what it says, and nothing else.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { FaultProxy } from "./faults.mjs";
import { eventually, pause, within } from "./harness.mjs";

/** Says back what it hears; remembers how it came, and how each link ended. */
async function echo(name = "") {
  const server = net.createServer((socket) => {
    const link = { chunks: [], ended: undefined };
    server.links.push(link);
    if (name) socket.write(name);
    socket.on("data", (data) => {
      link.chunks.push(data);
      socket.write(data);
    });
    socket.on("error", (error) => { link.ended = error.code; });
    socket.on("end", () => { link.ended = "left"; });
  }).listen(0, "127.0.0.1");
  server.links = [];
  await once(server, "listening");
  server.port = server.address().port;
  return server;
}

/** A client that remembers what it hears. */
function caller(port) {
  const socket = net.connect(port, "127.0.0.1");
  const client = { socket, heard: Buffer.alloc(0), ended: undefined };
  socket.on("data", (data) => { client.heard = Buffer.concat([client.heard, data]); });
  socket.on("error", (error) => { client.ended = error.code; });
  socket.on("end", () => { client.ended ??= "left"; });
  client.hears = (length, ms = 5000) => eventually(`${length} bytes`, () => client.heard.length >= length, ms);
  return client;
}

function proxied(title, run) {
  test(title, { timeout: 30_000 }, async () => {
    const server = await echo();
    const proxy = await FaultProxy.before(server.port);
    try {
      await run(proxy, server);
    } finally {
      proxy.dispose();
      server.close();
    }
  });
}

proxied("what is not made worse arrives whole and in order, and ends as it should", async (proxy, server) => {
  const data = randomBytes(5_000_000);
  const client = caller(proxy.port);
  client.socket.end(data);
  await client.hears(data.length, 20_000);
  assert.ok(client.heard.equals(data));
  await eventually("both have left", () => client.ended && server.links[0].ended);
  assert.deepEqual([client.ended, server.links[0].ended], ["left", "left"]);
  await eventually("no link is left", () => proxy.links === 0);
});

proxied("latency delays each way, and keeps the order", async (proxy) => {
  proxy.latencyMs = 150;
  const client = caller(proxy.port);
  await once(client.socket, "connect");
  const began = Date.now();
  for (let count = 0; count < 100; count += 1) client.socket.write(`${count};`);
  const all = Array.from({ length: 100 }, (_, at) => `${at};`).join("");
  await client.hears(all.length);
  const took = Date.now() - began;
  assert.equal(`${client.heard}`, all);
  // There and back, and not so for each of the hundred.
  assert.ok(took >= 295 && took < 3000, `${took} ms`);
});

proxied("bandwidth is what it is said to be", async (proxy) => {
  proxy.bytesPerSecond = 8_192;
  const client = caller(proxy.port);
  const began = Date.now();
  client.socket.write(Buffer.alloc(8_192));
  await client.hears(8_192, 15_000);
  const took = Date.now() - began;
  assert.ok(took >= 900 && took < 8000, `${took} ms`);
});

proxied("slices come one by one", async (proxy, server) => {
  proxy.sliceBytes = 3;
  const data = randomBytes(600);
  const client = caller(proxy.port);
  client.socket.write(data);
  await client.hears(data.length, 20_000);
  assert.ok(client.heard.equals(data));
  // The kernel may put a few together again.
  assert.ok(server.links[0].chunks.length > 100, `${server.links[0].chunks.length} slices`);
});

proxied("nothing gets through a hole, and everything when it is filled", async (proxy, server) => {
  const [client, leaver] = [caller(proxy.port), caller(proxy.port)];
  for (const one of [client, leaver]) one.socket.write("before");
  await client.hears(6);
  await leaver.hears(6);
  proxy.hole();
  client.socket.write(" within");
  leaver.socket.resetAndDestroy();
  const late = caller(proxy.port);
  late.socket.write("late");
  await pause(400);
  assert.deepEqual([`${client.heard}`, `${late.heard}`, server.links.length], ["before", "", 2]);
  assert.deepEqual(server.links.map(({ ended }) => ended), [undefined, undefined]);
  proxy.fill();
  await client.hears(13);
  await late.hears(4);
  assert.deepEqual([`${client.heard}`, `${late.heard}`], ["before within", "late"]);
  await eventually("that somebody left is heard", () => server.links.some(({ ended }) => ended));
});

proxied("a reset is one on both sides, and new links lead elsewhere", async (proxy, server) => {
  const other = await echo("other");
  const client = caller(proxy.port);
  client.socket.write("hello");
  await client.hears(5);
  proxy.target = other.port;
  proxy.reset();
  await eventually("both hear of it", () => client.ended && server.links[0].ended);
  assert.deepEqual([client.ended, server.links[0].ended], ["ECONNRESET", "ECONNRESET"]);
  const next = caller(proxy.port);
  await next.hears(5);
  assert.equal(`${next.heard}`, "other");
  proxy.refuse();
  await eventually("that one, too", () => next.ended);
  const refused = caller(proxy.port);
  await within(3000, "it is refused", eventually("an end", () => refused.ended));
  proxy.accept();
  const again = caller(proxy.port);
  await again.hears(5);
  other.close();
});
