// Several nodes, and what goes wrong: Redis, nodes and links that end in the middle of things.
import assert from "node:assert/strict";
import { once } from "node:events";
import { DATABASES, eventually, pause, within } from "./harness.mjs";
import { Redis, cutsOff, together } from "./cluster.mjs";
import { Balancer } from "./balancer.mjs";
import { COMES_BACK, Talk, examDeadline, range, rollingRestart } from "./drills.mjs";

together("every member hears the same, whatever Redis and the network do", { nodes: 3 }, async (cluster) => {
  const talk = await Talk.begin(cluster, { rooms: 20, each: 10, everyMs: 0, cuts: 0.03 });
  await pause(400);
  await cluster.redis.kill();
  await pause(1500);
  await cluster.redis.launch();
  await within(60_000, "everything is said", talk.said);
  assert.deepEqual(await talk.faults(), []);
});

for (const [what, holder] of [["is gone", "killed"], ["sleeps", "asleep"]]) {
  together(`a deadline comes though the node that watched it ${what}`, { nodes: 3 }, async (cluster) => {
    const told = await examDeadline(cluster, { holder, students: 12, sleepMs: 8_000 });
    assert.deepEqual(told.counted, range(12));
    assert.ok(told.finalMs < 12_000, `${told.finalMs} ms`);
    assert.ok(told.isUnchanged, "the node that slept does nothing a second time");
    assert.equal(told.attempts.length, 12);
    for (const attempt of told.attempts) {
      assert.equal(Date.parse(attempt.completedAt), told.closesAt, JSON.stringify(attempt));
      assert.equal(attempt.deadlineAt, attempt.completedAt);
    }
    assert.equal(told.results.length, 12);
    assert.deepEqual([told.finished, told.finishedAsleep], [12, 0]);
    assert.deepEqual(told.again, []);
  });
}

together("nodes are restarted one after the other, and nobody loses anything", { nodes: 3, env: { CARILLON_CLUSTER__ADVERTISE: "127.0.0.1" } }, async (cluster) => {
  const balancer = await Balancer.over(cluster.nodes);
  cluster.keep({ dispose: () => balancer.close() });
  const told = await rollingRestart(cluster, {
    url: balancer.url, count: 60, perRoom: 6, ...COMES_BACK, transports: [["websocket"], ["polling", "websocket"]],
    leaves: (node) => balancer.takeOut(node),
    returns: (node) => balancer.nodes.push(node),
  });
  for (const { code, ms } of told.exits) {
    assert.equal(code, 0);
    assert.ok(ms < 20_000, "gone within 20 s");
  }
  assert.deepEqual([told.lost, told.twice], [[], []]);
  assert.ok(told.mostFailures <= 3, `refused ${told.mostFailures} times in a row`);
  const longest = Math.max(...told.away);
  assert.ok(longest < 8_000, `back after ${longest} ms`);
  // Nobody was shown offline for it.
  assert.deepEqual(told.offline, []);
});

together("a Redis with a password is one like any other", { on: [DATABASES[0]], nodes: 0 }, async (cluster) => {
  const redis = cluster.keep(await Redis.start({ password: "a secret" }));
  cluster.options.env.REDIS_URL = redis.url;
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
  for (const args of [[], ["a text"], [1, "text"], [new Date()]]) {
    // She is in her room again: what is foreign is not kept for her.
    await ana.settled();
    io.to("algebra").emit("foreign", ...args);
    await ana.hears("foreign");
    await pause(200);
    const back = once(ana.socket, "connect");
    await cutsOff(ana);
    await within(5000, "Ana is back", back);
    assert.deepEqual([ana.socket.recovered, ana.socket.id], [true, id], JSON.stringify(args));
  }
});
