// Every client there is against one contract: each version, over each transport it has.
import assert from "node:assert/strict";
import { once } from "node:events";
import { describe } from "node:test";
import { CLIENTS, Person, story, token, within } from "./harness.mjs";

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

// Each of them ends with a wait for the grace, so they wait together.
describe("the matrix", { concurrency: 9 }, () => {
  for (const client of Object.keys(CLIENTS)) {
    for (const [name, { transports, used }] of Object.entries(TRANSPORTS)) {
      story(`client ${client} keeps the contract over ${name}`, {}, async (world) => {
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
});
