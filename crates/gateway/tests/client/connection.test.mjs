// Who may come in, with what, from where, and by which transport.
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after } from "node:test";
import {
  CLIENTS, POSTGRES, eventually, lets, pause, refused, silent, story, token, uniqueRoom, within,
} from "./harness.mjs";
import { Polling, Raw } from "./raw.mjs";

const NO_TOKEN = { message: "Authentication error: No token provided" };
const INVALID = { message: "Authentication error: Invalid token" };
const SUSPENDED = { message: "Authentication error: Account suspended" };
const NOT_FOUND = { message: "Authentication error: User not found" };

const now = () => Math.floor(Date.now() / 1000);
const encode = (value) => Buffer.from(value).toString("base64url");

story("a token is taken from the auth object or from the Authorization header", {}, async (world) => {
  for (const transports of [["websocket"], ["polling"]]) {
    const ana = await world.person("ana", { transports });
    const ben = await world.person("ben", {
      transports, auth: {}, extraHeaders: { Authorization: `Bearer ${token("ben")}` },
    });
    const room = uniqueRoom();
    for (const person of [ana, ben]) await person.joins(room);
    await ben.asks("send-message", { roomId: room, message: "hi" });
    assert.equal((await ana.hears("receive-message")).sender_id, "ben");
  }
});

story("a user is named by userId, id or sub, also as a number", {}, async (world) => {
  const nobody = { userId: undefined };
  for (const [claims, user] of [
    [{ userId: "u1" }, "u1"],
    [{ ...nobody, id: "u2" }, "u2"],
    [{ ...nobody, sub: "u3" }, "u3"],
    [{ userId: 4 }, "4"],
    [{ ...nobody, id: 5 }, "5"],
    [{ userId: "u6", id: "u6", sub: "u6" }, "u6"],
    [{ userId: 7, id: "7" }, "7"],
  ]) {
    const person = await world.person("ana", { claims: { ...claims, name: "Ana" } });
    const room = uniqueRoom();
    await person.joins(room);
    await person.asks("send-message", { roomId: room, message: "hi" });
    assert.equal((await person.hears("receive-message")).sender_id, user);
  }
});

story("a user without a name is shown by something that has a first letter", {}, async (world) => {
  for (const claims of [{ name: undefined }, { name: "" }, { name: "  " }, { name: 7 }]) {
    const person = await world.person("ana", { claims });
    const room = uniqueRoom();
    await person.joins(room);
    await person.asks("send-message", { roomId: room, message: "hi" });
    assert.equal((await person.hears("receive-message")).sender_name.trim().length > 0, true);
  }
});

story("a missing token is called missing", {}, async (world) => {
  for (const auth of [{}, { token: null }, { token: "" }]) {
    await assert.rejects(world.person("ana", { auth }), NO_TOKEN);
  }
});

story("a token that proves nothing is called invalid", {}, async (world) => {
  const [head, body, signature] = token("ana").split(".");
  const none = encode(JSON.stringify({ alg: "none", typ: "JWT" }));
  const other = encode(JSON.stringify({ userId: "admin", iat: now(), exp: now() + 3600 }));
  for (const [why, bad] of Object.entries({
    "no token at all": "garbage",
    "a number": 42,
    "an object": { userId: "ana" },
    "another secret": token("ana", {}, { secret: "another secret of thirty-two bytes" }),
    "another body": `${head}.${other}.${signature}`,
    "alg none without signature": `${none}.${body}.`,
    "alg none with signature": `${none}.${body}.${signature}`,
    "alg None": token("ana", {}, { header: { alg: "None" } }),
    "HS512 in the header": token("ana", {}, { header: { alg: "HS512" } }),
    "RS256 in the header": token("ana", {}, { header: { alg: "RS256" } }),
    "expired": token("ana", { exp: now() - 60 }),
    "without exp": token("ana", { exp: undefined }),
    "exp as text": token("ana", { exp: "tomorrow" }),
    "not valid yet": token("ana", { nbf: now() + 600 }),
    "two different users": token("ana", { id: "ben" }),
    "userId and sub differ": token("ana", { sub: "ben" }),
  })) {
    await assert.rejects(world.person("ana", { auth: { token: bad } }), INVALID, why);
  }
});

