// Who somebody is: keys that come and go, claims that change, tokens that run out.
import assert from "node:assert/strict";
import { generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { after } from "node:test";
import {
  CLIENTS, DATABASES, POSTGRES, Person, Server, eventually, pause, refused, story, token, uniqueRoom, within,
} from "./harness.mjs";
import { Raw } from "./raw.mjs";

const INVALID = { message: "Authentication error: Invalid token" };
const CUT = "io server disconnect";
const now = () => Math.floor(Date.now() / 1000);
const encode = (value) => Buffer.from(value).toString("base64url");
const directory = mkdtempSync(path.join(tmpdir(), "carillon-test-identity-"));
after(() => rmSync(directory, { recursive: true, force: true }));

/** A key of a school's backend. */
class Key {
  constructor(kid, alg = "ES256") {
    this.kid = kid;
    this.alg = alg;
    this.pair = alg === "EdDSA"
      ? generateKeyPairSync("ed25519")
      : generateKeyPairSync("ec", { namedCurve: "P-256" });
    this.jwk = { ...this.pair.publicKey.export({ format: "jwk" }), kid };
  }

  signs(user, claims = {}) {
    const head = encode(JSON.stringify({ alg: this.alg, typ: "JWT", kid: this.kid }));
    const body = encode(JSON.stringify({ userId: user, iat: now(), exp: now() + 600, ...claims }));
    const hash = this.alg === "EdDSA" ? null : "sha256";
    const signature = sign(hash, Buffer.from(`${head}.${body}`), {
      key: this.pair.privateKey, dsaEncoding: "ieee-p1363",
    });
    return `${head}.${body}.${signature.toString("base64url")}`;
  }
}

const set = (...keys) => JSON.stringify({ keys: keys.map((key) => key.jwk) });

/** A key set at an address, which counts who asks. */
class KeyServer {
  asked = 0;
  body = "";
  isAway = false;

  static async start(...keys) {
    const keyServer = new KeyServer();
    keyServer.body = set(...keys);
    keyServer.http = createServer((request, response) => {
      keyServer.asked += 1;
      if (keyServer.isAway) response.writeHead(503).end();
      else if (request.url === "/moved") response.writeHead(302, { location: "/keys" }).end();
      else if (request.url === "/abroad") {
        response.writeHead(302, { location: `http://localhost:${keyServer.port}/keys` }).end();
      } else response.writeHead(200, { "content-type": "application/json" }).end(keyServer.body);
    });
    await new Promise((resolve) => keyServer.http.listen(0, "127.0.0.1", resolve));
    // The process may end with it open.
    keyServer.http.unref();
    keyServer.port = keyServer.http.address().port;
    return keyServer;
  }

  url(path = "/keys") {
    return `http://127.0.0.1:${this.port}${path}`;
  }
}

const app = (rest, id = "campus", tenant = "default") =>
  `[[apps]]\nid = "${id}"\ntenant = "${tenant}"\nprovision_users = true\n${rest}\n`;
const jwks = (place) => app(`[[apps.keys]]\njwks = "${place}"`);

/** The file as a whole, as a careful operator puts it there. */
function publish(file, ...keys) {
  writeFileSync(`${file}.new`, set(...keys));
  renameSync(`${file}.new`, file);
}

async function metric(server, name) {
  const { operations } = JSON.parse(server.log.find((line) => line.includes('"message":"metrics"')));
  const metrics = await (await fetch(`http://${operations}/metrics`)).text();
  const line = metrics.split("\n").find((line) => line.startsWith(`${name} `));
  return line ? Number(line.split(" ").at(-1)) : 0;
}

/** What becomes of a token: `let in`, `refused` or `closed`. */
async function fate(server, token, options) {
  const raw = await Raw.open(server, options);
  raw.send(`40${JSON.stringify({ token })}`);
  const fate = await within(8000, "an answer", Promise.race([
    raw.next("40", 8000).then(() => "let in"),
    raw.next("44", 8000).then((frame) => {
      assert.deepEqual(JSON.parse(frame.slice(2)), INVALID);
      return "refused";
    }),
    raw.closed.then(() => "closed"),
  ]));
  raw.close();
  return fate;
}

{
  const [first, second] = [new Key("2025"), new Key("2026", "EdDSA")];
  const file = path.join(directory, "rotated.json");
  publish(file, first);
  story("a key is rotated in its file, and nobody is disconnected", { toml: jwks(file) }, async (world) => {
    const ana = await world.person("ana", { auth: { token: first.signs("ana") } });
    await ana.joins("algebra");
    publish(file, first, second);
    const ben = await world.person("ben", { auth: { token: second.signs("ben") } });
    await ben.joins("algebra");
    await world.person("cleo", { auth: { token: first.signs("cleo") } });
    publish(file, second);
    await eventually("the old key is not taken any more", async () =>
      (await fate(world.server, first.signs("dan"))) === "refused");
    assert.equal(await fate(world.server, second.signs("dan")), "let in");
    await ana.asks("send-message", { roomId: "algebra", message: "still here" });
    assert.equal((await ben.hears("receive-message")).sender_id, "ana");
    writeFileSync(file, '{"keys":[{"kty"');
    await eventually("the broken file is told", () =>
      world.server.log.some((line) => line.includes("cannot be read")));
    assert.equal(await fate(world.server, second.signs("eve")), "let in");
  });
}

{
  const [known, unknown, next] = [new Key("known"), new Key("unknown"), new Key("next")];
  const keyServer = await KeyServer.start(known);
  story("fifty tokens of an unknown key cause one look at the address", { toml: jwks(keyServer.url()) }, async (world) => {
    const { server } = world;
    const ana = await world.person("ana", { auth: { token: known.signs("ana") } });
    assert.equal(keyServer.asked, 1);
    const tokens = Array.from({ length: 50 }, (_, n) => unknown.signs(`u${n}`));
    const fates = await Promise.all(tokens.map((token) => fate(server, token)));
    assert.equal(keyServer.asked, 2);
    assert.deepEqual(new Set(fates), new Set(["refused"]));
    keyServer.body = set(next);
    // The key may be new: whoever has it comes back, and is never refused for good.
    assert.equal(await fate(server, next.signs("ben", { iat: now() + 2 })), "closed");
    assert.equal(keyServer.asked, 2);
    assert.equal((await ana.asks("heartbeat")).ok, true);
  });
}

{
  const [key, other] = [new Key("known"), new Key("other")];
  const keyServer = await KeyServer.start(key);
  keyServer.isAway = true;
  story("an address that is away costs nobody the session", { toml: jwks(keyServer.url()) }, async (world) => {
    const { server } = world;
    assert.equal(await fate(server, key.signs("ana")), "closed");
    const socket = CLIENTS["4.8"](server.url, {
      auth: { token: key.signs("ana") }, forceNew: true, transports: ["websocket"],
      reconnectionDelay: 200,
    });
    let isRefused = false;
    socket.on("connect_error", () => { isRefused = true; });
    const connected = new Promise((resolve) => socket.once("connect", resolve));
    keyServer.isAway = false;
    await within(20_000, "ana comes in by herself", connected);
    socket.close();
    assert.equal(isRefused, false);

    keyServer.isAway = true;
    assert.equal(await fate(server, key.signs("ben")), "let in");
    assert.equal(await fate(server, other.signs("ben", { iat: now() + 2 })), "closed");
    assert.equal(await fate(server, key.signs("ben", { userId: " system" })), "refused");
    const told = server.log.filter((line) => line.includes("cannot be read"));
    assert.ok(told.length <= 2, `${told.length} outages told`);
    assert.ok((await metric(server, 'carillon_key_refreshes_total{result="failed"}')) >= 1);
    assert.ok((await metric(server, 'carillon_key_refreshes_total{result="ok"}')) >= 1);
  });
}

{
  const key = new Key("only");
  const keyServer = await KeyServer.start(key);
  story("a redirect is followed on the same host only", {
    toml: jwks(keyServer.url("/moved")) +
      app(`[[apps.keys]]\njwks = "${keyServer.url("/abroad")}"`, "other", "other"),
  }, async (world) => {
    await eventually("let in", async () => (await fate(world.server, key.signs("ana"))) === "let in");
    await eventually("told", () =>
      world.server.log.some((line) => line.includes("a redirect to another host")));
  });
}

const SECRETS = { ours: "c5f1d1a0b7e84f6e93d2", old: "55aa0f3c9e17b2d48861", theirs: "7a9e1b3c5d7f90224466" };
const hs256 = (id, secret) => `[[apps.keys]]\nid = "${id}"\nalgorithm = "HS256"\nsecret = "${secret}"\n`;

{
  const known = new Key("known");
  const keyServer = await KeyServer.start(known);
  story("a flood of tokens whose key nobody knows waits in line like any other", {
    toml: jwks(keyServer.url()),
    env: { CARILLON_LIMITS__FAILED_HANDSHAKES: "10/1h", CARILLON_LIMITS__UNAUTHENTICATED: "30" },
  }, async ({ server }) => {
    // Nobody can tell whether it was made after the last look: the transport is closed.
    const unknown = () => new Key(`k${Math.random()}`).signs("ana", { iat: undefined });
    const flood = () => fate(server, unknown());
    for (let n = 0; n < 15; n += 1) await flood();
    const since = Date.now();
    for (let n = 0; n < 9; n += 1) await flood();
    assert.equal(await flood(), "closed");
    assert.ok(Date.now() - since > 450, "fifteen in a second, of an address that floods");
    assert.equal(await fate(server, known.signs("ana")), "let in");
  });
}

story("a key id chooses the key, and never one of another app", {
  toml: app(hs256("new", SECRETS.ours) + hs256("old", SECRETS.old)) +
    app(hs256("theirs", SECRETS.theirs), "other", "other"),
}, async (world) => {
  const { server } = world;
  const by = (secret, kid) => fate(server, token("ana", {}, { secret, header: kid ? { kid } : {} }));
  assert.equal(await by(SECRETS.ours, "new"), "let in");
  assert.equal(await by(SECRETS.old, "old"), "let in");
  assert.equal(await by(SECRETS.old), "let in");
  assert.equal(await by(SECRETS.old, "new"), "refused");
  assert.equal(await by(SECRETS.ours, "theirs"), "refused");
  assert.equal(await by(SECRETS.theirs, "theirs"), "let in");
  const printed = await server.run("token", "--user", "ana");
  assert.equal(JSON.parse(Buffer.from(printed.split(".")[0], "base64url")).kid, "new");
  assert.equal(await fate(server, printed), "let in");
});

story("an app's keys are looked at by `config check`, and what is odd is told", {}, async (world) => {
  const check = async (toml) => {
    writeFileSync(world.server.config, toml);
    return world.server.run("config", "check").catch((error) => error.message);
  };
  assert.match(await check(app(hs256("a", SECRETS.ours))), /is valid/);
  for (const [toml, named] of [
    [jwks("/nowhere/keys.json"), /app "campus".*keys\.jwks.*nowhere/],
    [jwks("ftp://school.example/keys"), /keys\.jwks is neither/],
    [jwks("https://ana:secret@school.example/keys"), /keys\.jwks must not carry/],
    [app('[[apps.keys]]\nalgorithm = "ES256"\npublic_key = "/nowhere.pem"'), /keys\.public_key.*nowhere/],
    [app('[[apps.keys]]\nsecret = "c5f1d1a0b7e84f6e93d2"'), /keys\.algorithm/],
    [app('[[apps.keys]]\nalgorithm = "HS512"\nsecret = "c5f1d1a0b7e84f6e93d2"'), /HS512/],
    [app(`expiry = "never"\n${hs256("a", SECRETS.ours)}`), /never/],
    [app(`issuer = ""\n${hs256("a", SECRETS.ours)}`), /issuer is empty/],
    [app(`[apps.claims]\nhat = "x"\n${hs256("a", SECRETS.ours)}`), /hat/],
  ]) {
    assert.match(await check(toml), named);
  }
});

story("a row made from tokens follows the newest, and so do open sockets", {}, async (world) => {
  const [old, newer] = [now() - 100, now() - 10];
  const ana = await world.person("ana", { claims: { iat: old, name: "Ana", role: "STUDENT" } });
  const room = uniqueRoom();
  await ana.joins(room);
  const row = async () => {
    const { name, role, email, avatar } = (await world.api("GET", "/v1/users/ana")).body;
    return [name, role, email, avatar];
  };
  assert.deepEqual(await row(), ["Ana", "STUDENT", null, null]);
  const picture = "https://campus.example/ana.png";
  const claims = { iat: newer, name: "Ana Maria", role: "MENTOR", email: "ana@campus.example", picture };
  await world.person("ana", { claims });
  const followed = ["Ana Maria", "MENTOR", "ana@campus.example", picture];
  assert.deepEqual(await row(), followed);
  await eventually("the open socket speaks as who she is now", async () => {
    await ana.asks("send-message", { roomId: room, message: "who am I?" });
    return (await ana.hears("receive-message")).sender_name === "Ana Maria";
  });
  await world.person("ana", { claims: { iat: newer - 50, name: "Old", role: "SUPER_ADMIN" } });
  assert.deepEqual(await row(), followed);
  const managed = { name: "Dr Ana", role: "REVIEWER" };
  assert.equal((await world.api("PUT", "/v1/users/ana", managed)).status, 200);
  await world.person("ana", { claims: { ...claims, iat: now() } });
  assert.deepEqual(await row(), ["Dr Ana", "REVIEWER", null, null]);
});

story("nobody is called as the system or as a backend", {}, async (world) => {
  for (const id of [" system", "api:backend"]) {
    assert.equal(await fate(world.server, token(id)), "refused", id);
    const put = await world.api("PUT", `/v1/users/${encodeURIComponent(id)}`, { name: "X", role: "STUDENT" });
    assert.deepEqual([put.status, put.body.code], [400, "INVALID"], id);
  }
});

const ORIGINS = { ours: "https://ours.example", theirs: "https://theirs.example" };
story("a page uses the tokens of its own app only", {
  toml: app(`allowed_origins = ["${ORIGINS.ours}"]\n${hs256("ours", SECRETS.ours)}`) +
    app(`allowed_origins = ["${ORIGINS.theirs}"]\n${hs256("theirs", SECRETS.theirs)}`, "other", "other"),
}, async (world) => {
  for (const transports of [["websocket"], ["polling"], ["polling", "websocket"]]) {
    for (const [page, origin] of Object.entries(ORIGINS)) {
      for (const [owner, secret] of [["ours", SECRETS.ours], ["theirs", SECRETS.theirs]]) {
        const auth = { token: token("ana", {}, { secret }) };
        const comes = world.person("ana", { auth, transports, extraHeaders: { origin } });
        if (owner === page) await comes;
        else await assert.rejects(comes, INVALID, `${owner} ${page} ${transports}`);
      }
    }
  }
  const auth = { token: token("ana", {}, { secret: SECRETS.theirs }) };
  await world.person("ana", { auth });
  assert.ok((await metric(world.server, 'carillon_invalid_tokens_total{reason="origin"}')) >= 6);
});

story("a token that names somebody nobody can be spoils no audit", { on: DATABASES }, async (world) => {
  const names = ["a\0b", "x".repeat(6000) + randomBytes(3000).toString("base64"), "api:stories"];
  for (const userId of names) await assert.rejects(Person.connect(world.server, "ana", { claims: { userId, nbf: now() + 3600 } }), /Invalid token/);
  const spoilt = token("ben", {}, { secret: "somebody else's secret, as long as any" });
  await assert.rejects(Person.connect(world.server, "ben", { auth: { token: spoilt } }), /Invalid token/);
  const refusals = await eventually("the refusals are in the audit log", async () => {
    const { items } = (await world.api("GET", "/v1/audit?action=auth.refused")).body;
    return items.length === 4 && items;
  });
  for (const { actor, subject } of refusals) {
    assert.equal(actor, " unverified");
    assert.ok(subject.length <= 128 && !subject.includes("\0"), subject);
  }
});

story("a flood of bad tokens costs little, and never the honest user", {}, async (world) => {
  const { server } = world;
  const bad = token("ana", {}, { secret: "another secret of thirty-two bytes" });
  for (let n = 0; n < 30; n += 1) assert.equal(await fate(server, bad), "refused");
  assert.ok((await metric(server, 'carillon_invalid_tokens_total{reason="remembered"}')) >= 29);
  const raw = await Raw.open(server);
  raw.send(`40${JSON.stringify({ token: bad })}`);
  await raw.next("44");
  await within(5000, "the connection is closed", raw.closed);
  assert.ok((await metric(server, 'carillon_closed_total{reason="refused"}')) >= 1);
  const noted = async () => (await world.api("GET", "/v1/audit?action=auth.refused")).body.items;
  const refusals = await eventually("it is noted", async () => (await noted()).length > 1 && noted());
  for (const { actor, subject } of refusals) assert.deepEqual([actor, subject], [" unverified", "ana"]);
  assert.ok(refusals.length <= 4, "a flood is counted, not listed");
  const ana = await world.person("ana");
  // What she has is not lost by what fails beside it.
  const other = ana.socket.io.socket("/chat", { auth: { token: bad } });
  await new Promise((resolve) => other.once("connect_error", resolve));
  await pause(1500);
  assert.equal((await ana.asks("heartbeat")).ok, true);
});

const ENFORCED = {
  env: {
    CARILLON_AUTH__LEEWAY: "0s", CARILLON_AUTH__EXPIRING_NOTICE: "2s", CARILLON_AUTH__EXPIRY_GRACE: "1s",
  },
  toml: app(`expiry = "enforce"\n${hs256("ours", SECRETS.ours)}`) +
    app(hs256("theirs", SECRETS.theirs), "other", "default"),
};
const ours = (user, claims) => token(user, claims, { secret: SECRETS.ours });
const iso = (seconds) => new Date(seconds * 1000).toISOString();
const gone = (socket) => new Promise((resolve) => socket.once("disconnect", resolve));

story("a token that runs out is announced, renewed by a newer one, and ends the connection", ENFORCED, async (world) => {
  const exp = now() + 4;
  const first = ours("ana", { exp });
  const ana = await world.person("ana", { auth: { token: first } });
  const chat = ana.socket.io.socket("/chat", { auth: { token: first } });
  await new Promise((resolve) => chat.once("connect", resolve));
  const cut = [gone(ana.socket), gone(chat)];
  assert.deepEqual(await ana.hears("auth-expiring"), { expiresAt: iso(exp) });
  assert.ok(Date.now() >= (exp - 2) * 1000 - 50 && Date.now() < exp * 1000);

  const later = now() + 5;
  const second = ours("ana", { exp: later, iat: now() + 1, name: "Ana Maria", tokenVersion: 1 });
  assert.deepEqual(await ana.asks("auth-refresh", { token: second }), { ok: true, expiresAt: iso(later) });
  // The connection's other socket holds the same token.
  await pause((exp + 1) * 1000 - Date.now() + 700);
  assert.deepEqual([ana.socket.connected, chat.connected], [true, true]);
  await ana.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "hi" });
  assert.equal((await ana.hears("receive-message")).sender_name, "Ana Maria");

  assert.deepEqual(await ana.hears("auth-expiring"), { expiresAt: iso(later) });
  assert.deepEqual(await Promise.all(cut), [CUT, CUT]);
  const late = Date.now() - (later + 1) * 1000;
  assert.ok(late >= 0 && late < 1000, `${late} ms after the grace`);
  await assert.rejects(world.person("ana", { auth: { token: second } }), INVALID);
  assert.equal(await metric(world.server, "carillon_expired_total"), 2);
  for (const secret of [first, second]) {
    assert.equal(world.server.log.some((line) => line.includes(secret)), false);
  }
});

