import type { Asking, Refusal, State } from "./gateway.js";

export interface Shown {
  text: string;
  /** `idle` before the first question, `asking` until the first piece. */
  state: "idle" | "asking" | State;
  error: Refusal | Error | null;
  /** Ask; what was being written is stopped. Never rejects. */
  ask(body: object): Promise<void>;
  /** Stop it, so that it costs no more. */
  stop(): void;
}

/**
 * One answer of a component. Without a `key` it is stopped when the component goes; with one it goes
 * on, and the next component with that key, or the next load of the page, has it again.
 */
export declare function useCompletion(options?: Omit<Asking, "signal">): Shown;