story("clocks may differ by a few seconds", {}, async (world) => {
  await world.person("ana", { claims: { exp: now() - 3 } });
});

story("a refused client is not let in by the back door", {}, async (world) => {
  const ana = await world.person("ana");
  await ana.joins("algebra");
  const raw = await Raw.open(world.server);
  raw.send('40{"token":"garbage"}');
  assert.deepEqual(JSON.parse((await raw.next("44")).slice(2)), INVALID);
  raw.send('42["join-room",{"roomId":"algebra"}]');
  await raw.closed;
  await silent("user-joined-room", ana);
});

story("a connection outlives its token, and its user may come back with it", { env: { CARILLON_AUTH__LEEWAY: "0s" } }, async (world) => {
  const claims = { exp: now() + 2 };
  const auth = { token: token("ana", claims) };
  const ana = await world.person("ana", { auth });
  await ana.joins("algebra");
  await pause(3100);
  assert.equal((await ana.asks("send-message", { roomId: "algebra", message: "still here" })).ok, true);
  ana.leaves();
  await world.person("ana", { auth });
  // Somebody who was not here has no claim to that, and neither has a token too old.
  await assert.rejects(world.person("ben", { claims: { exp: now() - 1 } }), INVALID);
  await assert.rejects(
    world.person("ana", { claims: { iat: now() - 9 * 3600, exp: now() - 1 } }), INVALID,
  );
});

story("a suspended user is cut within a second and not let in again", { on: POSTGRES }, async (world) => {
  const { default: pg } = await import("pg");
  const database = new pg.Client({ connectionString: world.server.databaseUrl });
  await database.connect();
  const set = (status) => database.query("UPDATE users SET status = $1 WHERE id = 'ana'", [status]);
  try {
    const [ana, ben] = await world.people("ana", "ben");
    const polling = await world.person("ana", { transports: ["polling"], path: "/chat" });
    const gone = [ana, polling].map((person) =>
      within(1500, "the cut", new Promise((resolve) => person.socket.once("disconnect", resolve))),
    );
    await set("SUSPENDED");
    const since = Date.now();
    for (const reason of await Promise.all(gone)) assert.equal(reason, "io server disconnect");
    assert.ok(Date.now() - since <= 1000, `${Date.now() - since} ms`);
    await assert.rejects(world.person("ana"), SUSPENDED);
    assert.equal((await ben.asks("heartbeat")).ok, true);
    await set("VERIFIED");
    await world.person("ana");
  } finally {
    await database.end();
  }
});

story("a socket's public id has twenty characters and is not the engine's", {}, async (world) => {
  const ids = new Set();
  for (const options of [
    {}, { path: "/chat" }, { transports: ["polling"] }, { transports: ["polling", "websocket"] },
  ]) {
    const person = await world.person("ana", options);
    const { id, io } = person.socket;
    assert.match(id, /^[A-Za-z0-9_-]{20}$/);
    assert.notEqual(id, io.engine.id);
    ids.add(id).add(io.engine.id);
  }
  assert.equal(ids.size, 8);
});

story("the engine's id is never on the wire after the open packet", {}, async (world) => {
  const raw = await Raw.connect(world.server, token("ana"));
  const polling = await Polling.open(world.server, token("ben"));
  await raw.enter(token("ana"), "/chat");
  await raw.asks(1, "join-room", { roomId: "algebra" });
  await polling.post('421["join-room",{"roomId":"algebra"}]', '422["send-message",{"roomId":"algebra","message":"hi"}]');
  await raw.next('42["receive-message"');
  await raw.asks(2, "heartbeat");
  const polled = [polling.connected, ...(await polling.until("432["))];
  const secrets = [raw.handshake.sid, polling.handshake.sid];
  for (const frame of [...raw.wire.slice(1), ...polled]) {
    for (const secret of secrets) assert.equal(frame.includes(secret), false, frame);
  }
  raw.close();
});

