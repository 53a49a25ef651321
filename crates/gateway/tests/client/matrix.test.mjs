// Every client there is against one contract: each version, over each transport it has.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { describe } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { CLIENTS, Person, lets, story, token, within } from "./harness.mjs";

/** What is asked for, undefined being the default, and what the connection then goes through. */
const TRANSPORTS = {
  polling: { transports: ["polling"], used: ["polling"] },
  WebSocket: { transports: ["websocket"], used: ["websocket"] },
  "the upgrade": { transports: undefined, used: ["polling", "websocket"] },
};
const TEXT = "Ünïcodé 🎓 日本語";
/** As many characters as a message may have, as wide as they come. */
const LARGEST = "𝄞".repeat(4000);
const INVALID = "Authentication error: Invalid token";
/** A socket without a successor leaves its user online for this long. */
const GRACE = 5000;

/** The same connection in another namespace; rejects on a connect_error. */
async function enters(person, path) {
  const auth = { token: token(person.id) };
  const view = new Person(person.socket.io.socket(path, { auth }), person.id);
  await within(5000, `${person.id} enters ${path}`, new Promise((resolve, reject) => {
    view.socket.once("connect", resolve);
    view.socket.once("connect_error", reject);
  }));
  return view;
}

/** An acknowledgement and what is heard are of one message, which has this text. */
function agree(answer, heard, { sender, message, clientMsgId }) {
  assert.deepEqual(
    [heard.sender_id, heard.message, heard.clientMsgId], [sender, message, clientMsgId],
  );
  assert.deepEqual(answer, {
    ok: true, id: heard.id, roomId: "algebra", seq: heard.seq, createdAt: heard.created_at, clientMsgId,
  });
}

let keys = 0;

/** Sends a message, and everybody hears it. */
async function says(person, listeners, message) {
  const clientMsgId = `${TEXT} ${++keys}`;
  const answer = await person.asks("send-message", { roomId: "algebra", message, clientMsgId });
  assert.equal(answer.ok, true, answer.message);
  for (const listener of listeners) {
    const heard = await listener.hears("receive-message", ({ id }) => id === answer.id);
    agree(answer, heard, { sender: person.id, message, clientMsgId });
  }
}

const here = fileURLToPath(new URL(".", import.meta.url));
const requirements = path.join(here, "requirements.txt");
let environment;

/** A Python with the required packages, made once; else what is missing. */
async function preparePython() {
  const directory = path.join(here, "../../../../target/python");
  const python = path.join(directory, "bin/python");
  const installed = path.join(directory, "installed.txt");
  const wanted = readFileSync(requirements, "utf8");
  const run = promisify(execFile);
  try {
    await run(python, ["-c", "import socketio"]);
    if (readFileSync(installed, "utf8") === wanted) return { python };
  } catch {
    // Not made yet, not to the end, or by a Python that is gone.
  }
  const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"];
  for (const [what, command, args] of [
    ["python3 cannot make a virtual environment", "python3", ["-m", "venv", "--clear", directory]],
    ["pip cannot install requirements.txt", python, [...pip, "-r", requirements]],
  ]) {
    try {
      await run(command, args, { timeout: 40_000 });
    } catch (error) {
      return { missing: `${what}: ${(error.stderr || error.stdout || error.message).trim().split("\n").at(-1)}` };
    }
  }
  writeFileSync(installed, wanted);
  return { python };
}

/** Runs matrix_client.py; `next` resolves to what it tells of its next step. */
class PythonClient {
  #errors = [];

