/**
 * Finds stop strings in text that arrives in pieces, in time linear in the text.
 *
 * An Aho-Corasick automaton (Aho & Corasick 1975, CACM 18(6)) over UTF-16 units: its state is the longest end of
 * the text that begins some stop string, so the state's depth is exactly how much text must be held back.
 *
 * The match that is complete first wins; of several that end at the same place, the longest. So the result does
 * not depend on how the text was cut into pieces: with stops "abcd" and "bc", the text "abcd" stops before "bc".
 */

import { InlayError } from "../errors.ts";

/** OpenAI allows 4. */
export const MAX_STOP_STRINGS = 16;
/** Longest stop string, in UTF-16 units. */
export const MAX_STOP_LENGTH = 256;

/** Throws `invalid-option` unless there are at most 16 stop strings of 1 to 256 characters of well-formed text. */
export function assertStopStrings(stops: readonly string[]): void {
  const refuse = (found: string, details: object) => {
    throw new InlayError("invalid-option", `stop: ${found}`, { option: "stop", ...details });
  };
  if (stops.length > MAX_STOP_STRINGS)
    refuse(`${stops.length} strings given, at most ${MAX_STOP_STRINGS} are allowed`, { given: stops.length });
  for (const [index, stop] of stops.entries()) {
    if (stop === "") refuse(`string ${index} is empty, and would match everywhere`, { index });
    if (stop.length > MAX_STOP_LENGTH)
      refuse(`string ${index} has ${stop.length} characters, at most ${MAX_STOP_LENGTH} are allowed`, {
        index,
      });
    if (/\p{Surrogate}/u.test(stop)) refuse(`string ${index} contains half a surrogate pair`, { index });
  }
}

/** A match: which stop string, and how many units of the text scanned last it ends after. */
export interface StopMatch {
  readonly stop: string;
  /** Units of the scanned piece up to the end of the match. */
  readonly end: number;
}

/** Scans one text for the first occurrence of any of the stop strings. */
export class StopMatcher {
  readonly #next: Map<number, number>[] = [new Map()];
  /** The state of the longest proper end of this state's text that is a state too. */
  readonly #fail: number[] = [0];
  readonly #depth: number[] = [0];
  /** The longest stop string that this state's text ends with. */
  readonly #stop: (string | undefined)[] = [undefined];
  #state = 0;

  /** Throws `invalid-option`; see `assertStopStrings`. */
  constructor(stops: readonly string[]) {
    assertStopStrings(stops);
    for (const stop of stops) this.#insert(stop);
    this.#link();
  }

  /** Length of the end of the text so far that may turn out to begin a stop string. */
  get held(): number {
    return this.#depth[this.#state]!;
  }

  /** Continues with `text` and returns the first match, if there is one. After a match, nothing more may be scanned. */
  scan(text: string): StopMatch | undefined {
    for (let i = 0; i < text.length; i++) {
      this.#state = this.#step(this.#state, text.charCodeAt(i));
      const stop = this.#stop[this.#state];
      if (stop !== undefined) return { stop, end: i + 1 };
    }
    return undefined;
  }

  #step(from: number, unit: number): number {
    for (let state = from; ; state = this.#fail[state]!) {
      const next = this.#next[state]!.get(unit);
      if (next !== undefined) return next;
      if (state === 0) return 0;
    }
  }

  #insert(stop: string): void {
    let state = 0;
    for (let i = 0; i < stop.length; i++) {
      const unit = stop.charCodeAt(i);
      let next = this.#next[state]!.get(unit);
      if (next === undefined) {
        next = this.#next.length;
        this.#next.push(new Map());
        this.#fail.push(0);
        this.#depth.push(i + 1);
        this.#stop.push(undefined);
        this.#next[state]!.set(unit, next);
      }
      state = next;
    }
    this.#stop[state] = stop;
  }

  /** Failure links, breadth first: those of shallower states are known when deeper ones need them. */
  #link(): void {
    const queue = [...this.#next[0]!.values()];
    for (const state of queue) {
      this.#stop[state] ??= this.#stop[this.#fail[state]!];
      for (const [unit, child] of this.#next[state]!) {
        this.#fail[child] = this.#step(this.#fail[state]!, unit);
        queue.push(child);
      }
    }
  }
}
