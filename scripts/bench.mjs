// Runs the scenarios of scripts/bench: every peer in turn, several rounds, and what they compare to.
import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { mustBeInstalled, startPostgres, startRedis } from "./services.mjs";
import { median, ratios, reaches, summary } from "./statistics.mjs";

const root = fileURLToPath(new URL("../", import.meta.url));
const SECRET = "0f8c1d4e5b6a79881726354433221100";
const API_KEY = "ck_bench0123456789abcdefghijklmnopqrstuvwxy";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "3" },
    warmup: { type: "string", default: "2" },
    out: { type: "string", default: path.join(root, "target/bench") },
    peers: { type: "string", default: "carillon,node,bare" },
    binaries: { type: "string", default: path.join(root, "target/release") },
    "server-core": { type: "string", default: "0" },
    "generator-core": { type: "string", default: "1" },
    work: { type: "string" },
    "no-build": { type: "boolean" },
    list: { type: "boolean" },
    help: { type: "boolean" },
  },
});

// Who is measured. Each prints a line that says where it listens. `needs` is what several nodes of one
// share: how it is started, and the variable that names it to them.
const RATES = ["MESSAGE", "ROOM", "HEARTBEAT", "EXAM", "LEADERBOARD", "NOTIFICATION", "API"];
const built = (name) => path.resolve(options.binaries, name);
const PEERS = {
  carillon: {
    command: (directory) => [built("carillon"), "serve", "--config", `${directory}/carillon.toml`],
    env: (directory) => ({
      DATABASE_URL: `sqlite:${directory}/carillon.db`,
      CARILLON_SERVER__LISTEN: "127.0.0.1:0",
      CARILLON_OPERATIONS__LISTEN: "127.0.0.1:0",
      CARILLON_LOG__FORMAT: "json",
      CARILLON_LIMITS__UNAUTHENTICATED: "100000",
      CARILLON_LIMITS__FAILED_HANDSHAKES: "1000000/1m",
      ...Object.fromEntries(RATES.map((rate) => [`CARILLON_LIMITS__RATES__${rate}`, "1000000000/1m"])),
    }),
    prepare: (directory) => fs.writeFileSync(
      `${directory}/carillon.toml`,
      `[[api_keys]]\nname = "bench"\ntenant = "default"\nkey = "${API_KEY}"\nscopes = ["*"]\n`,
    ),
    ready: /"ready".*"address":"([^"]+)"|"address":"([^"]+)".*"ready"/,
    needs: {
      postgresql: { launch: startPostgres, variable: "DATABASE_URL" },
      redis: { launch: startRedis, variable: "REDIS_URL" },
    },
  },
  node: {
    command: () => [process.execPath, path.join(root, "examples/node-peer/server.mjs")],
    env: () => ({ PORT: "0", NODE_ENV: "production" }),
    ready: /ready on http:\/\/(\S+)/,
    needs: { redis: { launch: startRedis, variable: "REDIS_URL" } },
  },
  bare: {
    command: () => [built("examples/bare")],
    env: () => ({ PORT: "0" }),
    ready: /ready on http:\/\/(\S+)/,
  },
};

// What is measured: figures of the generator's report, and how they are to compare.
const messages = "carillon: a message is flushed to disk before it is acknowledged or delivered; "
  + "node and bare keep nothing";
const clustered = "carillon: a message and its outbox row are flushed to disk by PostgreSQL before it is "
  + "acknowledged or published; node keeps nothing";