  constructor(python, ...args) {
    this.child = spawn(python, [path.join(here, "matrix_client.py"), ...args], {
      env: { PATH: process.env.PATH }, stdio: ["ignore", "pipe", "pipe"],
    });
    this.child.stderr.on("data", (data) => this.#errors.push(data));
    this.ended = once(this.child, "close");
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  async next(name) {
    const { value, done } = await within(10_000, `Python has ${name}`, this.lines.next());
    if (done) {
      await this.ended;
      throw new Error(`Python has ended before ${name}: ${Buffer.concat(this.#errors)}`);
    }
    const { step, ...told } = JSON.parse(value);
    assert.equal(step, name);
    return told;
  }
}

// Each of them ends with a wait for the grace, so they wait together.
describe("the matrix", { concurrency: 9 }, () => {
  for (const client of Object.keys(CLIENTS)) {
    for (const [name, { transports, used }] of Object.entries(TRANSPORTS)) {
      story(`client ${client} keeps the contract over ${name}`, lets(client), async (world) => {
        const options = { client, transports };
        const ana = await world.person("ana", options);
        if (ana.transports.length < used.length) {
          await within(5000, "the upgrade", once(ana.socket.io.engine, "upgrade"));
        }
        assert.deepEqual(await ana.joins("algebra"), {
          roomId: "algebra", messages: [], seq: 0, lastReadSeq: 0, unreadCount: 0, hasMore: false,
        });
        const ben = await world.person("ben");
        await ben.joins("algebra");
        assert.equal((await ana.hears("user-joined-room")).userId, "ben");

        await says(ana, [ana, ben], TEXT);
        await says(ana, [ana, ben], LARGEST);
        await says(ben, [ana, ben], LARGEST);

        const chat = await enters(ana, "/chat");
        assert.deepEqual((await chat.joins("algebra")).messages.map((m) => m.message), [TEXT, LARGEST, LARGEST]);
        await says(chat, [chat, ana, ben], TEXT);
        await assert.rejects(enters(ana, "/nowhere"), { message: "Invalid namespace" });
        const auth = { token: "garbage" };
        await assert.rejects(world.person("cleo", { ...options, auth }), { message: INVALID });
        assert.deepEqual(ana.transports, used);

        const gone = [chat, ana].map(({ socket }) => once(socket, "disconnect"));
        for (const view of [chat, ana]) view.leaves();
        for (const [reason] of await Promise.all(gone)) assert.equal(reason, "io client disconnect");
        const offline = ({ userId, status }) => userId === "ana" && status === "offline";
        await ben.hears("user-status-change", offline, GRACE + 2000);
      });
    }
  }

  for (const [name, { transports, used }] of Object.entries(TRANSPORTS)) {
    story(`python-socketio keeps the contract over ${name}`, {}, async (world, t) => {
      environment ??= preparePython();
      const { python, missing } = await environment;
      if (missing) return t.skip(missing);

      const ben = await world.person("ben");
      await ben.joins("algebra");
      const messages = [TEXT, LARGEST];
      const ana = new PythonClient(
        python, world.server.url, token("ana"), transports?.[0] ?? "default", ...messages,
      );
      try {
        assert.deepEqual(await ana.next("connected"), { transport: used.at(-1) });
        assert.deepEqual((await ana.next("joined")).heard, {
          roomId: "algebra", messages: [], seq: 0, lastReadSeq: 0, unreadCount: 0, hasMore: false,
        });
        for (const message of messages) {
          const { answer, heard } = await ana.next("said");
          assert.deepEqual(heard, await ben.hears("receive-message"));
          agree(answer, heard, { sender: "ana", message, clientMsgId: [...message].slice(0, 40).join("") });
          await says(ben, [ben], message);
          assert.equal((await ana.next("answered")).heard.message, message);
        }
        assert.deepEqual((await ana.next("joined in /chat")).answer, {
          ok: true, roomId: "algebra", seq: 4, lastReadSeq: 0, unreadCount: 2,
        });
        const { answer, heard } = await ana.next("said in /chat");
        for (const one of [...heard, await ben.hears("receive-message")]) {
          assert.deepEqual([one.id, one.message], [answer.id, TEXT]);
        }
        assert.deepEqual(await ana.next("refused"), { heard: { message: INVALID } });
        assert.deepEqual(await ana.ended, [0, null]);
      } finally {
        ana.child.kill("SIGKILL");
      }
    });
  }
});
