// The two protocols as they are written down: Engine.IO 4 and Socket.IO 5, packet by packet. The
// fixture echoes on /engine.io/ and has the namespaces / and /custom on /socket.io/; it pings
// every 300 ms and waits 200 ms. The tests run one after the other, for the sake of their clocks.
import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { after, before, test } from "node:test";
import { WebSocket } from "ws";
import { Fixture, ask } from "./fixture.mjs";
import { eventually, pause, story, token, within } from "./harness.mjs";
import { Polling, Raw } from "./raw.mjs";

const INTERVAL = 300;
const TIMEOUT = 200;
const MAX_PAYLOAD = 1_000_000;
/** What a clock may be ahead of another one. */
const SLACK = 5;
/** Until a request that has been sent is surely waiting at the server. */
const SETTLING = 100;
/** Who is held up for longer cannot keep to the times of the protocol. */
const STALL = 60;
const SEPARATOR = "\u001e";

/** The two engines of the fixture, and how to be echoed by each. */
const ENGINE = {
  path: "/engine.io/", isOrdered: true,
  entering: [], entered: [],
  says: (word) => [typeof word === "string" ? `4${word}` : word],
  hears: (word) => [typeof word === "string" ? `4${word}` : word],
};
const SOCKET = {
  // An event is handled in a task of its own: two of them may be echoed in any order.
  path: "/socket.io/", isOrdered: false,
  entering: ["40"], entered: [/^40\{"sid":"[^"]+"\}$/, '42["auth",{}]'],
  says: (word) => event("message", word),
  hears: (word) => event("message-back", word),
};
const BOTH = [ENGINE, SOCKET];

const event = (name, word) =>
  typeof word === "string"
    ? [`42${JSON.stringify([name, word])}`]
    : [`451-["${name}",{"_placeholder":true,"num":0}]`, word];

let fixture;
let origin;
/** What a test leaves open. */
const left = new Set();

before(async () => {
  fixture = await Fixture.start();
  ({ origin } = fixture);
  watch();
});
after(() => fixture.end());

const now = () => performance.now();

/** The query of an engine; `null` leaves a parameter out. */
function query(transport, more = {}) {
  const all = Object.entries({ EIO: "4", transport, ...more }).filter(([, value]) => value !== null);
  return `?${new URLSearchParams(all)}`;
}

/** As it is written in a polling body, and back. */
const encode = (packet) => (typeof packet === "string" ? packet : `b${packet.toString("base64")}`);
const decode = (packet) => (packet.startsWith("b") ? Buffer.from(packet.slice(1), "base64") : packet);

/** A polling session. */
class Session {
  static async open(engine) {
    const session = new Session();
    session.engine = engine;
    /** Before the server began to count. */
    session.since = now();
    const { status, body } = await ask(origin + engine.path + query("polling"));
    assert.equal(status, 200);
    session.handshake = JSON.parse(body.slice(1));
    session.url = origin + engine.path + query("polling", { sid: session.handshake.sid });
    return session;
  }

  /** Opens, and goes where it is echoed. */
  static async enter(engine) {
    const session = await Session.open(engine);
    if (engine.entering.length > 0) {
      await session.post(...engine.entering);
      const packets = [];
      while (packets.length < engine.entered.length) packets.push(...(await session.poll()));
      same(packets, engine.entered);
    }
    return session;
  }

  get(options) {
    return ask(this.url, options);
  }

  /** One POST after the other, as every client does: two at a time end the session. */
  post(...packets) {
    const posted = (this.posting ?? Promise.resolve()).then(() => this.#post(packets));
    this.posting = posted.catch(() => {});
    return posted;
  }

  async #post(packets) {
    const answer = await ask(this.url, { method: "POST", body: packets.map(encode).join(SEPARATOR) });
    assert.deepEqual([answer.status, answer.body], [200, "ok"]);
    return answer;
  }

  async says(...words) {
    await this.post(...words.flatMap(this.engine.says));
  }

  /** The packets of the next poll that brings any but a ping, which is answered. */
  async poll() {
    for (;;) {
      const { status, body } = await this.get();
      assert.deepEqual([status, status === 200 ? "" : body], [200, ""]);
      const packets = body.split(SEPARATOR);
      if (packets.includes("2")) await this.post("3");
      const others = packets.filter((packet) => packet !== "2");
      if (others.length > 0) return others.map(decode);
    }
  }

  async isUnknown() {
    const { status, body } = await this.get();
    assert.deepEqual([status, body], [400, '{"code":1,"message":"Session ID unknown"}']);
  }
}

/** Polls again as soon as it is answered, and answers pings. */
class Poller {
  constructor(session) {
    this.session = session;
    this.answers = [];
    this.heard = [];
    this.done = this.#run();
    this.done.catch(() => {});
    left.add(this);
  }

  async #run() {
    while (!this.ended) {
      const { status, body } = await this.session.get();
      if (status !== 200) {
        // After the upgrade there is nothing left to poll.
        if (this.ended) return;
        throw new Error(`${status} ${body}`);
      }
      this.answers.push(body);
      const packets = body.split(SEPARATOR);
      if (packets.includes("2")) await this.session.post("3");
      this.heard.push(...packets.filter((packet) => !["2", "6"].includes(packet)).map(decode));
    }
  }

  /** Has heard these words, and nothing else. */
  async hears(...words) {
    const { length } = words.flatMap(this.session.engine.hears);
    await Promise.race([
      eventually(`polling brings ${length} packets`, () => this.heard.length >= length),
      this.done,
    ]);
    echoed(this.session.engine, [...this.heard], words);
  }

  end() {
    this.ended = true;
  }

  /** Leaves when the last poll is answered. */
  async stop() {
    this.end();
    await this.done;
  }
}

/** A WebSocket that is asked frame by frame; it answers pings unless they are kept as frames. */
class Wire {
  #frames = [];
  #waiting = [];
  keepsPings = false;

