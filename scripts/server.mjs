// A server to be measured and its load generator, for scripts/soak, scripts/growth and
// scripts/abuse: free ports, databases in a temporary directory, and nothing left at the end.
import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import * as services from "./services.mjs";

export const root = fileURLToPath(new URL("../", import.meta.url));
export const release = path.join(root, "target/release");
const SECRET = "0f8c1d4e5b6a79881726354433221100";
const API_KEY = "ck_load0123456789abcdefghijklmnopqrstuvwxyz";
const RATES = ["MESSAGE", "ROOM", "HEARTBEAT", "EXAM", "LEADERBOARD", "NOTIFICATION", "API"];
/** Nothing a load generator does is too much. */
export const UNLIMITED = {
  CARILLON_LIMITS__UNAUTHENTICATED: "100000",
  CARILLON_LIMITS__FAILED_HANDSHAKES: "1000000/1m",
  ...Object.fromEntries(RATES.map((rate) => [`CARILLON_LIMITS__RATES__${rate}`, "1000000000/1m"])),
};

export const work = fs.mkdtempSync(path.join(os.tmpdir(), "carillon-load-"));
const running = new Set();
let postgres;
process.on("exit", () => {
  running.forEach((child) => child.kill("SIGKILL"));
  postgres?.stop();
  fs.rmSync(work, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(130));

/** Starts a program, on one core if that is said. A connection is an open file. */
export function start(core, command, args, env) {
  const pinned = core === undefined ? [] : ["taskset", "-c", core];
  const child = spawn("sh", ["-c", 'ulimit -n "$(ulimit -Hn)"; exec "$@"', "sh", ...pinned, command, ...args], {
    cwd: work,
    env: { PATH: process.env.PATH, JWT_SECRET: SECRET, CARILLON_API_KEY: API_KEY, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  running.add(child);
  child.exited = once(child, "exit").then(([code]) => {
    running.delete(child);
    return code;
  });
  return child;
}

/** A server that is ready; `stop` ends it. */
export async function serve({ binaries = release, core, database, env = {} } = {}) {
  fs.writeFileSync(path.join(work, "carillon.toml"),
    `[[api_keys]]\nname = "load"\ntenant = "default"\nkey = "${API_KEY}"\nscopes = ["*"]\n`);
  const directory = fs.mkdtempSync(path.join(work, "server-"));
  const began = process.hrtime.bigint();
  const server = start(core, path.resolve(binaries, "carillon"), ["serve", "--config", "carillon.toml"], {
    DATABASE_URL: database ?? `sqlite:${directory}/carillon.db`,
    CARILLON_SERVER__LISTEN: "127.0.0.1:0",
    CARILLON_OPERATIONS__LISTEN: "127.0.0.1:0",
    CARILLON_LOG__FORMAT: "json",
    ...env,
  });
  server.stdout.resume();
  const node = { pid: server.pid, directory, ended: server.exited };
  const said = [];
  for await (const line of createInterface({ input: server.stderr })) {
    said.push(line);
    const fields = JSON.parse(line).fields ?? JSON.parse(line);
    node.operations ??= fields.operations;
    node.address ??= fields.address;
    if (node.address && node.operations) break;
  }
  if (!node.address) throw new Error(`the server did not start:\n${said.join("\n")}`);
  node.readyMs = Number(process.hrtime.bigint() - began) / 1e6;
  server.stderr.resume();
  node.stop = async () => {
    server.kill("SIGTERM");
    await server.exited;
    fs.rmSync(directory, { recursive: true, force: true });
  };
  return node;
}

/** A run of the generator: its exit status and its report. `heard` is called with every line. */
export async function load(node, args, { binaries = release, core, heard = () => {} } = {}) {
  const json = path.join(fs.mkdtempSync(path.join(work, "report-")), "report.json");
  const generator = start(core, path.resolve(binaries, "carillon-loadtest"),
    [...args, "--url", `http://${node.address}`, "--server-pid", String(node.pid), "--json", json]);
  const said = [];
  for (const input of [generator.stdout, generator.stderr]) {
    createInterface({ input }).on("line", (line) => {
      said.push(line);
      heard(line);
    });
  }
  const code = await generator.exited;
  if (code !== 0) console.error(`${args.join(" ")} found fault:\n${said.slice(-12).join("\n")}`);
  if (!fs.existsSync(json)) throw new Error(`${args.join(" ")}: no report\n${said.slice(-10).join("\n")}`);
  return { code, ...JSON.parse(fs.readFileSync(json, "utf8")) };
}

/** A number of /proc/PID/status. */
export function status(pid, name) {
  const text = fs.readFileSync(`/proc/${pid}/status`, "utf8");
  return Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)[1]);
}
export const residentKiB = ({ pid }) => status(pid, "VmRSS");

/** CPU time so far; the kernel counts hundredths of a second. */
export function cpuSeconds({ pid }) {
  const fields = fs.readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

export async function metrics({ operations }) {
  const text = await (await fetch(`http://${operations}/metrics`)).text();
  return (name) => Number(new RegExp(`^${name} (\\S+)`, "m").exec(text)?.[1] ?? NaN);
}

/** A PostgreSQL of its own; how many connections to it there are, it says itself. */
export async function startPostgres() {
  postgres = await services.startPostgres(work);
  return postgres;
}
