// nginx and HAProxy as programs, with the configurations of examples/deploy.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "./cluster.mjs";
import { eventually, pause } from "./harness.mjs";

const deploy = fileURLToPath(new URL("../../../../examples/deploy/", import.meta.url));

/** Where a program is, if it is. */
const find = (name) =>
  [...process.env.PATH.split(":"), "/usr/sbin", "/usr/local/sbin"].map((directory) => path.join(directory, name)).find(existsSync);

/** A configuration with other addresses; each replacement must find its place. */
function rendered(file, replacements) {
  return replacements.reduce((text, [what, by]) => {
    assert.match(text, what, file);
    return text.replace(what, by);
  }, readFileSync(path.join(deploy, file), "utf8"));
}

/** A balancer that runs, in a directory of its own; for so many connections. */
class Program {
  static async start(nodes, { connections = 4000 } = {}) {
    const program = new this();
    program.connections = connections;
    program.directory = mkdtempSync(path.join(tmpdir(), "carillon-balancer-"));
    program.port = await freePort();
    program.url = `http://127.0.0.1:${program.port}`;
    program.write(nodes);
    program.said = "";
    program.child = spawn(...program.command(), { stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [program.child.stdout, program.child.stderr]) {
      stream.on("data", (data) => { program.said += data; });
    }
    program.ended = once(program.child, "exit");
    await eventually("the balancer answers", async () => {
      assert.equal(program.child.exitCode, null, program.said);
      const response = await fetch(`${program.url}/livez`).catch(() => undefined);
      return response?.ok;
    }, 10_000);
    return program;
  }

  /** As an operator does it: the file is changed, the program is told. */
  reload(nodes) {
    this.write(nodes);
    this.child.kill(this.constructor.RELOAD);
  }

  async end() {
    this.child.kill("SIGTERM");
    await Promise.race([this.ended, pause(3000)]);
    this.child.kill("SIGKILL");
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export class Nginx extends Program {
  static PROGRAM = find("nginx");
  static RELOAD = "SIGHUP";

  write(nodes) {
    const [first, ...more] = nodes.map((node) => `    server 127.0.0.1:${node.port} max_fails=1 fail_timeout=5s;\n`);
    const site = rendered("nginx-cluster.conf", [
      [/listen 80;/, `listen 127.0.0.1:${this.port};`],
      [/( {4}server gateway-\d:3001 max_fails=1 fail_timeout=5s;\n){3}/, first + more.join("")],
    ]);
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((what) => `${what}_temp_path ${this.directory}/${what};`);
    writeFileSync(path.join(this.directory, "site.conf"), site);
    writeFileSync(path.join(this.directory, "nginx.conf"), `
      daemon off;
      ${process.getuid() === 0 ? "user root;" : ""}
      worker_processes 2;
      pid ${this.directory}/nginx.pid;
      error_log stderr warn;
      events { worker_connections 4096; }
      http { ${temporary.join(" ")} include ${this.directory}/site.conf; }
    `);
  }

  command() {
    return [Nginx.PROGRAM, ["-p", this.directory, "-c", path.join(this.directory, "nginx.conf"), "-e", "stderr"]];
  }
}

export class Haproxy extends Program {
  static PROGRAM = find("haproxy");
  static RELOAD = "SIGUSR2";

  write(nodes) {
    const servers = nodes.map((node, index) => `    server gateway-${index + 1} 127.0.0.1:${node.port}\n`);
    writeFileSync(path.join(this.directory, "haproxy.cfg"), rendered("haproxy.cfg", [
      [/bind :8080/, `bind 127.0.0.1:${this.port}`],
      [/maxconn 20000/, `maxconn ${this.connections}`],
      [/( {4}server gateway-\d gateway-\d:3001\n){3}/, servers.join("")],
    ]));
  }

  command() {
    return [Haproxy.PROGRAM, ["-W", "-db", "-f", path.join(this.directory, "haproxy.cfg")]];
  }
}
