// A network that can be made worse: a TCP proxy that delays, narrows, slices, stalls and resets what
// goes through it, without help from the kernel.
import { once } from "node:events";
import net from "node:net";
import { pause } from "./harness.mjs";

/** How much of one direction may be under way; then the sender is held up, as by a full window. */
const WINDOW = 1 << 20;
/** Told to who leaves, at the place in the order where it happened. */
const END = Symbol("end");

/** Ends a socket with a reset. One that is ending already would stay for ever: Node 20 cannot exit then. */
function cuts(socket) {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}

/** One direction of one link. */
class Pipe {
  #waiting = [];
  #bytes = 0;
  #isMoving = false;
  #ends;
  /** All that came has been passed on, and that nothing more comes; or it cannot be any more. */
  ended = new Promise((resolve) => { this.#ends = resolve; });

  constructor(proxy, from, to) {
    Object.assign(this, { proxy, from, to });
    from.on("data", (data) => this.#takes(data));
    from.on("end", () => this.#takes(END));
  }

  #takes(what) {
    this.#waiting.push({ what, due: Date.now() + this.proxy.latencyMs });
    this.#bytes += what === END ? 0 : what.length;
    if (this.#bytes > WINDOW) this.from.pause();
    this.#moves();
  }

  async #moves() {
    if (this.#isMoving) return;
    this.#isMoving = true;
    while (this.#waiting.length > 0) {
      const { what, due } = this.#waiting[0];
      const early = due - Date.now();
      if (early > 0) await pause(early);
      await this.proxy.opened;
      if (this.to.destroyed) return this.#ends();
      this.#waiting.shift();
      if (what !== END) await this.#writes(what);
      else {
        this.to.end();
        this.#ends();
      }
    }
    this.#isMoving = false;
  }

  async #writes(data) {
    const { sliceBytes, bytesPerSecond } = this.proxy;
    // What is narrow comes in small portions, twenty a second.
    const most = Math.min(sliceBytes || Infinity, bytesPerSecond ? Math.max(1, Math.ceil(bytesPerSecond / 20)) : Infinity);
    for (let at = 0; at < data.length && !this.to.destroyed; at += most) {
      const part = most === Infinity ? data : data.subarray(at, at + most);
      await this.proxy.opened;
      this.proxy.bytes += part.length;
      const isTaken = this.to.write(part);
      // A turn of the loop of its own, so that each slice is a segment.
      if (sliceBytes) await new Promise(setImmediate);
      if (bytesPerSecond) await pause((part.length / bytesPerSecond) * 1000);
      if (!isTaken && !this.to.destroyed) await Promise.race([once(this.to, "drain"), once(this.to, "close")]).catch(() => {});
      if (most === Infinity) break;
    }
    this.#bytes -= data.length;
    if (this.#bytes <= WINDOW) this.from.resume();
  }
}

/**
 * Listens on a port of its own and passes everything on to `target`, a port on this machine. What it
 * does to the bytes may be changed at any time, for links that are there, too:
 *
 * - `latencyMs`: each byte arrives that much later, in each direction;
 * - `bytesPerSecond`: no more than that on each link, in each direction;
 * - `sliceBytes`: no more than that at once;
 * - `hole()`, `fill()`: nothing arrives, not even that somebody has left; then all of it;
 * - `reset()`: every link ends with a reset; `refuse()`: new ones, too, until `accept()`;
 * - `target`: where new links lead.
 */
export class FaultProxy {
  latencyMs = 0;
  bytesPerSecond = 0;
  sliceBytes = 0;
  /** What has gone through. */
  bytes = 0;
  /** Links there ever were. */
  accepted = 0;
  opened = undefined;
  #open = undefined;
  #isRefusing = false;
  #links = new Set();
  /** Either side of every link, also of those that have parted on one side only. */
  #sockets = new Set();

  static async before(target) {
    const proxy = new FaultProxy();
    proxy.target = target;
    proxy.server = net.createServer({ allowHalfOpen: true, noDelay: true }, (socket) => proxy.#connects(socket));
    proxy.server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 });
    await once(proxy.server, "listening");
    proxy.port = proxy.server.address().port;
    return proxy;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** The links that are there now. */
  get links() {
    return this.#links.size;
  }

  async #connects(near) {
    this.accepted += 1;
    this.#remembers(near);
    near.on("error", () => {});
    if (this.#isRefusing) return cuts(near);
    // The other side is not reached through a hole.
    const link = { near };
    this.#links.add(link);
    near.on("close", () => this.#parts(link, near, link.out, link.far));
    await this.opened;
    if (near.destroyed) return undefined;
    const far = net.connect({ port: this.target, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
    link.far = far;
    this.#remembers(far);
    far.on("error", () => {});
    link.out = new Pipe(this, near, far);
    link.back = new Pipe(this, far, near);
    far.on("close", () => this.#parts(link, far, link.back, near));
    return undefined;
  }

  #remembers(socket) {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
  }

  /** A side that has gone takes the other one along, once that can be heard. */
  async #parts(link, gone, pipe, other) {
    await this.opened;
    if (this.latencyMs) await pause(this.latencyMs);
    this.#links.delete(link);
    if (!other || other.destroyed) return;
    // Without an orderly end, it was cut.
    if (!gone.readableEnded) return cuts(other);
    await pipe.ended;
    other.destroySoon();
  }

  hole() {
    this.opened ??= new Promise((resolve) => { this.#open = resolve; });
  }

  fill() {
    this.#open?.();
    this.opened = undefined;
  }

  reset() {
    for (const { near, far } of this.#links) {
      cuts(near);
      if (far) cuts(far);
    }
    this.#links.clear();
  }

  refuse() {
    this.#isRefusing = true;
    this.reset();
  }

  accept() {
    this.#isRefusing = false;
  }

  /** As it was in the beginning. */
  mend() {
    Object.assign(this, { latencyMs: 0, bytesPerSecond: 0, sliceBytes: 0 });
    this.accept();
    this.fill();
  }

  dispose() {
    this.fill();
    this.reset();
    for (const socket of this.#sockets) socket.destroy();
    this.server.close();
  }
}
