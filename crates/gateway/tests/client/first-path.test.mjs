// The thinnest whole path: connect, join, send, receive, and find it again after a power cut.
import assert from "node:assert/strict";
import { DATABASES, story } from "./harness.mjs";

story("a message outlives the process that acknowledged it", { on: DATABASES }, async (world) => {
  const [ana, ben] = await world.people("ana", "ben");
  assert.deepEqual((await ana.joins("algebra")).messages, []);
  await ben.joins("algebra");

  const sent = await ana.asks("send-message", { roomId: "algebra", message: "Is ∅ open?" });
  assert.equal(sent.ok, true);
  assert.equal(sent.seq, 1);
  for (const person of [ana, ben]) {
    const heard = await person.hears("receive-message");
    assert.deepEqual(Object.keys(heard), [
      "id", "room_id", "sender_id", "sender_name", "sender_avatar", "message", "message_type",
      "file_url", "file_name", "file_size", "is_read", "created_at", "seq", "clientMsgId",
    ]);
    assert.equal(heard.id, sent.id);
    assert.equal(heard.message, "Is ∅ open?");
    assert.equal(heard.sender_name, "ana Name");
    assert.match(heard.created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  }

  await world.server.kill();
  await world.server.restart();
  const back = await world.person("ben");
  const { messages, seq } = await back.joins("algebra");
  assert.equal(seq, 1);
  assert.deepEqual(messages.map((m) => [m.id, m.message]), [[sent.id, "Is ∅ open?"]]);
});