story("the handshake says what the contract says", {}, async (world) => {
  const raw = await Raw.open(world.server);
  const { sid, ...handshake } = raw.handshake;
  assert.deepEqual(handshake, {
    upgrades: [], pingInterval: 25_000, pingTimeout: 60_000, maxPayload: 1_000_000,
  });
  const polling = await Polling.open(world.server, token("ana"));
  assert.deepEqual(polling.handshake.upgrades, ["websocket"]);
  raw.close();
});

const PINGS = { env: { CARILLON_SERVER__PING_INTERVAL: "200ms", CARILLON_SERVER__PING_TIMEOUT: "400ms" } };

story("a client that answers pings stays, one that does not is closed", PINGS, async (world) => {
  const raw = await Raw.connect(world.server, token("mute"), { mute: true });
  for (const transports of [["websocket"], ["polling"]]) {
    const ana = await world.person("ana", { transports });
    for (let pings = 0; pings < 4; pings += 1) await once(ana.socket.io, "ping");
    assert.equal(ana.socket.connected, true);
  }
  await within(3000, "the mute client is closed", raw.closed);
});

const ORIGINS = { env: { FRONTEND_URL: "https://app.example,campus.example" } };
const GOOD = ["https://app.example", "https://campus.example", "http://campus.example"];
const BAD = [
  "http://app.example", "https://app.example:8443", "https://app.example.evil.example",
  "https://evil.example", "null", "http://localhost:5173",
];

story("a page of the frontend's origin may poll, and its credentials are allowed", ORIGINS, async (world) => {
  const url = `${world.server.url}/socket.io/?EIO=4&transport=polling`;
  for (const origin of GOOD) {
    const response = await fetch(url, { headers: { origin } });
    assert.equal(response.status, 200, origin);
    assert.equal(response.headers.get("access-control-allow-origin"), origin);
    assert.equal(response.headers.get("access-control-allow-credentials"), "true");
    assert.match(response.headers.get("vary") ?? "", /origin/i);

    const preflight = await fetch(url, {
      method: "OPTIONS",
      headers: {
        origin, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
      },
    });
    assert.ok([200, 204].includes(preflight.status));
    assert.equal(preflight.headers.get("access-control-allow-origin"), origin);
    assert.match(preflight.headers.get("access-control-allow-methods"), /POST/);
    assert.match(preflight.headers.get("access-control-allow-headers"), /authorization/i);
  }
});

story("a page of another origin is refused on every transport", ORIGINS, async (world) => {
  const url = `${world.server.url}/socket.io/?EIO=4&transport=polling`;
  for (const origin of BAD) {
    const response = await fetch(url, { headers: { origin } });
    assert.equal(response.status, 403, origin);
    assert.deepEqual(await response.json(), { code: 4, message: "Forbidden" });
    assert.equal(response.headers.get("access-control-allow-origin"), null);
    await assert.rejects(Raw.open(world.server, { headers: { origin } }), /HTTP 403/, origin);
  }
  for (const origin of GOOD) (await Raw.open(world.server, { headers: { origin } })).close();
});

story("a client that is no page has no origin and comes in", ORIGINS, async (world) => {
  assert.equal((await fetch(`${world.server.url}/socket.io/?EIO=4&transport=polling`)).status, 200);
  (await Raw.open(world.server)).close();
});

story("both addresses of the development frontend may come without configuration", {}, async (world) => {
  for (const origin of ["http://localhost:5173", "http://localhost:3000"]) {
    (await Raw.open(world.server, { headers: { origin } })).close();
  }
});