{
  const [key, next] = [new Key("now"), new Key("next")];
  const keyServer = await KeyServer.start(key);
  story("who has a newer token that nobody can judge is not disconnected for good", {
    ...ENFORCED, toml: app(`expiry = "enforce"\n[[apps.keys]]\njwks = "${keyServer.url()}"`),
  }, async (world) => {
    const exp = now() + 4;
    const options = { reconnection: true, reconnectionDelay: 100 };
    const ana = await world.person("ana", { auth: { token: key.signs("ana", { exp }) }, ...options });
    keyServer.isAway = true;
    const newer = next.signs("ana", { iat: now() + 2 });
    const answer = await ana.asks("auth-refresh", { token: newer });
    assert.deepEqual([answer.code, answer.retryable], ["UNAVAILABLE", true]);
    ana.socket.auth = { token: newer };
    const back = new Promise((resolve) => ana.socket.on("connect", resolve));
    assert.notEqual(await within(8000, "the end", gone(ana.socket)), CUT);
    keyServer.body = set(next);
    keyServer.isAway = false;
    await within(20_000, "ana is back by herself", back);
  });
}

story("a token that has little time left is announced at once", ENFORCED, async (world) => {
  const exp = now() + 2;
  const ana = await world.person("ana", { auth: { token: ours("ana", { exp }) } });
  assert.deepEqual(await ana.hears("auth-expiring", () => true, 1500), { expiresAt: iso(exp) });
});

