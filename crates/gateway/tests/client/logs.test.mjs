// What is logged, and what never is.
import assert from "node:assert/strict";
import { eventually, story, token } from "./harness.mjs";

story("no payload and no token is logged, however much is asked for", {
  env: { RUST_LOG: "trace", DEBUG: "socket.io:*" },
}, async (world) => {
  const secret = token("ana");
  for (const transports of [["websocket"], ["polling"]]) {
    const ana = await world.person("ana", { auth: { token: secret }, transports });
    await ana.joins("algebra");
    await ana.asks("send-message", { roomId: "algebra", message: "xyzzy-in-confidence" });
    await ana.asks("send-message", { roomId: "algebra", message: { xyzzy: "xyzzy-in-confidence" } });
    await ana.asks("xyzzy-in-confidence", { x: "xyzzy-in-confidence" });
  }
  const log = world.server.log.join("\n");
  assert.match(log, /"level":"TRACE"|"level":"DEBUG"/, "there is something to look through");
  assert.deepEqual(world.server.log.filter((line) => line.includes("xyzzy-in-confidence")), []);
  assert.deepEqual(world.server.log.filter((line) => line.includes(secret)), []);
});

story("a log line is JSON with the fields that make it findable", { env: {} }, async (world) => {
  const ready = await eventually("the server says that it is ready", () =>
    world.server.log.map((line) => JSON.parse(line)).find((entry) => entry.message === "ready"),
  );
  assert.equal(ready.level, "INFO");
  assert.match(ready.timestamp, /^\d{4}-\d\d-\d\dT/);
  assert.match(ready.address, /^127\.0\.0\.1:\d+$/);
});
