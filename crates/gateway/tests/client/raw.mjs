// A client without manners: packets as they are on the wire, over a WebSocket or by polling.
import { WebSocket } from "ws";
import { token, within } from "./harness.mjs";

const QUERY = "/socket.io/?EIO=4&transport=";
/** Between two packets of one polling body. */
const SEPARATOR = "\u001e";

/** One WebSocket; answers pings unless it is `mute`. */
export class Raw {
  #waiting = [];

  constructor(ws, { mute = false } = {}) {
    this.ws = ws;
    /** Frames nobody has asked for yet. */
    this.frames = [];
    /** Every frame there ever was. */
    this.wire = [];
    ws.on("message", (data, isBinary) => {
      const frame = isBinary ? data : data.toString();
      this.wire.push(frame);
      if (frame === "2") {
        if (!mute) ws.send("3");
        return;
      }
      this.frames.push(frame);
      this.#settle();
    });
    this.closed = new Promise((resolve) => {
      ws.on("close", (code) => resolve({ code }));
    });
    ws.on("error", () => {});
  }

  static async open(server, { headers, ...options } = {}) {
    const ws = new WebSocket(server.url.replace("http", "ws") + QUERY + "websocket", { headers });
    const raw = new Raw(ws, options);
    const refusal = new Promise((_, reject) => {
      ws.on("unexpected-response", (request, response) => {
        request.destroy();
        reject(new Error(`HTTP ${response.statusCode}`));
      });
    });
    raw.handshake = JSON.parse((await Promise.race([raw.next("0"), refusal])).slice(1));
    return raw;
  }

  /** Opens and enters a namespace. */
  static async connect(server, token, options = {}) {
    const raw = await Raw.open(server, options);
    await raw.enter(token);
    return raw;
  }

  async enter(token, namespace = "") {
    const prefix = namespace && `${namespace},`;
    this.send(`40${prefix}${JSON.stringify({ token })}`);
    return JSON.parse((await this.next(`40${prefix}`)).slice(2 + prefix.length));
  }

  #settle() {
    this.#waiting = this.#waiting.filter(({ start, resolve }) => {
      const index = this.frames.findIndex((frame) => String(frame).startsWith(start));
      if (index < 0) return true;
      resolve(this.frames.splice(index, 1)[0]);
      return false;
    });
  }

  /** The next frame that starts so. */
  next(start, ms = 5000) {
    const frame = new Promise((resolve) => {
      this.#waiting.push({ start, resolve });
      this.#settle();
    });
    return within(ms, `a frame ${start}…`, frame);
  }

  send(...frames) {
    for (const frame of frames) this.ws.send(frame);
  }

  /** Emits with an acknowledgement id, and waits for the answer. */
  async asks(id, ...args) {
    this.send(`42${id}${JSON.stringify(args)}`);
    return JSON.parse((await this.next(`43${id}[`)).slice(`43${id}`.length))[0];
  }

  close() {
    this.ws.terminate();
  }
}

/** One polling session; answers pings as long as it is polled. */
export class Polling {
  static async open(server, token, headers = {}) {
    const polling = new Polling();
    polling.url = `${server.url}${QUERY}polling`;
    const response = await fetch(polling.url, { headers });
    polling.handshake = JSON.parse((await response.text()).slice(1));
    polling.url += `&sid=${polling.handshake.sid}`;
    await polling.post(`40${JSON.stringify({ token })}`);
    polling.connected = (await polling.until("40")).at(-1);
    return polling;
  }

  post(...packets) {
    return fetch(this.url, { method: "POST", body: packets.join(SEPARATOR) });
  }

  async poll() {
    const response = await fetch(this.url);
    const body = await response.text();
    if (!response.ok) throw new Error(`HTTP ${response.status}: ${body}`);
    const packets = body.split(SEPARATOR);
    if (packets.includes("2")) await this.post("3");
    return packets.filter((packet) => packet !== "2");
  }

  /** Polls until there is a packet that starts so; all packets up to then. */
  async until(start, ms = 5000) {
    const packets = [];
    while (!packets.some((packet) => packet.startsWith(start))) {
      packets.push(...(await within(ms, `a packet ${start}…`, this.poll())));
    }
    return packets;
  }
}

/** A socket by hand: what a client sends and gets on CONNECT. */
export async function enters(server, user, auth = {}, path = "") {
  const raw = await Raw.open(server);
  raw.send(`40${path}${JSON.stringify({ token: token(user), ...auth })}`);
  const reply = await raw.next(`40${path}`);
  return { raw, ...JSON.parse(reply.slice(2 + path.length)) };
}
