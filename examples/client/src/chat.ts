// A chat in the terminal: npm start -- http://127.0.0.1:3001 algebra student
import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { ask, connect, type ChatMessage, RefusedError } from "./index.js";

const [url, room, user] = process.argv.slice(2);
if (!url || !room || !user) {
  console.error("npm start -- URL ROOM USER");
  process.exit(2);
}

/** `carillon dev` gives a token to anybody; elsewhere this is your backend's login. */
async function login(): Promise<string> {
  const response = await fetch(new URL("/dev/login", url), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user }),
  });
  if (!response.ok) throw new Error(`no token: ${response.status} ${response.statusText}`);
  const { token } = (await response.json()) as { token: string };
  return token;
}

const terminal = createInterface({ input: process.stdin, output: process.stdout, prompt: "> " });

/** Prints above the line that is being typed. */
function print(line: string): void {
  if (process.stdout.isTTY) process.stdout.write("\r\x1b[K");
  console.log(line);
  if (process.stdout.isTTY) terminal.prompt(true);
}

/** Sanitised HTML as text. A page shows it as it is; nothing here may move the cursor. */
function plain(html: string): string {
  return html
    .replace(/<br>|<\/p>/g, " ")
    .replace(/<[^>]*>/g, "")
    .replace(/&lt;/g, "<")
    .replace(/&gt;/g, ">")
    .replace(/&quot;/g, '"')
    .replace(/&nbsp;/g, " ")
    .replace(/&amp;/g, "&")
    .replace(/\p{Cc}/gu, " ");
}

/** The newest message on the screen; `seq` counts a room's messages without holes. */
let shown = 0;

function show(message: ChatMessage): void {
  if (message.room_id !== room || message.seq <= shown) return;
  if (shown > 0 && message.seq > shown + 1) {
    print(`-- ${message.seq - shown - 1} earlier messages are not shown`);
  }
  shown = message.seq;
  print(`${message.created_at.slice(11, 16)} ${plain(message.sender_name)}: ${plain(message.message)}`);
}

function complain(error: unknown): void {
  const code = error instanceof RefusedError ? ` (${error.code})` : "";
  print(`-- ${error instanceof Error ? error.message : String(error)}${code}`);
}

const socket = connect(url, login);

// Rooms belong to a connection: after a reconnect it is a new one and joins again.
socket.on("connect", () => {
  ask(socket, "join-room", { roomId: room }).catch(complain);
});
socket.on("disconnect", (reason) => print(`-- disconnected: ${reason}`));
socket.on("connect_error", (error) => {
  print(`-- not connected: ${error.message}`);
  // While it is active the client tries again by itself. A refusal is final.
  if (!socket.active) process.exit(1);
});

socket.on("room-joined", ({ roomId, messages, unreadCount }) => {
  if (roomId !== room) return;
  messages.forEach(show);
  print(`-- in ${room}, ${unreadCount} unread`);
  const newest = messages.at(-1);
  if (newest) socket.emit("mark-message-read", { messageId: newest.id });
});
socket.on("receive-message", (message) => {
  show(message);
  socket.emit("mark-message-read", { messageId: message.id });
});
socket.on("typing-indicator", ({ roomId, userName, isTyping }) => {
  if (roomId === room && isTyping) print(`-- ${plain(userName)} is typing`);
});
socket.on("user-joined-room", ({ userName }) => print(`-- ${plain(userName)} is here`));
socket.on("user-left-room", ({ userName }) => print(`-- ${plain(userName)} has left the room`));
socket.on("user-status-change", ({ userName, status }) => print(`-- ${plain(userName)} is ${status}`));
socket.on("error", ({ message, code }) => print(`-- ${message} (${code})`));

// The server forgets who types after 6 s, so it is told again before that.
let toldAt = 0;
process.stdin.on("keypress", () => {
  if (!socket.connected || Date.now() - toldAt < 3_000) return;
  toldAt = Date.now();
  socket.emit("typing-indicator", { roomId: room, isTyping: true });
});

terminal.on("line", (line) => {
  const message = line.trim();
  terminal.prompt();
  if (message === "") return;
  toldAt = 0;
  // The key makes a message that is sent twice one message.
  ask(socket, "send-message", { roomId: room, message, clientMsgId: randomUUID() }).catch(complain);
});
terminal.on("close", () => {
  ask(socket, "leave-room", { roomId: room }, 1_000)
    .catch(() => undefined)
    .finally(() => socket.disconnect());
});
terminal.prompt();
