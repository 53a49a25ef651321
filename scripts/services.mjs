// What a server needs besides, as throw-away instances on free ports: PostgreSQL and Redis.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { createInterface } from "node:readline";

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

const pinned = (core) => (core === undefined ? [] : ["taskset", "-c", core]);

function findPostgres() {
  const versions = fs.existsSync("/usr/lib/postgresql") ? fs.readdirSync("/usr/lib/postgresql") : [];
  const bin = versions.sort((a, b) => b - a).map((version) => `/usr/lib/postgresql/${version}/bin`)
    .find((directory) => fs.existsSync(`${directory}/initdb`));
  if (!bin) throw new Error("no PostgreSQL under /usr/lib/postgresql");
  return bin;
}

function findRedis() {
  const found = [process.env.CARILLON_TEST_REDIS, "/usr/bin/redis-server", "/usr/local/bin/redis-server",
    "/usr/bin/valkey-server"].find((file) => file && fs.existsSync(file));
  if (!found) throw new Error("no redis-server");
  return found;
}

/** Throws where one of them is not installed. */
export function mustBeInstalled() {
  findPostgres();
  findRedis();
}

/**
 * A PostgreSQL under that directory, on one core if that is said; how many connections to it there
 * are, it says itself.
 */
export async function startPostgres(directory, { core } = {}) {
  const bin = findPostgres();
  const data = fs.mkdtempSync(path.join(directory, "postgres-"));
  // PostgreSQL refuses to run as root.
  const isRoot = process.getuid() === 0;
  fs.chmodSync(directory, 0o711);
  if (isRoot) execFileSync("chown", ["postgres", data]);
  const run = (...command) => {
    const [program, ...args] = [...pinned(core), ...(isRoot ? ["runuser", "-u", "postgres", "--"] : []), ...command];
    return execFileSync(program, args, { stdio: ["ignore", "pipe", "pipe"], cwd: "/" });
  };
  run(`${bin}/initdb`, "-D", `${data}/data`, "-U", "carillon", "-A", "trust", "-E", "UTF8", "--locale=C");
  const port = await freePort();
  const control = (...args) => run(`${bin}/pg_ctl`, "-D", `${data}/data`, "-w", ...args);
  control("-l", `${data}/log`, "-o",
    `-p ${port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=${data} -c max_connections=300`, "start");
  const url = `postgres://carillon@127.0.0.1:${port}/postgres`;
  return {
    url,
    pid: Number(fs.readFileSync(`${data}/data/postmaster.pid`, "utf8").split("\n")[0]),
    connections: () => Number(execFileSync("psql", [url, "-Atc",
      "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"])),
    stop: () => {
      control("stop", "-m", "immediate");
      fs.rmSync(data, { recursive: true, force: true });
    },
  };
}

/** A Redis that keeps nothing on disk, on one core if that is said. */
export async function startRedis(directory, { core } = {}) {
  const port = await freePort();
  const [program, ...args] = [...pinned(core), findRedis(),
    "--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", directory];
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(child, "exit");
  await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      if (/Ready to accept connections/.test(line)) resolve();
    });
    child.on("error", reject);
    exited.then(([code]) => reject(new Error(`Redis ended with ${code}`)));
  });
  return {
    url: `redis://127.0.0.1:${port}`,
    pid: child.pid,
    stop: () => {
      child.kill("SIGKILL");
      return exited;
    },
  };
}
