// The fixture of the protocols' own test suites, and requests that say every word themselves.
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import { createInterface } from "node:readline";
import { conformance, within } from "./harness.mjs";

/** Echoes on /engine.io/; has the namespaces / and /custom on /socket.io/. */
export class Fixture {
  static async start() {
    const fixture = new Fixture();
    fixture.child = spawn(conformance, {
      env: { ...process.env, PORT: "0" }, stdio: ["ignore", "pipe", "inherit"],
    });
    const line = once(createInterface({ input: fixture.child.stdout }), "line");
    const [listening] = await within(10_000, "the fixture listens", Promise.race([
      line,
      once(fixture.child, "exit").then(([code]) => Promise.reject(new Error(`the fixture ended with ${code}`))),
    ]));
    fixture.origin = `http://${listening.split(" ").at(-1)}`;
    return fixture;
  }

  end() {
    this.child.kill("SIGKILL");
  }
}

/** A request on a connection of its own; resolves to {status, headers, body}. */
export function ask(url, { method = "GET", body, headers, agent = false, encoding = "utf8", begun = () => {} } = {}) {
  const answered = new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers, agent }, (response) => {
      response.setEncoding(encoding);
      let text = "";
      response.on("data", (some) => { text += some; });
      response.on("end", () => resolve({ status: response.statusCode, headers: response.headers, body: text }));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode, headers: response.headers, body: "" });
    });
    begun(request);
    request.end(body);
  });
  return within(5000, `an answer to ${method} ${url}`, answered);
}

