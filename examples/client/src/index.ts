// A socket whose events the compiler knows. The types come from the server's own tables
// (events.gen.ts), so a name or a key that the server does not have is an error here.
import { io, type ManagerOptions, type Socket, type SocketOptions } from "socket.io-client";
import type { ClientToServerEvents, Refused, ServerToClientEvents } from "./events.gen.js";

export type * from "./events.gen.js";

export type CarillonSocket = Socket<ServerToClientEvents, ClientToServerEvents>;

/** Where a token comes from: a text, or whatever fetches a fresh one for every attempt. */
export type TokenSource = string | (() => string | Promise<string>);

/**
 * Connects. With a function as `token`, every reconnect asks for a new one, so that no
 * connection ends because a token was captured when the page was loaded.
 */
export function connect(
  url: string,
  token: TokenSource,
  options: Partial<ManagerOptions & SocketOptions> = {},
): CarillonSocket {
  const current = typeof token === "string" ? () => token : token;
  return io(url, {
    // Without the upgrade there is no polling request for a load balancer to misroute.
    transports: ["websocket"],
    ...options,
    auth: (answer) => {
      // Without a token the server says why it refuses, and `connect_error` tells.
      Promise.resolve()
        .then(current)
        .then((value) => answer({ token: value }), () => answer({}));
    },
  });
}

/** What the server answers with `ok: false`, as an error to throw. */
export class RefusedError extends Error {
  override readonly name = "RefusedError";
  readonly code: Refused["code"];
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;

  constructor(refused: Refused) {
    super(refused.message);
    this.code = refused.code;
    this.retryable = refused.retryable;
    this.retryAfterMs = refused.retryAfterMs ?? undefined;
  }
}

export type Command = keyof ClientToServerEvents;
export type Payload<Name extends Command> = NonNullable<Parameters<ClientToServerEvents[Name]>[0]>;
type Answer<Name extends Command> = Parameters<
  NonNullable<Parameters<ClientToServerEvents[Name]>[1]>
>[0];
/** What a command is answered with when it went well. */
export type Accepted<Name extends Command> = Extract<Answer<Name>, { ok: true }>;

/**
 * Sends a command and waits for the acknowledgement: what it changed is then committed. Rejects
 * with a `RefusedError`, or with socket.io's own error when there is no answer in time; a message
 * with a `clientMsgId` can then be sent again without becoming two.
 */
export function ask<Name extends Command>(
  socket: CarillonSocket,
  name: Name,
  payload: Payload<Name>,
  timeoutMs = 10_000,
): Promise<Accepted<Name>> {
  // socket.io's types cannot follow a name that is a type parameter; ours above do.
  const untyped = socket as unknown as Socket;
  return new Promise((resolve, reject) => {
    untyped
      .timeout(timeoutMs)
      .emit(name, payload, (late: Error | null, reply: Accepted<Name> | ({ ok: false } & Refused)) => {
        if (late) reject(late);
        else if (reply.ok) resolve(reply);
        else reject(new RefusedError(reply));
      });
  });
}