  constructor(engine, more) {
    this.engine = engine;
    this.since = now();
    this.ws = new WebSocket(origin.replace("http", "ws") + engine.path + query("websocket", more));
    this.ws.on("message", (data, isBinary) => {
      const frame = isBinary ? data : data.toString();
      if (frame === "2" && !this.keepsPings) this.ws.send("3");
      else this.#frames.push(frame);
      this.#settle();
    });
    this.ws.on("error", () => {});
    this.closed = new Promise((resolve) => {
      this.ws.on("close", () => {
        this.isClosed = true;
        this.#settle();
        resolve(now());
      });
    });
    left.add(this);
  }

  /** A session of its own. */
  static async open(engine) {
    const wire = new Wire(engine);
    wire.handshake = JSON.parse((await wire.next()).slice(1));
    return wire;
  }

  /** A session of its own that is echoed. */
  static async enter(engine) {
    const wire = await Wire.open(engine);
    await wire.enter();
    return wire;
  }

  /** A WebSocket for a polling session. */
  static async join({ engine, handshake: { sid } }) {
    const wire = new Wire(engine, { sid });
    await within(5000, "a WebSocket for the session", once(wire.ws, "open"));
    return wire;
  }

  async enter() {
    this.send(...this.engine.entering);
    for (const expected of this.engine.entered) same([await this.next()], [expected]);
  }

  async probe() {
    this.send("2probe");
    assert.equal(await this.next(), "3probe");
  }

  #settle() {
    while (this.#waiting.length > 0 && this.#frames.length > 0) {
      this.#waiting.shift().resolve(this.#frames.shift());
    }
    if (!this.isClosed) return;
    for (const { reject } of this.#waiting.splice(0)) reject(new Error("the WebSocket has closed"));
  }

  /** The very next frame. */
  next(ms = 5000) {
    const frame = new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#settle();
    });
    return within(ms, "a frame", frame);
  }

  /** Nobody has asked for these yet. The server may say that it closes. */
  get unasked() {
    return this.#frames.filter((frame, index) => frame !== "1" || index + 1 < this.#frames.length);
  }

  send(...frames) {
    for (const frame of frames) this.ws.send(frame);
  }

  /** All in one segment, if the network wants it so. */
  sendAtOnce(...frames) {
    this.ws._socket.cork();
    this.send(...frames);
    this.ws._socket.uncork();
  }

  says(...words) {
    this.send(...words.flatMap(this.engine.says));
  }

  /** The next frames are these words. */
  async hears(...words) {
    const packets = [];
    for (const _ of words.flatMap(this.engine.hears)) packets.push(await this.next());
    echoed(this.engine, packets, words);
  }

  /** Is echoed, and has heard nothing else. */
  async echoes(word = "still here") {
    this.says(word);
    await this.hears(word);
    assert.deepEqual(this.unasked, []);
  }

  async closes(ms = 5000) {
    return within(ms, "the WebSocket closes", this.closed);
  }

  end() {
    this.ws.terminate();
  }
}

/** Packets are the echo of these words: each once, and in order where the fixture keeps one. */
function echoed(engine, packets, words) {
  const expected = words.flatMap(engine.hears);
  if (!engine.isOrdered) [packets, expected].forEach((some) => some.splice(0, some.length, ...sorted(some)));
  assert.deepEqual(packets, expected);
}

/** Sorted, with what is attached to a packet still behind it. */
function sorted(packets) {
  const groups = [];
  for (const packet of packets) {
    if (typeof packet === "string") groups.push([packet]);
    else groups.at(-1)?.push(packet);
  }
  const key = (group) => group.map(encode).join();
  return groups.sort((a, b) => (key(a) < key(b) ? -1 : 1)).flat();
}

/** Packets are these texts, or match these expressions. */
function same(packets, expected) {
  assert.equal(packets.length, expected.length);
  packets.forEach((packet, index) => {
    if (expected[index] instanceof RegExp) assert.match(packet, expected[index]);
    else assert.deepEqual(packet, expected[index]);
  });
}

/** Where the protocol leaves so little time that a busy machine may miss it: once of three. */
async function onceOfThree(run) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await run();
    } catch (error) {
      if (tries === 3) throw error;
    }
  }
}

/** The longest that a turn of the watch has taken since somebody asked. */
let worst = 0;

/** Asks the fixture something small all the time, so that it shows when the machine stands still. */
async function watch() {
  const agent = new http.Agent({ keepAlive: true });
  for (;;) {
    const since = now();
    await Promise.all([pause(20), ask(`${origin}/engine.io/`, { agent })]).catch(() => {});
    if (fixture.child.signalCode) return agent.destroy();
    worst = Math.max(worst, now() - since);
  }
}

function clean() {
  for (const one of left) one.end();
  left.clear();
}

/** A test; a failure counts unless the machine stood still meanwhile, for then clocks say nothing. */
function example(title, run, options = {}) {
  test(title, { timeout: 30_000, ...options }, async () => {
    for (let tries = 1; ; tries += 1) {
      worst = 0;
      try {
        return await run();
      } catch (error) {
        if (tries === 5 || worst < STALL) throw error;
      } finally {
        clean();
      }
    }
  });
}

// What both paths have in common.