story("what does not renew a token changes nothing, and another user's ends the connection", ENFORCED, async (world) => {
  const auth = { token: ours("ana") };
  const ana = await world.person("ana", { auth, path: "/chat" });
  const MESSAGE = INVALID.message;
  for (const [why, bad] of Object.entries({
    "garbage": "garbage",
    "another secret": token("ana"),
    "expired": ours("ana", { exp: now() - 1 }),
    "another app's": token("ana", {}, { secret: SECRETS.theirs }),
    "nobody's": ours(" system"),
  })) {
    refused(await ana.asks("auth-refresh", { token: bad }), "UNAUTHENTICATED", MESSAGE);
    assert.equal((await ana.asks("heartbeat")).ok, true, why);
  }
  refused(await ana.asks("auth-refresh", {}), "INVALID", "Token is required");
  assert.equal((await ana.asks("auth-refresh", { token: ours("ana") })).ok, true);
  const cut = gone(ana.socket);
  ana.says("auth-refresh", { token: ours("ben") });
  assert.equal(await within(3000, "the cut", cut), CUT);
});

story("an app that lets connections outlive their tokens takes newer ones, too", {}, async (world) => {
  const ana = await world.person("ana");
  const exp = now() + 900;
  const newer = token("ana", { exp, iat: now() + 1, name: "Ana Maria" });
  assert.deepEqual(await ana.asks("auth-refresh", { token: newer }), { ok: true, expiresAt: iso(exp) });
  await ana.joins("algebra");
  await ana.asks("send-message", { roomId: "algebra", message: "hi" });
  assert.equal((await ana.hears("receive-message")).sender_name, "Ana Maria");
});

