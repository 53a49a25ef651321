// A flood, in a process of its own: `node flood.mjs PORT COUNT` keeps so many connections that
// shake hands and say nothing, and opens another one for each that is closed. Prints every 100 ms
// how many handshakes there have been.
import net from "node:net";

const [port, count] = process.argv.slice(2).map(Number);
const HANDSHAKE = [
  "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1", "host: 127.0.0.1", "connection: Upgrade",
  "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", "", "",
].join("\r\n");
let handshakes = 0;

function open() {
  const socket = net.connect(port, "127.0.0.1", () => socket.write(HANDSHAKE));
  socket.once("data", () => (handshakes += 1));
  socket.on("error", () => {});
  socket.on("close", () => setTimeout(open, 20));
  socket.resume();
}

for (let index = 0; index < count; index += 1) setTimeout(open, index / 3);
setInterval(() => console.log(handshakes), 100);
