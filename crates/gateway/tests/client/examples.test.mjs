// What the documentation shows is run as it stands there.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Person, binary, within } from "./harness.mjs";

const examples = fileURLToPath(new URL("../../../../examples/", import.meta.url));
const run = promisify(execFile);

/** `carillon dev` in a directory of its own. */
async function dev(story) {
  const directory = mkdtempSync(path.join(tmpdir(), "carillon-dev-"));
  const child = spawn(binary, ["dev"], {
    cwd: directory,
    env: { PATH: process.env.PATH, CARILLON_SERVER__LISTEN: "127.0.0.1:0" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  try {
    const lines = createInterface({ input: child.stdout });
    const ready = new Promise((resolve) => lines.on("line", (line) => {
      const url = /ready on (http:\S+)/.exec(line)?.[1];
      if (url) resolve(url);
    }));
    const url = await within(10_000, "dev is ready", ready);
    await story({ url, options: { cwd: directory, env: { PATH: process.env.PATH, CARILLON_URL: url } } });
  } finally {
    child.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  }
}

test("the backend in Node provides a paper and runs an exam", { timeout: 60_000 }, async (t) => {
  const backend = path.join(examples, "node-backend");
  if (!existsSync(path.join(backend, "node_modules"))) return t.skip("npm ci has not run in examples/node-backend");
  await dev(async ({ options }) => {
    const { stdout } = await run(process.execPath, [path.join(backend, "run-exam.mjs")], options);
    assert.match(stdout, /extended: 2\d{3} s left/);
    assert.match(stdout, /after the review: 4.5 of 5 points\nlee: 4.5 points, revision 2\n$/);
  });
});

test("curl provides a paper, waits for a student, and shows the results", { timeout: 60_000 }, async () => {
  await dev(async ({ url, options }) => {
    const env = { ...options.env, CLOSE_AFTER: "0" };
    const script = run(path.join(examples, "curl/run-exam.sh"), ["heart"], { ...options, env });
    const login = await fetch(`${url}/dev/login`, {
      method: "POST", headers: { "content-type": "application/json" }, body: '{"role":"STUDENT"}',
    });
    const { token } = await login.json();
    const student = await Person.connect({ url }, "student", { auth: { token } });
    const joins = async () => (await student.asks("join-exam", { examId: "heart" })).ok || joins();
    await within(10_000, "the exam is there", joins());
    const { stdout } = await script;
    student.leaves();
    assert.match(stdout, /== results\n.*"userId":"student".*"totalQuestions":2/);
  });
});