const STRICT = { env: { CARILLON_AUTH__LEEWAY: "0s" } };
story("after a crash somebody comes back with the token that has expired meanwhile", STRICT, async (world) => {
  const { server } = world;
  const claims = { exp: now() + 3 };
  const auth = { token: token("ana", claims) };
  const ana = await world.person("ana", {
    auth, reconnection: true, reconnectionDelay: 100, reconnectionAttempts: 100,
  });
  let isRefused = false;
  ana.socket.on("connect_error", (error) => { isRefused ||= error.message === INVALID.message; });
  await pause(3200);
  // The network drops for a moment.
  const again = () => new Promise((resolve) => ana.socket.once("connect", resolve));
  let back = again();
  ana.socket.io.engine.close();
  await within(5000, "back", back);
  await server.kill();
  back = again();
  await server.restart();
  await within(10_000, "back after the crash", back);
  assert.equal(isRefused, false);
  await assert.rejects(world.person("ben", { claims: { exp: now() - 1 } }), INVALID);
});

story("who was noted two and a half minutes ago may have been here two minutes ago", { ...STRICT, on: POSTGRES }, async (world) => {
  const { default: pg } = await import("pg");
  const database = new pg.Client({ connectionString: world.server.databaseUrl });
  await database.connect();
  try {
    await world.people("ana", "ben");
    await eventually("both are noted", async () =>
      (await database.query("SELECT 1 FROM online_users")).rowCount === 2);
    await world.server.kill();
    const note = (user, ago) => database.query(
      `UPDATE online_users SET last_seen = now() - interval '${ago} seconds' WHERE user_id = $1`, [user]);
    await note("ana", 145);
    await note("ben", 170);
    await world.server.restart();
    const expired = { exp: now() - 1 };
    await world.person("ana", { claims: expired });
    await assert.rejects(world.person("ben", { claims: expired }), INVALID);
  } finally {
    await database.end();
  }
});

story("a file of keys that cannot be used stops the start with a sentence", {}, async () => {
  const file = path.join(directory, "useless.json");
  for (const [text, named] of [["{", /keys\.jwks/], ['{"keys":[{"kty":"oct","k":"AAAA"}]}', /holds no key/]]) {
    writeFileSync(file, text);
    await assert.rejects(Server.start({ toml: jwks(file) }), named);
  }
});