for (const client of Object.keys(CLIENTS)) {
  for (const [name, transports] of Object.entries({
    WebSocket: ["websocket"], polling: ["polling"], "the upgrade": ["polling", "websocket"],
  })) {
    story(`client ${client} does everything over ${name}`, lets(client), async (world) => {
      const [ana, ben] = [
        await world.person("ana", { client, transports }), await world.person("ben"),
      ];
      const wanted = transports.at(-1);
      await eventually(`${wanted} carries it`, () => ana.socket.io.engine.transport.name === wanted);
      for (const person of [ana, ben]) await person.joins("algebra");

      const message = "𝄞".repeat(4000);
      const sent = await ana.asks("send-message", { roomId: "algebra", message });
      assert.deepEqual([sent.ok, sent.seq], [true, 1]);
      for (const person of [ana, ben]) {
        assert.equal((await person.hears("receive-message")).message, message);
      }
      const large = { roomId: "algebra", message: "x".repeat(40_000) };
      refused(await ana.asks("send-message", large), "TOO_LARGE", "Failed to send message");
      await ben.asks("send-message", { roomId: "algebra", message: "and back" });
      assert.equal((await ana.hears("receive-message")).message, "and back");

      ana.says("typing-indicator", { roomId: "algebra", isTyping: true });
      assert.equal((await ben.hears("typing-indicator")).isTyping, true);
      const gone = once(ana.socket, "disconnect");
      ana.leaves();
      assert.equal((await gone)[0], "io client disconnect");
      assert.equal((await ben.hears("typing-indicator", () => true, 2000)).isTyping, false);
    });
  }
}

story("nothing is lost and nothing overtakes while a transport is upgraded", {}, async (world) => {
  const ana = await world.person("ana", { transports: ["polling", "websocket"] });
  ana.says("join-room", { roomId: "algebra" });
  const answers = await Promise.all(
    Array.from({ length: 50 }, (_, index) =>
      ana.asks("send-message", { roomId: "algebra", message: `${index}` })),
  );
  assert.deepEqual(answers.map((answer) => answer.seq), answers.map((_, index) => index + 1));
  for (let index = 0; index < 50; index += 1) {
    assert.equal((await ana.hears("receive-message")).message, `${index}`);
  }
  await eventually("upgraded", () => ana.socket.io.engine.transport.name === "websocket");
});

// Keys of every kind, and what an app says about its users.
const PAIRS = {
  RS256: generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  EdDSA: generateKeyPairSync("ed25519"),
};
const pem = (algorithm) => PAIRS[algorithm].publicKey.export({ type: "spki", format: "pem" });
const SECRETS = { strict: "c5f1d1a0b7e84f6e93d2", closed: "7a9e1b3c5d7f90224466" };
const directory = mkdtempSync(path.join(tmpdir(), "carillon-test-keys-"));
const config = path.join(directory, "carillon.toml");
writeFileSync(config, `
[[apps]]
id = "campus"
tenant = "campus"
default = true
provision_users = true
[apps.roles]
docent = "MENTOR"
${Object.keys(PAIRS).map((algorithm) => `[[apps.keys]]
id = "${algorithm}-2026"
algorithm = "${algorithm}"
public_key = """
${pem(algorithm)}"""`).join("\n")}

[[apps]]
id = "strict"
tenant = "strict"
provision_users = true
issuer = "https://login.example"
audience = "chat"
[apps.claims]
user = ["uid"]
role = "kind"
name = "display"
[[apps.keys]]
algorithm = "HS256"
secret = "${SECRETS.strict}"

[[apps]]
id = "closed"
tenant = "closed"
[[apps.keys]]
algorithm = "HS256"
secret = "${SECRETS.closed}"
`);
after(() => rmSync(directory, { recursive: true, force: true }));

function signed(algorithm, user, claims = {}, { key = PAIRS[algorithm].privateKey, header = {} } = {}) {
  const head = encode(JSON.stringify({ alg: algorithm, typ: "JWT", ...header }));
  const body = encode(JSON.stringify({ userId: user, name: user, iat: now(), exp: now() + 600, ...claims }));
  const hash = algorithm === "EdDSA" ? null : "sha256";
  const signature = sign(hash, Buffer.from(`${head}.${body}`), { key, dsaEncoding: "ieee-p1363" });
  return `${head}.${body}.${signature.toString("base64url")}`;
}

story("RS256, ES256 and EdDSA keys verify what their owners have signed", { config }, async (world) => {
  for (const algorithm of Object.keys(PAIRS)) {
    const auth = { token: signed(algorithm, "ana") };
    assert.equal((await (await world.person("ana", { auth })).asks("heartbeat")).ok, true);
    const header = { kid: `${algorithm}-2026` };
    await world.person("ana", { auth: { token: signed(algorithm, "ana", {}, { header }) } });
  }
});