const rows = "carillon: rows are flushed to disk before they are told of";
const nothing = "nothing, on either side";
// A latency that was never measured is none.
const at99 = (latency) => (latency.count > 0 ? latency.p99Ms : NaN);
const perCpu = { name: "deliveries per CPU-second", better: "more", of: (r) => r.deliveriesPerCpuSecond };
const p99 = { name: "delivery p99, ms", better: "less", isLatency: true, of: (r) => at99(r.delivery) };
const sum = (values) => values.reduce((a, b) => a + b, 0);
const perAllCpu = {
  name: "the same, with what is used by Redis and PostgreSQL", better: "more",
  of: (r) => r.deliveriesPerSecond / (r.server.busyShare + sum(Object.values(r.beside))),
};
const chat = (args, durable, figures) => ({ args, durable, figures });
const SCENARIOS = {
  "chat-1x1000-w1": chat(["--members", "1000", "--in-flight", "1"], messages, [
    { ...perCpu, bars: { node: { must: 1.3, aim: 1.9 }, bare: { must: 1 } } },
    p99,
  ]),
  "chat-1x1000-w4": chat(["--members", "1000", "--in-flight", "4"], messages, [
    { ...perCpu, bars: { node: { must: 2.3, aim: 3.3 } } },
    p99,
  ]),
  "chat-100x10-w1": chat(["--rooms", "100", "--members", "10", "--in-flight", "1"], messages, [
    { ...perCpu, bars: { node: { must: 1.3, aim: 1.9 }, bare: { must: 1 } } },
    p99,
  ]),
  // 5,000 sockets of 500 users: entering makes every user known to everybody in the room.
  "chat-1x5000-10ps": chat(["--members", "5000", "--users", "500", "--rate", "10"], messages, [
    { ...p99, bars: { node: { must: 1, aim: 0.75 } } },
    perCpu,
  ]),
  "chat-1x1000-50ps": chat(["--members", "1000", "--rate", "50"], messages, [
    { ...p99, bars: { node: { must: 0.8, aim: 0.5 } } },
    perCpu,
  ]),
  echo: {
    args: ["echo", "--connections", "50", "--in-flight", "32"],
    durable: nothing,
    figures: [{
      name: "acknowledgements per CPU-second", better: "more", of: (r) => r.perCpuSecond,
      bars: { node: { must: 4, aim: 6 } },
    }],
  },
  connect: {
    args: ["connect", "--concurrent", "16", "--users", "200"],
    durable: "carillon: a user's row, at the first connection of each of 200; node and bare keep nothing",
    figures: [
      {
        name: "connections per CPU-second", better: "more", of: (r) => r.perCpuSecond,
        bars: { node: { must: 2.4, aim: 5 } },
      },
      { name: "connect p99, ms", better: "less", isLatency: true, of: (r) => at99(r.connect) },
    ],
  },
  "idle-5000": {
    args: ["idle", "--connections", "5000"],
    warmup: 3, // what a server does a second after a connection is done
    durable: "carillon: a user's row; node and bare keep nothing",
    figures: [{
      name: "resident bytes per idle connection", better: "less",
      of: (r) => r.residentBytesPerConnection,
      bars: { node: { must: 1.3, aim: 1.25 } },
    }],
  },
  // Written to on one node, counted on the other; what they share is on the core of both.
  "nodes-100x10-w1": {
    ...chat(["--rooms", "100", "--members", "10", "--in-flight", "1"], clustered, [
      { ...perCpu, bars: { node: { must: 1.3, aim: 2 } } },
      perAllCpu,
      { ...p99, bars: { node: { must: 1 } } },
    ]),
    nodes: 2,
    peers: ["carillon", "node"],
  },
  "nodes-100x10-200ps": {
    ...chat(["--rooms", "100", "--members", "10", "--rate", "200"], clustered, [
      { ...p99, bars: { node: { must: 1 } } },
      perCpu,
      perAllCpu,
    ]),
    nodes: 2,
    peers: ["carillon", "node"],
  },
  notify: {
    args: ["notify", "--users", "1000", "--every", "500ms"],
    durable: rows,
    peers: ["carillon"],
    figures: [
      { name: "to the last of 1,000, p99, ms", better: "less", isLatency: true, of: (r) => at99(r.everybody) },
      { ...perCpu, of: (r) => r.perCpuSecond },
    ],
  },
  school: {
    args: ["school"],
    durable: rows,
    peers: ["carillon"],
    figures: ["message", "message delivery", "answer", "board", "heartbeat"].map((kind) => ({
      name: `${kind} p99, ms`, better: "less", isLatency: true, of: (r) => at99(r.latencies[kind]),
    })),
  },
};
const DEFAULT = Object.keys(SCENARIOS).filter((name) => SCENARIOS[name].figures.some(({ bars }) => bars));