function engineTests(engine) {
  const { path } = engine;
  const told = (title, run, options) => example(`${title} on ${path}`, run, options);
  const opening = (transport, more) => origin + path + query(transport, more);

  told("polling opens with exactly the five parameters", async () => {
    const { status, body } = await ask(opening("polling"));
    assert.equal(status, 200);
    assert.equal(body[0], "0");
    const { sid, ...parameters } = JSON.parse(body.slice(1));
    assert.equal(typeof sid, "string");
    assert.notEqual(sid, "");
    assert.deepEqual(parameters, {
      upgrades: ["websocket"], pingInterval: INTERVAL, pingTimeout: TIMEOUT, maxPayload: MAX_PAYLOAD,
    });
  });

  told("a WebSocket opens with exactly the five parameters, and nothing to upgrade to", async () => {
    const frame = await new Wire(engine).next();
    assert.equal(frame[0], "0");
    const { sid, ...parameters } = JSON.parse(frame.slice(1));
    assert.equal(typeof sid, "string");
    assert.notEqual(sid, "");
    assert.deepEqual(parameters, {
      upgrades: [], pingInterval: INTERVAL, pingTimeout: TIMEOUT, maxPayload: MAX_PAYLOAD,
    });
  });

  told("polling without a protocol version that is known is refused", async () => {
    for (const EIO of [null, "abc", "", "5"]) {
      assert.equal((await ask(opening("polling", { EIO }))).status, 400, `EIO ${EIO}`);
    }
  });

  told("polling with an unknown transport or none is refused", async () => {
    for (const transport of [null, "abc", ""]) {
      assert.equal((await ask(opening(transport))).status, 400, `transport ${transport}`);
    }
  });

  told("a session begins with GET and with nothing else", async () => {
    for (const method of ["POST", "PUT"]) {
      assert.equal((await ask(opening("polling"), { method })).status, 400, method);
    }
  });

  told("a WebSocket without a protocol version that is known comes to an end", async () => {
    for (const EIO of [null, "abc", ""]) {
      const wire = new Wire(engine, { EIO });
      await wire.closes();
      assert.deepEqual(wire.unasked, [], `EIO ${EIO}`);
    }
  });

  told("a WebSocket with an unknown transport or none comes to an end", async () => {
    for (const transport of [null, "abc", ""]) {
      const wire = new Wire(engine, { transport });
      await wire.closes();
      assert.deepEqual(wire.unasked, [], `transport ${transport}`);
    }
  });

  told("the first ping over polling comes after one interval and not before", async () => {
    const session = await Session.open(engine);
    const { status, body } = await session.get();
    const passed = now() - session.since;
    assert.deepEqual([status, body], [200, "2"]);
    assert.ok(passed >= INTERVAL - SLACK, `${passed} ms`);
    assert.ok(passed < 3000, `${passed} ms`);
  });

  told("the first ping over a WebSocket comes after one interval and not before", async () => {
    const wire = new Wire(engine);
    wire.keepsPings = true;
    assert.match(await wire.next(), /^0\{/);
    assert.equal(await wire.next(), "2");
    const passed = now() - wire.since;
    assert.ok(passed >= INTERVAL - SLACK, `${passed} ms`);
    assert.ok(passed < 3000, `${passed} ms`);
  });

  told("a polling client that answers its pings stays", () => onceOfThree(async () => {
    const session = await Session.open(engine);
    for (let pings = 0; pings < 3; pings += 1) {
      const asked = now();
      const { status, body } = await session.get();
      assert.deepEqual([status, body], [200, "2"]);
      assert.ok(now() - asked > INTERVAL / 2, "a ping comes once in an interval");
      await session.post("3");
    }
    assert.ok(now() - session.since >= 3 * INTERVAL - SLACK);
  }));

  told("a polling client that is silent for interval and timeout is forgotten, and not before", async () => {
    await onceOfThree(async () => {
      const session = await Session.open(engine);
      await pause(INTERVAL + TIMEOUT);
      await session.isUnknown();
    });
    await onceOfThree(async () => {
      const session = await Session.open(engine);
      await pause(INTERVAL + TIMEOUT / 2);
      const { status, body } = await session.get();
      assert.deepEqual([status, body], [200, "2"]);
      await session.post("3");
    });
  });

  told("a WebSocket that answers its pings stays", async () => {
    const wire = await Wire.open(engine);
    wire.keepsPings = true;
    for (let pings = 1; pings <= 3; pings += 1) {
      assert.equal(await wire.next(), "2");
      assert.ok(now() - wire.since >= pings * INTERVAL - SLACK);
      wire.send("3");
    }
    assert.equal(wire.isClosed, undefined);
  });

  told("a WebSocket that leaves a ping unanswered is closed when the timeout is over", async () => {
    const wire = await Wire.open(engine);
    wire.keepsPings = true;
    const passed = (await wire.closes()) - wire.since;
    assert.deepEqual(wire.unasked, ["2"]);
    assert.ok(passed >= INTERVAL + TIMEOUT - SLACK, `${passed} ms`);
    assert.ok(passed < 3000, `${passed} ms`);
  });

  told("a polling client that closes ends its waiting poll and its session", async () => {
    const session = await Session.open(engine);
    const polled = session.get();
    await pause(SETTLING);
    await session.post("1");
    const { status, body } = await polled;
    assert.deepEqual([status, body], [200, "6"]);
    await session.isUnknown();
  });

  told("a WebSocket that says it closes is closed", async () => {
    const wire = await Wire.open(engine);
    wire.send("1");
    await wire.closes(2000);
  });

  told("a second poll beside the first ends the session", async () => {
    const session = await Session.open(engine);
    const first = session.get();
    await pause(SETTLING);
    const second = await session.get();
    assert.ok([400, 500].includes(second.status), `${second.status}`);
    const { status, body } = await first;
    assert.deepEqual([status, body], [200, "1"]);
    await session.isUnknown();
  });

  told("an aborted poll ends the session", async () => {
    for (const notice of [0, SETTLING]) {
      const session = await Session.open(engine);
      let request;
      const polled = session.get({ begun: (one) => { request = one; } });
      const broken = assert.rejects(polled);
      await pause(SETTLING);
      request.destroy();
      await broken;
      await pause(notice);
      await session.isUnknown();
      const posted = await ask(session.url, { method: "POST", body: "4hello" });
      assert.equal(posted.status, 400);
    }
  });

  told("a session moves from polling to a WebSocket", async () => {
    const session = await Session.open(engine);
    const wire = await Wire.join(session);
    await wire.probe();
    const { status, body } = await session.get();
    assert.deepEqual([status, body], [200, "6"]);
    wire.send("5");
    await wire.enter();
    await wire.echoes("hello");
  });

  told("a poll that waits is answered with nothing when a probe comes", async () => {
    const session = await Session.open(engine);
    const polled = session.get();
    await pause(SETTLING);
    const wire = await Wire.join(session);
    await wire.probe();
    const { status, body } = await polled;
    assert.deepEqual([status, body], [200, "6"]);
    wire.send("5");
    await wire.enter();
    await wire.echoes("hello");
  });

  told("after the upgrade there is no polling any more", async () => {
    const session = await Session.open(engine);
    const wire = await Wire.join(session);
    await wire.probe();
    wire.send("5");
    await wire.enter();
    await wire.echoes();
    for (const method of ["GET", "POST"]) {
      const { status } = await ask(session.url, { method, body: method === "POST" ? "4hello" : undefined });
      assert.equal(status, 400, method);
    }
    await wire.echoes();
  });

  told("a poll that comes right behind the upgrade is refused and harms nothing", async () => {
    const session = await Session.open(engine);
    const wire = await Wire.join(session);
    await wire.probe();
    wire.send("5");
    const { status } = await session.get();
    assert.equal(status, 400);
    await wire.enter();
    await wire.echoes();
  });

  told("a second WebSocket for an upgraded session is closed, and the first one stays", async () => {
    const session = await Session.open(engine);
    const first = await Wire.join(session);
    await first.probe();
    first.send("5");
    await first.enter();
    const second = new Wire(engine, { sid: session.handshake.sid });
    second.ws.on("open", () => second.send("2probe"));
    await second.closes();
    assert.deepEqual(second.unasked, []);
    await first.echoes();
  });

  told("a second WebSocket during a probe is closed and disturbs nothing", async () => {
    for (const stage of ["opened", "probed"]) {
      const session = await Session.enter(engine);
      const poller = new Poller(session);
      const first = await Wire.join(session);
      if (stage === "probed") await first.probe();
      const second = new Wire(engine, { sid: session.handshake.sid });
      second.ws.on("open", () => second.send("2probe", "5"));
      await second.closes();
      assert.deepEqual(second.unasked, []);
      await session.says("one", Buffer.of(1, 2, 3));
      await poller.hears("one", Buffer.of(1, 2, 3));
      if (stage === "opened") await first.probe();
      await poller.stop();
      first.send("5");
      await first.echoes();
    }
  });

  // What a client that cannot come through says instead, or does not say.
  const FAILURES = {
    "is closed before it probes": { isUsual: true, breaks: (wire) => wire.end() },
    "is closed after its answer": { isUsual: true, probes: true, breaks: (wire) => wire.end() },
    "says goodbye before it probes": { breaks: (wire) => wire.ws.close() },
    "says goodbye after its answer": { probes: true, breaks: (wire) => wire.ws.close() },
    "says garbage instead of probing": { isUsual: true, breaks: (wire) => wire.send("2prove") },
    "says something short instead of probing": { breaks: (wire) => wire.send("abc") },
    "says something long instead of probing": { breaks: (wire) => wire.send("x".repeat(300)) },
    "probes with bytes": { breaks: (wire) => wire.send(Buffer.from("2probe")) },
    "stays without a probe": { breaks: (wire) => wire.send("5") },
    "says garbage instead of staying": { isUsual: true, probes: true, breaks: (wire) => wire.send("6") },
    "says nothing in a frame instead of staying": { probes: true, breaks: (wire) => wire.send("") },
    "says something long instead of staying": { probes: true, breaks: (wire) => wire.send("4hello") },
  };
  for (const [what, { probes = false, isUsual = false, breaks }] of Object.entries(FAILURES)) {
    // The probe is answered before there is a difference between the paths.
    if (!isUsual && engine !== ENGINE) continue;
    told(`polling goes on when a WebSocket ${what}`, async () => {
      const session = await Session.enter(engine);
      const poller = new Poller(session);
      await session.says("one");
      const wire = await Wire.join(session);
      if (probes) await wire.probe();
      await session.says("two", Buffer.of(0, 255, 10), "three");
      breaks(wire);
      await session.says("four");
      // Beyond the timeout: pings go on, too.
      await pause(INTERVAL + TIMEOUT + 50);
      await session.says("five");
      await poller.hears("one", "two", Buffer.of(0, 255, 10), "three", "four", "five");
      await poller.stop();
      assert.deepEqual(wire.unasked, []);
    });

    told(`another WebSocket may take over when one ${what}`, async () => {
      const session = await Session.enter(engine);
      const poller = new Poller(session);
      const wire = await Wire.join(session);
      if (probes) await wire.probe();
      breaks(wire);
      await wire.closes(1000);
      const again = await Wire.join(session);
      await again.probe();
      await poller.stop();
      again.send("5");
      await again.echoes();
      assert.deepEqual(poller.heard, []);
    });
  }

  told("what comes while nobody polls during a failing probe waits for the next poll", async () => {
    for (const isWaiting of [false, true]) {
      const session = await Session.enter(engine);
      // A poll that is called away leaves its place to the next one.
      const polled = isWaiting ? session.get() : undefined;
      await pause(isWaiting ? SETTLING : 0);
      const wire = await Wire.join(session);
      await wire.probe();
      if (polled) assert.equal((await polled).body, "6");
      await session.says("one");
      await session.says(Buffer.of(1, 2, 3, 4), "two");
      wire.end();
      await wire.closes();
      await session.says("three");
      const poller = new Poller(session);
      await poller.hears("one", Buffer.of(1, 2, 3, 4), "two", "three");
      await poller.stop();
    }
  });

  told("polls during a probe are no storm", async () => {
    const session = await Session.enter(engine);
    const wire = await Wire.join(session);
    await wire.probe();
    const poller = new Poller(session);
    await pause(1000);
    const answers = [...poller.answers];
    const pings = answers.filter((answer) => answer === "2").length;
    for (const answer of answers) assert.match(answer, /^[26]$/);
    assert.ok(answers.length - pings >= 3, `${answers}`);
    assert.ok(answers.length - pings <= 12, `${answers}`);
    assert.ok(pings <= 4, `${answers}`);

    await session.says("one");
    await poller.hears("one");
    await poller.stop();
    wire.send("5");
    await wire.echoes();
  });

  const WORDS = ["one", Buffer.of(1, 2, 3, 4), "two", "three", Buffer.alloc(70_000, 7), "é𝄞", "x".repeat(200)];

  told("what nobody has polled when the client stays comes over the WebSocket, once and in order", async () => {
    for (const isWaiting of [false, true]) {
      const session = await Session.enter(engine);
      const polled = isWaiting ? session.get() : undefined;
      await pause(isWaiting ? SETTLING : 0);
      const wire = await Wire.join(session);
      await wire.probe();
      if (polled) assert.equal((await polled).body, "6");
      await session.says(...WORDS.slice(0, 3));
      for (const word of WORDS.slice(3)) await session.says(word);
      wire.send("5");
      wire.says("last");
      await wire.hears(...WORDS, "last");
      assert.deepEqual(wire.unasked, []);
    }
  });

  told("what came before the probe and was not polled comes over the WebSocket", async () => {
    const session = await Session.enter(engine);
    await session.says(...WORDS);
    const wire = await Wire.join(session);
    await wire.probe();
    wire.sendAtOnce("5", ...["and", "more"].flatMap(engine.says));
    await wire.hears(...WORDS, "and", "more");
    await wire.echoes();
  });

  told("what had no place in the last poll's answer comes over the WebSocket", async () => {
    const session = await Session.enter(engine);
    const words = ["a", "b", "c", "d", "e", "f"].map((word) => word.repeat(400_000));
    // Of three, two have a place in one answer.
    for (const word of words.slice(0, 3)) await session.says(word);
    const packets = await session.poll();
    for (const word of words.slice(3)) await session.says(word);
    const wire = await Wire.join(session);
    await wire.probe();
    wire.send("5");
    while (packets.length < words.length) packets.push(await wire.next());
    echoed(engine, packets, words);
    await wire.echoes();
  });

  told("what comes while polls and the upgrade cross arrives once and in order", async () => {
    for (let round = 0; round < 12; round += 1) {
      const session = await Session.enter(engine);
      const poller = new Poller(session);
      const wire = await Wire.join(session);
      await wire.probe();
      const words = [];
      for (let word = 0; word < 4; word += 1) {
        words.push(`${round}-${word}`, Buffer.of(round, word));
        await session.says(...words.slice(-2));
        if (word === 1) await pause(round * 15);
      }
      // The last poll may be answered with what it was waiting for, or with nothing.
      poller.end();
      wire.send("5");
      wire.says("last");
      await poller.done;
      words.push("last");
      const packets = [...poller.heard];
      while (packets.length < words.flatMap(engine.hears).length) packets.push(await wire.next());
      echoed(engine, packets, words);
      await wire.echoes();
      wire.end();
    }
  });
}

for (const engine of BOTH) engineTests(engine);

// Messages of the bare engine.

example("a text packet comes back over polling", async () => {
  const session = await Session.open(ENGINE);
  await session.post("4hello");
  assert.equal((await session.get()).body, "4hello");
});

example("several packets in one body come back in one body and in order", async () => {
  const session = await Session.open(ENGINE);
  await session.post("4test1", "4test2", "4test3");
  assert.equal((await session.get()).body, ["4test1", "4test2", "4test3"].join(SEPARATOR));
});

example("text and bytes in one body come back as they were", async () => {
  const session = await Session.open(ENGINE);
  const body = `4hello${SEPARATOR}bAQIDBA==`;
  const posted = await ask(session.url, { method: "POST", body });
  assert.deepEqual([posted.status, posted.body], [200, "ok"]);
  assert.equal((await session.get()).body, body);
});

example("a body that is no packet ends the session", async () => {
  const session = await Session.open(ENGINE);
  // The connection may break as well.
  const posted = await ask(session.url, { method: "POST", body: "abc" }).catch(() => ({ status: 400 }));
  assert.equal(posted.status, 400);
  await session.isUnknown();
});

example("text and bytes come back over a WebSocket as they were", async () => {
  const wire = await Wire.open(ENGINE);
  wire.send("4hello");
  assert.equal(await wire.next(), "4hello");
  wire.send(Buffer.of(1, 2, 3, 4));
  assert.deepEqual(await wire.next(), Buffer.of(1, 2, 3, 4));
  wire.sendAtOnce("4one", Buffer.of(5), "4two");
  await wire.hears("one", Buffer.of(5), "two");
});

example("a frame that is no packet closes the WebSocket", async () => {
  const wire = await Wire.open(ENGINE);
  wire.send("abc");
  await wire.closes();
});

// Socket.IO, packet by packet.

const SID = /^\{"sid":"[^"]+"\}$/;

for (const [title, sent, path, auth] of [
  ["the main namespace", "40", "", "{}"],
  ["the main namespace with a payload", '40{"token":"123"}', "", '{"token":"123"}'],
  ["another namespace", "40/custom,", "/custom,", "{}"],
  ["another namespace with a payload", '40/custom,{"token":"abc"}', "/custom,", '{"token":"abc"}'],
]) {
  example(`a client enters ${title}`, async () => {
    const wire = await Wire.open(SOCKET);
    wire.send(sent);
    const answer = await wire.next();
    const start = `40${path}`;
    assert.equal(answer.slice(0, start.length), start);
    assert.match(answer.slice(start.length), SID);
    assert.equal(await wire.next(), `42${path}["auth",${auth}]`);
  });
}

example("a namespace that does not exist is refused by its name", async () => {
  const wire = await Wire.open(SOCKET);
  wire.send("40/random");
  assert.equal(await wire.next(), '44/random,{"message":"Invalid namespace"}');
});

example("a client that begins with nonsense is cut", async () => {
  const wire = await Wire.open(SOCKET);
  wire.send("4abc");
  const passed = (await wire.closes()) - wire.since;
  assert.ok(passed < 950, `${passed} ms: not for having entered nothing`);
});

example("a client that enters nothing is cut, but not before it had its time", async () => {
  const wire = await Wire.open(SOCKET);
  const passed = (await wire.closes()) - wire.since;
  assert.ok(passed >= 950, `${passed} ms`);
  assert.deepEqual(wire.unasked, []);
});

example("a client that says nothing at all is cut", async () => {
  const wire = await Wire.open(SOCKET);
  wire.keepsPings = true;
  await wire.closes();
  assert.deepEqual(wire.unasked, ["2"]);
});

example("leaving the last namespace is not answered, and the connection stays", async () => {
  const wire = await Wire.enter(SOCKET);
  wire.keepsPings = true;
  wire.send("41");
  for (let pings = 0; pings < 3; pings += 1) {
    assert.equal(await wire.next(), "2");
    wire.send("3");
  }
});

example("leaving one namespace leaves the other", async () => {
  const wire = await Wire.enter(SOCKET);
  wire.keepsPings = true;
  assert.equal(await wire.next(), "2");
  wire.keepsPings = false;
  wire.send("3");
  wire.send("40/custom");
  assert.match(await wire.next(), /^40\/custom,\{"sid":"[^"]+"\}$/);
  assert.equal(await wire.next(), '42/custom,["auth",{}]');
  wire.sendAtOnce("41/custom", '42["message","message to main namespace"]');
  assert.equal(await wire.next(), '42["message-back","message to main namespace"]');
});

const BYTES = [Buffer.of(1, 2, 3), Buffer.of(4, 5, 6)];
const PLACES = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}';

for (const [title, sent, expected] of [
  ["an event with text, number and object", ['42["message",1,"2",{"3":[true]}]'], ['42["message-back",1,"2",{"3":[true]}]']],
  ["an event with bytes", [`452-["message",${PLACES}]`, ...BYTES], [`452-["message-back",${PLACES}]`, ...BYTES]],
  ["an acknowledgement", ['42456["message-with-ack",1,"2",{"3":[false]}]'], ['43456[1,"2",{"3":[false]}]']],
  ["an acknowledgement with bytes", [`452-789["message-with-ack",${PLACES}]`, ...BYTES], [`462-789[${PLACES}]`, ...BYTES]],
]) {
  example(`${title} comes back as it was`, async () => {
    for (const isAtOnce of [false, true]) {
      const wire = await Wire.enter(SOCKET);
      if (isAtOnce) wire.sendAtOnce(...sent);
      else wire.send(...sent);
      for (const packet of expected) assert.deepEqual(await wire.next(), packet);
      assert.deepEqual(wire.unasked, []);
    }
    const session = await Session.enter(SOCKET);
    await session.post(...sent);
    const packets = [];
    while (packets.length < expected.length) packets.push(...(await session.poll()));
    assert.deepEqual(packets, expected);
  });
}

for (const [title, sent] of [
  ["a packet of no type", "4abc"],
  ["an event without arguments", "42{}"],
  ["an acknowledgement id that is no number", '42abc["message-with-ack",1,"2",{"3":[false]}]'],
]) {
  example(`${title} closes the connection`, async () => {
    const wire = await Wire.enter(SOCKET);
    wire.send(sent);
    await wire.closes();
    assert.deepEqual(wire.unasked, []);
  });
}

example("small frames are not held back for others", async () => {
  const wire = await Wire.enter(SOCKET);
  const times = [];
  for (let round = 0; round < 40; round += 1) {
    const since = now();
    wire.says(Buffer.of(round));
    await wire.hears(Buffer.of(round));
    times.push(now() - since);
  }
  const median = times.sort((a, b) => a - b)[times.length / 2];
  assert.ok(median < 30, `${median} ms`);
});

// Sizes, refusals and headers.

example("a body of the largest size comes back, a larger one is refused", async () => {
  const session = await Session.open(ENGINE);
  const largest = "x".repeat(MAX_PAYLOAD - 1);
  await session.post(`4${largest}`);
  assert.equal((await session.poll())[0] === `4${largest}`, true);
  for (let round = 0; round < 5; round += 1) {
    const other = await Session.open(ENGINE);
    const { status } = await ask(other.url, { method: "POST", body: `4${largest}y` });
    assert.equal(status, 413);
  }
});

example("a larger body without a length is refused as well", async () => {
  const session = await Session.open(ENGINE);
  const { status } = await ask(session.url, {
    method: "POST", headers: { "transfer-encoding": "chunked" }, body: "4".repeat(MAX_PAYLOAD + 1),
  });
  assert.equal(status, 413);
});

const UPGRADE = {
  connection: "Upgrade", upgrade: "websocket",
  "sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
};
const REFUSALS = {
  "an unknown transport": [0, "Transport unknown", (at) => [at("abc")]],
  "no transport": [0, "Transport unknown", (at) => [at(null)]],
  "an unknown session": [1, "Session ID unknown", (at) => [at("polling", { sid: "AAAAAAAAAAAAAAAA" })]],
  "a session id that is none": [1, "Session ID unknown", (at) => [at("polling", { sid: "x" })]],
  "a message for an unknown session":
    [1, "Session ID unknown", (at) => [at("polling", { sid: "AAAAAAAAAAAAAAAA" }), { method: "POST", body: "4x" }]],
  "a WebSocket for an unknown session":
    [1, "Session ID unknown", (at) => [at("websocket", { sid: "AAAAAAAAAAAAAAAA" }), { headers: UPGRADE }]],
  "POST without a session": [2, "Bad handshake method", (at) => [at("polling"), { method: "POST", body: "4x" }]],
  "PUT without a session": [2, "Bad handshake method", (at) => [at("polling"), { method: "PUT" }]],
  "the WebSocket transport without an upgrade": [3, "Bad request", (at) => [at("websocket")]],
  "a key for a WebSocket without an upgrade": [3, "Bad request", (at) => {
    const { upgrade, ...headers } = UPGRADE;
    return [at("websocket"), { headers: { ...headers, connection: "close" } }];
  }],
  "an upgrade to something else": [3, "Bad request", (at) => [at("websocket"), { headers: { ...UPGRADE, upgrade: "h2c" } }]],
  "a protocol that is not spoken": [5, "Unsupported protocol version", (at) => [at("polling", { EIO: "abc" })]],
  "a WebSocket with a protocol that is not spoken":
    [5, "Unsupported protocol version", (at) => [at("websocket", { EIO: "abc" }), { headers: UPGRADE }]],
};
const at = (transport, more) => origin + ENGINE.path + query(transport, more);

for (const [what, [code, message, request]] of Object.entries(REFUSALS)) {
  example(`${what} is refused in the words clients know`, async () => {
    const { status, headers, body } = await ask(...request(at));
    assert.equal(status, 400);
    assert.match(headers["content-type"], /^application\/json\b/);
    assert.equal(body, JSON.stringify({ code, message }));
  });
}

example("no protocol at all is refused in the words clients know", async () => {
  const { status, body } = await ask(at("polling", { EIO: null }));
  assert.deepEqual([status, body], [400, '{"code":5,"message":"Unsupported protocol version"}']);
});

for (const engine of BOTH) {
  example(`a WebSocket request that is none is refused and harms no session on ${engine.path}`, async () => {
    const session = await Session.enter(engine);
    const { status, body } = await ask(session.url.replace("=polling", "=websocket"));
    assert.deepEqual([status, body], [400, '{"code":3,"message":"Bad request"}']);
    await session.says("hello");
    assert.deepEqual(await session.poll(), engine.hears("hello"));
  });
}

example("of the protocols a WebSocket offers the first one is taken", async () => {
  for (const [offered, taken] of [[["b", "a"], "b"], [["v1.chat"], "v1.chat"], [[], ""]]) {
    for (const engine of BOTH) {
      const session = await Session.open(engine);
      for (const more of [{}, { sid: session.handshake.sid }]) {
        const ws = new WebSocket(origin.replace("http", "ws") + engine.path + query("websocket", more), offered);
        left.add({ end: () => ws.terminate() });
        await within(5000, "a WebSocket with protocols", once(ws, "open"));
        assert.equal(ws.protocol, taken);
      }
    }
  }
  const { headers } = await ask(at("websocket"), { headers: { ...UPGRADE, "sec-websocket-protocol": "no token, a" } });
  assert.equal(headers["sec-websocket-protocol"], undefined);
});

example("a page that may not come is refused in the words clients know", async () => {
  for (const [transport, headers] of [["polling", {}], ["websocket", UPGRADE]]) {
    const { status, body } = await ask(at(transport), { headers: { ...headers, origin: "https://evil.example" } });
    assert.deepEqual([status, body], [403, '{"code":4,"message":"Forbidden"}']);
  }
});

example("a body of bytes is refused: bytes are written as text", async () => {
  const session = await Session.open(ENGINE);
  const posted = await ask(session.url, {
    method: "POST", body: "4hello", headers: { "content-type": "application/octet-stream" },
  }).catch(() => ({ status: 400 }));
  assert.equal(posted.status, 400);
});

example("answers to polling are plain text that nobody keeps", async () => {
  for (const engine of BOTH) {
    const opened = await ask(origin + engine.path + query("polling"));
    const session = await Session.enter(engine);
    const posted = await session.post(...engine.says("hello"));
    const polled = await session.get();
    const wire = await Wire.join(session);
    await wire.probe();
    const called = await session.get();
    assert.deepEqual([polled.body, called.body], [engine.hears("hello")[0], "6"]);
    for (const { status, headers } of [opened, posted, polled, called]) {
      assert.equal(status, 200);
      assert.equal(headers["content-type"], "text/plain; charset=UTF-8");
      assert.equal(headers["cache-control"], "no-store");
    }
  }
});

// The server itself.

const PAGE = "https://app.example";
const PAGES = { env: { FRONTEND_URL: PAGE } };

const asks = (server, origin) => ask(`${server.url}/socket.io/?EIO=4&transport=polling`, {
  method: "OPTIONS",
  headers: {
    origin, "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-requested-with",
  },
});

story("a page asks first and is told what it may send", PAGES, async ({ server }) => {
  const { status, headers } = await asks(server, PAGE);
  assert.equal(status, 204);
  assert.equal(headers["access-control-allow-origin"], PAGE);
  assert.equal(headers["access-control-allow-credentials"], "true");
  assert.match(headers["access-control-allow-methods"], /POST/);
  assert.equal(headers["access-control-allow-headers"], "authorization,content-type,x-requested-with");
  const { headers: others } = await asks(server, "https://evil.example");
  assert.equal(others["access-control-allow-origin"], undefined);
});

story("a page can read why it was refused", PAGES, async ({ server }) => {
  const headers = { origin: PAGE };
  const url = `${server.url}/socket.io/`;
  const { handshake } = await Polling.open(server, token("ana"), headers);
  for (const [status, target, options] of [
    [400, query("abc"), {}],
    [400, query("polling", { EIO: "abc" }), {}],
    [400, query("polling", { sid: "AAAAAAAAAAAAAAAA" }), {}],
    [400, query("polling"), { method: "POST", body: "4x" }],
    [400, query("websocket"), {}],
    [413, query("polling", { sid: handshake.sid }), { method: "POST", body: "4".repeat(MAX_PAYLOAD + 1) }],
  ]) {
    const answer = await ask(url + target, { ...options, headers });
    assert.equal(answer.status, status, target);
    assert.equal(answer.headers["access-control-allow-origin"], PAGE, target);
    assert.equal(answer.headers["access-control-allow-credentials"], "true", target);
  }
});

story("who breaks off a poll is gone at once", {}, async (world) => {
  const { server } = world;
  const ben = await world.person("ben");
  await ben.joins("algebra");
  const ana = await Polling.open(server, token("ana"));
  await ana.post('420["join-room",{"roomId":"algebra"}]');
  await ana.until("430");
  await ana.post('42["typing-indicator",{"roomId":"algebra","isTyping":true}]');
  assert.equal((await ben.hears("typing-indicator")).isTyping, true);
  for (;;) {
    let request;
    const polled = ask(ana.url, { begun: (one) => { request = one; } });
    // An event may still come.
    if (await Promise.race([polled, pause(10 * SETTLING)])) continue;
    request.destroy();
    await assert.rejects(polled, { code: "ECONNRESET" });
    break;
  }
  // Long before the ping timeout. A poll sent before the server has seen the break would be a second one.
  assert.equal((await ben.hears("typing-indicator", () => true, 2000)).isTyping, false);
  const { status, body } = await ask(ana.url);
  assert.deepEqual([status, body], [400, '{"code":1,"message":"Session ID unknown"}']);
});

story("who began as a WebSocket does not poll", {}, async ({ server }) => {
  const ana = await Raw.connect(server, token("ana"));
  const url = `${server.url}/socket.io/${query("polling", { sid: ana.handshake.sid })}`;
  for (const options of [{}, { method: "POST", body: "4x" }]) {
    const { status, body } = await ask(url, options);
    assert.deepEqual([status, body], [400, '{"code":3,"message":"Bad request"}']);
  }
  assert.equal((await ana.asks(1, "heartbeat")).ok, true);
  ana.close();
});

const PINGS = { env: { CARILLON_SERVER__PING_INTERVAL: "300ms", CARILLON_SERVER__PING_TIMEOUT: "5s" } };

story("a ping that nobody has polled when the client stays comes over the WebSocket", PINGS, async ({ server }) => {
  const ana = await Polling.open(server, token("ana"));
  const ws = new WebSocket(ana.url.replace("http", "ws").replace("=polling", "=websocket"));
  const frames = [];
  ws.on("message", (data) => {
    // Events come as well.
    if (data[0] !== 0x34) frames.push(data.toString());
  });
  await within(5000, "a WebSocket for the session", once(ws, "open"));
  ws.send("2probe");
  await eventually("the probe is answered", () => frames.length > 0);
  await pause(600);
  ws.send("5");
  await eventually("the ping comes", () => frames.includes("2"));
  await pause(200);
  assert.deepEqual(frames, ["3probe", "2"]);
  ws.send("3");
  // And the next one an interval later.
  await eventually("another ping comes", () => frames.length > 2);
  assert.deepEqual(frames, ["3probe", "2", "2"]);
  ws.terminate();
});

story("a polling session that ends is forgotten at once, also while a WebSocket is tried", {
  env: { CARILLON_SERVER__PING_INTERVAL: "1s", CARILLON_SERVER__PING_TIMEOUT: "1s" },
}, async ({ server }) => {
  // The gauges are set twice a second.
  const held = () => Promise.all(["connections", "sockets"].map((of) => server.metric(`carillon_${of}`)));
  const there = () => eventually("it is there", async () => (await held()).join() === "1,1");
  const gone = (ms) => eventually("nothing is left of it", async () => (await held()).join() === "0,0", ms);
  // The packets that end it; none when its client is simply gone.
  for (const packets of [["1"], ["41", "1"], ["x"], []]) {
    for (const isProbed of [false, true]) {
      const polling = await Polling.open(server, token("ana"));
      let poll = polling.poll().catch(() => {});
      if (isProbed) {
        // What is said on CONNECT may answer the first.
        if (await Promise.race([poll.then(() => true), pause(300)])) poll = polling.poll().catch(() => {});
        const ws = new WebSocket(polling.url.replace("http", "ws").replace("polling", "websocket"));
        await once(ws, "open");
        ws.send("2probe");
        assert.equal(String((await once(ws, "message"))[0]), "3probe");
        await poll;
        ws.terminate();
      }
      await there();
      if (packets.length > 0) await polling.post(...packets);
      // Silence is noticed later.
      await gone(packets.length > 0 ? 5_000 : 25_000);
    }
  }
});

story("a client whose link breaks while it moves to a WebSocket is gone", {
  env: { CARILLON_SERVER__PING_INTERVAL: "1s", CARILLON_SERVER__PING_TIMEOUT: "1s" },
}, async ({ server }) => {
  for (let n = 0; n < 60; n += 1) {
    const polling = await Polling.open(server, token(`user-${n}`));
    const ws = new WebSocket(polling.url.replace("http", "ws").replace("polling", "websocket"));
    ws.on("error", () => {});
    await once(ws, "open");
    ws.send("2probe");
    await once(ws, "message");
    const link = ws._socket;
    ws.send("5");
    // Anywhere between the last word of its own and the server's first.
    setTimeout(() => link.resetAndDestroy(), (n % 6) * 0.4);
    await once(ws, "close");
  }
  await pause(1500);
  await eventually("nothing is left of them", async () => {
    const held = await Promise.all(["connections", "sockets", "users"].map((of) => server.metric(`carillon_${of}`)));
    return held.every((count) => count === 0);
  }, 12_000);
});

story("half a POST keeps no server from going away", {}, async ({ server }) => {
  const polling = await Polling.open(server, token("ana"));
  const { pathname, search } = new URL(polling.url);
  const link = net.connect(server.port, "127.0.0.1").on("error", () => {});
  link.write(`POST ${pathname}${search} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n42[`);
  await pause(300);
  const began = Date.now();
  assert.deepEqual(await server.terminate(), { code: 0, signal: null });
  // A drain may take 20 s.
  assert.ok(Date.now() - began < 10_000, `${Date.now() - began} ms`);
  link.destroy();
});

story("a handshake is read as any URL, and a WebSocket's must be sound", {}, async ({ server }) => {
  const url = `${server.url}/socket.io/`;
  for (const [status, asked] of [
    [200, "?EIO=%34&transport=poll%69ng"], [200, "?%45IO=4&transport=polling&sid="], [200, "?EIO=4&transport=polling&EIO=7"],
    [400, "?EIO=4&transport=POLLING"], [400, "?eio=4&transport=polling"], [400, "?EIO=4&transport=polling&sid=%00"],
  ]) {
    assert.equal((await ask(url + asked)).status, status, asked);
  }
  const upgrade = { connection: "Upgrade", upgrade: "websocket" };
  const sound = { "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13" };
  for (const wrong of [{ "sec-websocket-version": "12" }, { "sec-websocket-key": "abc" }, { "sec-websocket-key": "" }]) {
    const { status } = await ask(url + query("websocket"), { headers: { ...upgrade, ...sound, ...wrong } });
    assert.equal(status, 400, JSON.stringify(wrong));
  }
});
