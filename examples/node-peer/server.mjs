// What Carillon is measured against: the chat contract on Node's socket.io, as fast as that goes,
// as far as the load generator speaks it. It keeps nothing: no database, no history, no limits.
//
//   JWT_SECRET=… PORT=3002 node server.mjs
//
// With REDIS_URL it is one of several nodes, by the Redis adapter. Numbers of messages are each
// node's own.
import { createSecretKey, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import jwt from "jsonwebtoken";
import { createClient } from "redis";
import { Server } from "socket.io";

const { JWT_SECRET, HOST = "127.0.0.1", PORT = "0", REDIS_URL } = process.env;
if (!JWT_SECRET) throw new Error("JWT_SECRET: what tokens are signed with");
// A key object is read once; with a string every verification costs 60 times as much.
const key = createSecretKey(Buffer.from(JWT_SECRET));

async function adapter() {
  const clients = [createClient({ url: REDIS_URL }), createClient({ url: REDIS_URL })];
  for (const client of clients) client.on("error", (error) => console.error(error.message));
  await Promise.all(clients.map((client) => client.connect()));
  return createAdapter(...clients);
}

const http = createServer();
const io = new Server(http, {
  perMessageDeflate: false,
  httpCompression: false,
  serveClient: false,
  pingInterval: 25_000,
  pingTimeout: 60_000,
  ...(REDIS_URL ? { adapter: await adapter() } : {}),
});

io.use((socket, next) => {
  try {
    socket.data.user = jwt.verify(socket.handshake.auth.token, key, { algorithms: ["HS256"] });
    next();
  } catch {
    next(new Error("Invalid token"));
  }
});

const seqs = new Map();

io.on("connection", (socket) => {
  const { userId, name } = socket.data.user;

  socket.on("join-room", ({ roomId }, answer) => {
    socket.join(roomId);
    const seq = seqs.get(roomId) ?? 0;
    const place = { roomId, seq, lastReadSeq: 0, unreadCount: 0 };
    socket.emit("room-joined", { ...place, messages: [], hasMore: false });
    answer?.({ ok: true, ...place });
  });

  socket.on("send-message", ({ roomId, message, clientMsgId = null }, answer) => {
    const id = randomUUID();
    const createdAt = new Date().toISOString();
    const seq = (seqs.get(roomId) ?? 0) + 1;
    seqs.set(roomId, seq);
    io.to(roomId).emit("receive-message", {
      id,
      room_id: roomId,
      sender_id: userId,
      sender_name: name,
      sender_avatar: null,
      message,
      message_type: "text",
      file_url: null,
      file_name: null,
      file_size: null,
      is_read: false,
      created_at: createdAt,
      seq,
      clientMsgId,
    });
    answer?.({ ok: true, id, roomId, seq, createdAt });
  });

  socket.on("heartbeat", (_, answer) => {
    const timestamp = new Date().toISOString();
    socket.emit("heartbeat-ack", { timestamp });
    answer?.({ ok: true, timestamp });
  });
});

http.listen({ port: Number(PORT), host: HOST, backlog: 4096 }, () => {
  console.log(`ready on http://${HOST}:${http.address().port}`);
});
