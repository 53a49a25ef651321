// The load generator against a real server: every scenario for a second, and a sane report.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { median, ratios, reaches, summary } from "../../../../scripts/statistics.mjs";
import { together } from "./cluster.mjs";
import { API_KEY, SECRET, Server, binary } from "./harness.mjs";

const generator = path.join(path.dirname(binary), "carillon-loadtest");
const rates = ["MESSAGE", "ROOM", "EXAM", "LEADERBOARD", "HEARTBEAT", "API", "NOTIFICATION"];
const env = Object.fromEntries(rates.map((name) => [`CARILLON_LIMITS__RATES__${name}`, "1000000/1m"]));

let reports = 0;

/** Runs a scenario, for a second unless it is said; resolves to its report. Fails unless all is sound. */
async function load(server, ...args) {
  const json = path.join(server.directory, `report-${++reports}.json`);
  const common = ["--url", server.url, "--server-pid", server.child.pid, "--json", json];
  const times = ["--warmup", "200ms", ...(args.includes("--duration") ? [] : ["--duration", "1s"])];
  await promisify(execFile)(generator, [...args, ...common, ...times].map(String), {
    env: { JWT_SECRET: SECRET, CARILLON_API_KEY: API_KEY },
    timeout: 30_000,
  });
  return JSON.parse(readFileSync(json, "utf8"));
}

const positive = (...values) => values.forEach((value) => assert.ok(value > 0, `${value}`));
const timed = (...latencies) =>
  latencies.forEach(({ count, p50Ms, p99Ms, maxMs }) => {
    positive(count, p50Ms);
    assert.ok(p50Ms <= p99Ms && p99Ms <= maxMs, `${p50Ms} ${p99Ms} ${maxMs}`);
  });

const options = { timeout: 90_000, concurrency: 4 };

test("every load runs for a second and reports what is plausible", options, async (t) => {
  if (!existsSync(generator)) return t.skip(`${generator} is not built`);
  const server = await Server.start({ env });
  const told = [];
  const story = (name, run) => told.push(t.test(name, run));
  try {
    story("chat, as many in flight", async () => {
      const report = await load(server, "--rooms", 2, "--members", 5, "--in-flight", 4);
      timed(report.reply, report.delivery);
      positive(report.deliveriesPerCpuSecond, report.server.residentBytes);
      assert.equal(report.balance.missing, 0);
      assert.equal(report.balance.delivered, 5 * report.balance.acknowledged);
    });

    story("chat at a rate, many sockets a user", async () => {
      const report = await load(server, "--members", 12, "--users", 3, "--rate", 20);
      timed(report.delivery, report.sending);
      assert.equal(report.balance.delivered, 12 * report.balance.acknowledged);
    });

    story("echo, in a closed loop and at a rate", async () => {
      const closed = await load(server, "echo", "--connections", 4, "--in-flight", 8);
      timed(closed.reply);
      positive(closed.perSecond, closed.perCpuSecond);
      const open = await load(server, "echo", "--connections", 4, "--rate", 50);
      timed(open.reply);
      assert.ok(open.perSecond > 20 && open.perSecond < 80, `${open.perSecond}`);
    });

    story("connect, in a closed loop and at a rate", async () => {
      const closed = await load(server, "connect", "--concurrent", 2, "--users", 5, "--join");
      timed(closed.connect, closed.join);
      positive(closed.perSecond);
      const open = await load(server, "connect", "--rate", 20, "--users", 5);
      timed(open.connect);
      assert.deepEqual(open.failed, {});
    });

    story("idle", async () => {
      const report = await load(server, "idle", "--connections", 60, "--before", 20);
      assert.equal(report.lost, 0);
      assert.ok(report.residentBytesPerConnection >= 0);
      positive(report.residentBytesBefore);
    });

    story("notify", async () => {
      const report = await load(server, "notify", "--users", 20, "--every", "300ms", "--duration", "3s");
      timed(report.reply, report.delivery, report.everybody);
      assert.deepEqual([report.missing, report.duplicated], [0, 0]);
    });

    story("school", async () => {
      const report = await load(
        server, "school", "--idle", 30, "--rooms", 2, "--members", 3, "--message-rate", 10,
        "--students", 10, "--questions", 3, "--answer-rate", 20, "--viewers", 2, "--board-rate", 10,
      );
      const kinds = ["answer", "board", "message", "message delivery"];
      timed(...kinds.map((kind) => report.latencies[kind]));
      assert.deepEqual(report.refused, {});
      assert.equal(report.balance.missing, 0);
    });
    await Promise.all(told);
  } catch (error) {
    console.error(server.log.slice(-20).join("\n"));
    throw error;
  } finally {
    await server.dispose();
  }
});

together("chat on two nodes: written on one, counted on the other", { env }, async ({ nodes, redis }, t) => {
  if (!existsSync(generator)) return t.skip(`${generator} is not built`);
  const [a, b] = nodes;
  const report = await load(
    b, "--rooms", 2, "--members", 5, "--publishers", 2, "--in-flight", 4,
    "--url", a.url, "--server-pid", a.child.pid, "--beside", `redis=${redis.child.pid}`,
  );
  timed(report.reply, report.delivery);
  positive(report.deliveriesPerCpuSecond);
  // A second of it may be less than the kernel counts.
  assert.ok(report.beside.redis >= 0, `${report.beside.redis}`);
  assert.deepEqual([report.settings.nodes, report.balance.missing, report.balance.duplicated], [2, 0, 0]);
  assert.equal(report.balance.delivered, 5 * report.balance.acknowledged);
  const [sent, heard] = await Promise.all([
    a.metric("carillon_redis_published_total"), b.metric("carillon_redis_received_total"),
  ]);
  assert.ok(sent >= report.balance.acknowledged && heard >= report.balance.acknowledged, `${sent} ${heard}`);
});

test("medians, and ratios of what was measured in the same round", () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  assert.ok(Number.isNaN(median([])));
  assert.deepEqual(summary([5, 1, 3]), { median: 3, min: 1, max: 5 });
  assert.deepEqual(ratios([2, 9, 4], [1, 3, 8]), [2, 3, 0.5]);
  assert.deepEqual(ratios([2, 9, 4], [1, NaN]), [2], "a round that lacks one is left out");
  assert.deepEqual([reaches(1.3, 1.3, "more"), reaches(1.2, 1.3, "more")], [true, false]);
  assert.deepEqual([reaches(0.8, 1, "less"), reaches(1.1, 1, "less")], [true, false]);
});