story("a key verifies its own algorithm and nothing else", { config }, async (world) => {
  const strangers = {
    RS256: generateKeyPairSync("rsa", { modulusLength: 2048 }),
    ES256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
    EdDSA: generateKeyPairSync("ed25519"),
  };
  for (const algorithm of Object.keys(PAIRS)) {
    const text = pem(algorithm);
    for (const [why, bad] of Object.entries({
      "another key": signed(algorithm, "ana", {}, { key: strangers[algorithm].privateKey }),
      "the public key as a secret": token("ana", {}, { secret: text }),
      "the public key without its last line end": token("ana", {}, { secret: text.trim() }),
      "the public key as a secret, by key id":
        token("ana", {}, { secret: text, header: { kid: `${algorithm}-2026` } }),
      "the environment's secret": token("ana"),
      "another key's id": signed(algorithm, "ana", {}, { header: { kid: "2025" } }),
    })) {
      await assert.rejects(world.person("ana", { auth: { token: bad } }), INVALID, `${algorithm}: ${why}`);
    }
  }
});

const strict = (claims) =>
  token(undefined, {
    uid: "ana", iss: "https://login.example", aud: "chat", name: undefined, display: "Ana", ...claims,
  }, { secret: SECRETS.strict });

story("an app's issuer, audience and names of claims count", { config }, async (world) => {
  const ana = await world.person("ana", { auth: { token: strict() } });
  await ana.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "hi" });
  const { sender_id, sender_name } = await ana.hears("receive-message");
  assert.deepEqual([sender_id, sender_name], ["ana", "Ana"]);
  for (const [why, claims] of Object.entries({
    "no issuer": { iss: undefined },
    "another issuer": { iss: "https://evil.example" },
    "another audience": { aud: "mail" },
    "a user by another name": { uid: undefined, userId: "ana" },
    "no audience": { aud: undefined },
  })) {
    await assert.rejects(world.person("ana", { auth: { token: strict(claims) } }), INVALID, why);
  }
});

story("an app that makes no users knows only those there are", { config }, async (world) => {
  const auth = { token: token("ana", {}, { secret: SECRETS.closed }) };
  await assert.rejects(world.person("ana", { auth }), NOT_FOUND);
});

story("an app's own words for roles are understood", { config }, async (world) => {
  const campus = (id, role) => world.person(id, { auth: { token: signed("EdDSA", id, { role }) } });
  await campus("d1", "docent");
  await campus("t1", "teacher");
  await campus("s2", "something else");
  const student = await campus("s1", "STUDENT");
  await student.joins("mentor:d1");
  await student.joins("mentor:t1");
  refused(await student.asks("join-room", { roomId: "mentor:s2" }), "FORBIDDEN", "Failed to join room");
});

story("two tenants share nothing, not even by the same names", { config }, async (world) => {
  const here = await world.person("ana", { auth: { token: signed("ES256", "ana") } });
  const there = await world.person("ana", { auth: { token: strict() } });
  for (const person of [here, there]) assert.deepEqual((await person.joins("algebra")).messages, []);
  const { id } = await here.asks("send-message", { roomId: "algebra", message: "ours" });
  await here.asks("typing-indicator", { roomId: "algebra", isTyping: true });
  assert.equal((await there.asks("mark-message-read", { messageId: id })).ok, false);
  assert.equal((await there.joins("algebra")).seq, 0);
  await silent("receive-message", there);
  await silent("typing-indicator", there);
  await silent("user-joined-room", here, there);
});

story("who polls and says nothing stays, with whatever it was sent taken", {
  env: { CARILLON_LIMITS__STALLED: "2s" },
}, async (world) => {
  const people = [await world.person("ana", { transports: ["polling"] }), await world.person("ben", { transports: ["polling"] })];
  for (const person of people) await person.joins("algebra");
  const message = "𝄞".repeat(200);
  for (const person of people) assert.equal((await person.asks("send-message", { roomId: "algebra", message })).ok, true);
  for (const person of people) {
    await person.hears("receive-message");
    await person.hears("receive-message");
  }
  await pause(5000);
  assert.equal(await world.server.metric('carillon_closed_total{reason="slow_consumer"}'), 0);
  for (const person of people) assert.equal((await person.asks("heartbeat")).ok, true);
});
