/**
 * A client of the gateway: ask, read, stop. One file, no build, no dependency.
 *
 * A page needs none of it, `new EventSource(stream_url)` is enough. It adds what that cannot do: say
 * why a stream was closed, go on after a proxy's error or a laptop's sleep, read an answer in a loop,
 * go on with it after a reload, and share one connection among answers, channel and tabs.
 */

/** Of the whole page; to be set before anything is asked for. */
export declare const settings: {
  /** Where the gateway is, with a slash at its end: `/`, `/llm/`, or an origin and that. */
  gateway: string;
  /** Seconds between two signs of life, GATEWAY_HEARTBEAT; 2.5 of them in silence are a dead line. */
  heartbeat: number;
  /** Who is logged in: tabs of different users (or gateways) of one browser share no channel. */
  user: string;
  /** Names of the channel's named events, the same in all tabs. */
  events: string[];
};

export type State =
  | "cached" | "starting" | "streaming"
  | "done" | "cancelled" | "truncated" | "stalled" | "failed" | "interrupted" | "expired";

/** What was left of a user's limits, where there are any. */
export interface Left {
  posts?: number;
  tokens?: number;
}

export interface Tokens {
  prompt: number | null;
  completion: number | null;
  cached: number | null;
  estimated?: true;
}

/** Why an answer is not whole. */
export interface Failure {
  code: string;
  message: string;
  retryable: boolean;
  /** What the upstream answered. */
  status?: number;
  /** Seconds after which it may be asked again. */
  retry_after?: number;
}

/** The last event of a stream. */
export interface End {
  state: State;
  finish_reason: string | null;
  usage: Record<string, unknown> | null;
  tokens: Tokens | null;
  cost?: number | null;
  preset: string | null;
  presets?: string[];
  attempts: number;
}

export interface Completion extends End {
  text: string;
  last_event_id: string | null;
  failure?: Failure;
  ref?: string;
}

export interface Ticket {
  ticket: string;
  stream_url: string;
  expires_in: number;
  left: Left;
}

export interface Usage {
  days: Record<string, unknown>[];
  limits: Record<string, number>;
  remaining: Record<string, number>;
}

/** A refusal, or an answer that is not whole, which has a `state`. */
export declare class Refusal extends Error {
  constructor(problem: { code?: string; status?: number; state?: State; title?: string; detail?: string });
  /** Stable: of a refusal, of a failure, else the state; `begun_anew` where a text was void. */
  readonly code: string;
  /** Of the gateway's answer; of a failure the upstream's. */
  readonly status?: number;
  /** How the stream ended. */
  readonly state?: State;
  readonly reason?: string;
  readonly retryable?: boolean;
  readonly retry_after?: number;
}

/** Keep a completion request; nothing is paid for before its stream is opened. */
export declare function ask(
  body: object,
  url?: string | URL,
  more?: { headers?: Record<string, string>; signal?: AbortSignal },
): Promise<Ticket>;

/** What the user has spent today and has left. */
export declare function usage(url?: string | URL): Promise<Usage>;

/** Cancel a stream, for all who watch it. */
export declare function stop(streamUrl: string): Promise<{ state: State }>;

/** The answer so far. */
export declare function completion(streamUrl: string): Promise<Completion>;

/** What an event of chat completions adds to the text of the first choice. */
export declare function delta(data: string): string;

/** A connection, of which `close()` cancels nothing. */
export interface Line {
  close(): void;
  /** Where it is: to go on from. */
  readonly lastId: string;
}

interface Heard {
  /** Every event, as it came. */
  event?(name: string, data: string, id: string): void;
  /** Connected (again), after that event. */
  open?(id: string): void;
  /** Lost, and being retried. */
  lost?(id: string): void;
  /** Closed for good without `end`, and why. */
  closed?(refusal: Refusal): void;
}

export interface Follower extends Heard {
  /** Of chat completions; of any protocol where the URL ends in `&format=text`. */
  text?(piece: string): void;
  /** What there is of the text is void. */
  discard?(why: "reset" | "gap"): void;
  /** It went wrong; `end` follows. */
  failure?(failure: Failure): void;
  end?(end: End): void;
  /** With `&snapshot=1`: what there is already. */
  snapshot?(so: { text: string; finish_reason: string | null; state: State }): void;
}

/** `k` is the ticket's place in the list, from 0. */
export interface Followers extends Heard {
  text?(k: number, piece: string): void;
  discard?(k: number, why: "reset" | "gap"): void;
  failure?(k: number, failure: Failure): void;
  end?(k: number, end: End): void;
  snapshot?(k: number, so: { text: string; finish_reason: string | null; state: State }): void;
  /** Of the channel. */
  message?(data: string, name: string): void;
  /** Some of the channel's messages are not kept any more. */
  missed?(): void;
}

/** Follow a stream to its end, over a connection of its own; `also` names the upstream's events. */
export declare function follow(streamUrl: string | URL, on: Follower, also?: string[]): Line;

/**
 * Follow the streams of up to 32 tickets and the channel, over one connection that stays open.
 * `after` is a `lastId` to go on from, `also` names the channel's events.
 */
export declare function followAll(
  tickets: string[],
  on: Followers,
  options?: { url?: string | URL; after?: string; also?: string[] },
): Line;

/** Hear the channel. Tabs share one connection, of whichever tab leads; it takes turns when one dies. */
export declare function listen(on: {
  message?(data: string, name: string): void;
  /** Some messages are not kept any more: what the page shows may lack them. */
  missed?(): void;
  /** For good: `listen` again after the login. */
  closed?(refusal: Refusal): void;
}): { close(): void };

/**
 * One answer, for one loop: `for await (const piece of answer)`. The loop ends when the answer is
 * whole, and throws a Refusal when it is not. To leave the loop stops the answer, so it costs no more.
 */
export interface Answer extends AsyncIterable<string> {
  /** What the loop was given so far. */
  readonly text: string;
  /** How it ended, as soon as it has. */
  readonly end?: End;
}

export interface Reading {
  /** Stops the answer; the loop throws the signal's reason. */
  signal?: AbortSignal;
  /** Clears the page where the text so far is void; without it the loop throws `begun_anew`. */
  discard?(): void;
}

export interface Asking extends Reading {
  /** Of the tickets, as `/tickets/PRESET`. */
  url?: string | URL;
  /** A name under which a reload finds the answer again. */
  key?: string;
}

/** Read a stream's text, over the connection that the page's answers share. */
export declare function read(streamUrl: string, options?: Reading): Answer;

/**
 * Ask, and read the answer. With a `key` the same body is the same answer, paid once, also after a
 * reload, until it fails, is stopped or `forget(key)`; another body is another answer.
 */
export declare function complete(body: object, options?: Asking): Answer;

/** The answer that `complete` began under a key in this tab, from its start; null if there is none. */
export declare function resume(key: string, options?: Asking): Answer | null;

export declare function forget(key: string): void;
