import { useCallback, useEffect, useRef, useState } from "react";
import { complete, forget, resume } from "./gateway.js";

const NOTHING = { text: "", state: "idle", error: null };

/** One answer of a component: `{text, state, error, ask, stop}`; react.d.ts tells the rest. */
export function useCompletion(options = {}) {
  const { key } = options;
  const [shown, show] = useState(NOTHING);
  const latest = useRef(options);
  const life = useRef(null);
  const of = useRef(key);
  latest.current = options;

  const read = useCallback(async (begin) => {
    life.current?.abort();
    const mine = (life.current = new AbortController());
    const tell = (told) => life.current === mine && show((last) => ({ ...last, ...told }));
    const answer = begin({ discard() {}, ...latest.current, signal: mine.signal });
    if (!answer) return;
    tell({ text: "", state: "asking", error: null });
    try {
      for await (const _ of answer) tell({ text: answer.text, state: "streaming" });
      tell({ state: "done" });
    } catch (error) {
      if (mine.signal.aborted) tell({ state: "cancelled" });
      else tell({ state: error.state ?? "failed", error });
    }
  }, []);

  useEffect(() => {
    // With a key it goes on without the component, and is there again for the next one.
    if (!key) return () => life.current?.abort();
    if (of.current !== key) {
      of.current = key;
      life.current = null; // What the other key names goes on, and is not shown as this one's.
      show(NOTHING);
    }
    if (!life.current) read((reading) => resume(key, reading));
  }, [key, read]);

  const stop = useCallback(() => life.current?.abort(), []);
  const ask = useCallback((body) => {
    stop();
    forget(latest.current.key); // To ask the same again is to want another answer.
    return read((asking) => complete(body, asking));
  }, [read, stop]);
  return { ...shown, ask, stop };
}