// Everything that runs, so that nothing does when this ends.
const running = new Set();
function start(core, command, env, directory) {
  const child = spawn("taskset", ["-c", core, ...command], {
    cwd: directory,
    env: { PATH: process.env.PATH, JWT_SECRET: SECRET, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  running.add(child);
  child.exited = once(child, "exit").then(([code]) => {
    running.delete(child);
    return code;
  });
  return child;
}
const shared = new Set();
process.on("exit", () => {
  running.forEach((child) => child.kill("SIGKILL"));
  shared.forEach((service) => service.stop());
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(130));

/** The median time of an append of 4 KiB and a flush, in ms. */
function flushTime(directory, times = 30) {
  const file = fs.openSync(path.join(directory, "flush"), "w");
  const block = Buffer.alloc(4096, 1);
  const took = Array.from({ length: times }, () => {
    const began = process.hrtime.bigint();
    fs.writeSync(file, block);
    fs.fsyncSync(file);
    return Number(process.hrtime.bigint() - began) / 1e6;
  });
  fs.closeSync(file);
  return median(took);
}

async function listening(child, pattern, log) {
  return new Promise((resolve, reject) => {
    for (const input of [child.stdout, child.stderr]) {
      createInterface({ input }).on("line", (line) => {
        log.write(`${line}\n`);
        const found = pattern.exec(line);
        if (found) resolve(found[1] ?? found[2]);
      });
    }
    child.exited.then((code) => reject(new Error(`${child.spawnargs.join(" ")} ended with ${code}`)));
  });
}

/** One run of one scenario against one peer; its report, and whether the generator found fault. */
async function run(name, peerName, round, out) {
  const directory = fs.mkdtempSync(path.join(options.work, `${peerName}-`));
  const file = path.join(out, `${name}.${round + 1}.${peerName}`);
  fs.rmSync(`${file}.json`, { force: true });
  const log = fs.createWriteStream(`${file}.log`);
  const peer = PEERS[peerName];
  peer.prepare?.(directory);
  const flushMs = flushTime(directory);
  const { nodes = 1, args, warmup = options.warmup } = SCENARIOS[name];
  const core = options["server-core"];
  const beside = {};
  const servers = [];
  try {
    const env = peer.env(directory);
    for (const [service, { launch, variable }] of nodes > 1 ? Object.entries(peer.needs) : []) {
      beside[service] = await launch(options.work, { core });
      shared.add(beside[service]);
      env[variable] = beside[service].url;
    }
    const places = [];
    for (let node = 0; node < nodes; node += 1) {
      const server = start(core, peer.command(directory), env, directory);
      servers.push(server);
      const address = await listening(server, peer.ready, log);
      places.push("--url", `http://${address}`, "--server-pid", String(server.pid));
    }
    const generator = start(options["generator-core"], [
      built("carillon-loadtest"), ...args, ...places,
      ...Object.entries(beside).flatMap(([service, { pid }]) => ["--beside", `${service}=${pid}`]),
      "--json", `${file}.json`, "--warmup", `${warmup}s`, "--duration", `${options.seconds}s`,
    ], { CARILLON_API_KEY: API_KEY }, directory);
    for (const input of [generator.stdout, generator.stderr]) {
      createInterface({ input }).on("line", (line) => log.write(`${line}\n`));
    }
    const code = await generator.exited;
    if (!fs.existsSync(`${file}.json`)) throw new Error(`no report: see ${file}.log`);
    const report = { ...JSON.parse(fs.readFileSync(`${file}.json`, "utf8")), flushMs, isSound: code === 0 };
    fs.writeFileSync(`${file}.json`, JSON.stringify(report, null, 2));
    return report;
  } finally {
    for (const server of servers) {
      server.kill("SIGKILL");
      await server.exited.catch(() => {});
    }
    for (const service of Object.values(beside)) {
      await service.stop();
      shared.delete(service);
    }
    fs.rmSync(directory, { recursive: true, force: true });
    log.end();
  }
}

const plain = (value) => {
  if (!Number.isFinite(value)) return "?";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
};
const spread = ({ median, min, max }) => `${plain(median)} (${plain(min)} to ${plain(max)})`;
const percent = (reports, of) => `${Math.round(100 * median(reports.map(of)))} %`;

/** What a bar says of a ratio. */
function verdict({ must, aim }, ratio, better) {
  const said = [`must ${must}: ${reaches(ratio, must, better) ? "yes" : "NO"}`];
  if (aim !== undefined) said.push(`aim ${aim}: ${reaches(ratio, aim, better) ? "yes" : "no"}`);
  return said.join(", ");
}

/** The lines and the rows of a table for one scenario. */
function tell(name, reports) {
  const { figures, durable } = SCENARIOS[name];
  const peers = Object.keys(reports);
  const flush = median(peers.flatMap((peer) => reports[peer].map((report) => report.flushMs)));
  console.log(`\n== ${name}\n   durable: ${durable}\n   a flush of the disk: ${plain(flush)} ms`);
  const rows = [];
  for (const figure of figures) {
    const beside = figure.isLatency && durable !== nothing ? `, beside a flush of ${plain(flush)} ms` : "";
    console.log(`   ${figure.name} (${figure.better} is better${beside})`);
    const values = Object.fromEntries(peers.map((peer) => [peer, reports[peer].map(figure.of)]));
    for (const peer of peers) console.log(`     ${peer.padEnd(18)} ${spread(summary(values[peer]))}`);
    const compared = {};
    for (const peer of peers.filter((peer) => peer !== "carillon" && values.carillon)) {
      compared[peer] = summary(ratios(values.carillon, values[peer]));
      const bar = figure.bars?.[peer];
      const said = bar ? `   ${verdict(bar, compared[peer].median, figure.better)}` : "";
      console.log(`     ${`carillon / ${peer}`.padEnd(18)} ${spread(compared[peer])}${said}`);
    }
    rows.push({ scenario: name, figure: figure.name, better: figure.better, flushMs: flush,
      bars: figure.bars ?? {}, compared,
      peers: Object.fromEntries(peers.map((peer) => [peer, summary(values[peer])])) });
  }
  for (const peer of peers) {
    const unsound = reports[peer].filter((report) => !report.isSound);
    const busy = percent(reports[peer], (r) => r.server?.busyShare ?? NaN);
    const own = percent(reports[peer], (r) => r.generatorBusyShare);
    const beside = Object.keys(reports[peer][0]?.beside ?? {})
      .map((service) => `${service} ${percent(reports[peer], (r) => r.beside[service])}, `).join("");
    const faults = new Set(unsound.flatMap(({ balance = {} }) =>
      ["missing", "duplicated", "outOfOrder"].filter((fault) => balance[fault] > 0)));
    const fault = unsound.length
      ? `   FAULT IN ${unsound.length} OF ${reports[peer].length} RUNS: ${[...faults].join(", ") || "see the logs"}`
      : "";
    console.log(`   ${peer}: server ${busy} busy, ${beside}generator ${own} busy${fault}`);
  }
  return rows;
}

/** The same as Markdown, for docs/PERFORMANCE.md. */
function table(rows) {
  const cell = (value) => (value ? spread(value) : "");
  const ratio = (row, peer) => {
    if (!row.compared[peer]) return "";
    const bar = row.bars[peer];
    return spread(row.compared[peer]) + (bar ? `; ${verdict(bar, row.compared[peer].median, row.better)}` : "");
  };
  return [
    "| Scenario | Figure | Carillon | Node | bare socketioxide | Carillon / Node | Carillon / bare |",
    "|---|---|---|---|---|---|---|",
    ...rows.map((row) => `| ${[row.scenario, row.figure, cell(row.peers.carillon), cell(row.peers.node),
      cell(row.peers.bare), ratio(row, "node"), ratio(row, "bare")].join(" | ")} |`),
  ].join("\n");
}

async function main() {
  if (options.list || options.help) {
    console.log("scripts/bench [--rounds 5] [--seconds 3] [--warmup 2] [--out DIR] [--no-build]\n"
      + "              [--peers carillon,node,bare] [--binaries DIR] [SCENARIO …]\n");
    for (const [name, { args, nodes }] of Object.entries(SCENARIOS)) {
      const all = [...args, ...(nodes ? [`on ${nodes} nodes`] : [])].join(" ");
      console.log(`${name.padEnd(18)} ${DEFAULT.includes(name) ? " " : "-"} ${all}`);
    }
    console.log("\nThose with a - are not run unless named.");
    return;
  }
  const names = positionals.length ? positionals : DEFAULT;
  for (const name of names) if (!SCENARIOS[name]) throw new Error(`no scenario ${name}: see --list`);
  const out = path.resolve(options.out);
  fs.mkdirSync(out, { recursive: true });
  const rows = [];
  for (const name of names) {
    const able = SCENARIOS[name].peers ?? Object.keys(PEERS);
    if (SCENARIOS[name].nodes) {
      try {
        mustBeInstalled();
      } catch (error) {
        console.log(`\n!! SKIPPED: ${name}: ${error.message}`);
        continue;
      }
    }
    const peers = able.filter((peer) => options.peers.split(",").includes(peer));
    const reports = Object.fromEntries(peers.map((peer) => [peer, []]));
    for (let round = 0; round < Number(options.rounds); round += 1) {
      // Everybody is first now and then.
      const order = peers.map((_, place) => peers[(place + round) % peers.length]);
      for (const peer of order) {
        console.error(`${name}: round ${round + 1} of ${options.rounds}, ${peer}`);
        reports[peer].push(await run(name, peer, round, out));
      }
    }
    rows.push(...tell(name, reports));
    fs.writeFileSync(path.join(out, "summary.json"), JSON.stringify(rows, null, 2));
    fs.writeFileSync(path.join(out, "summary.md"), `${table(rows)}\n`);
  }
  console.log(`\nEvery report, the logs and the table are in ${out}`);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
