/**
 * Token bytes → pieces of text that are certain.
 *
 * Held back: bytes of a character that is not complete (tokens cut UTF-8 anywhere), and the end of the text while it
 * may begin a stop string. Whatever the cuts, the pieces together are the decoded text up to the first stop string,
 * and each token is listed once, with the piece that brings its first character.
 */

import { internalError } from "../errors.ts";
import { StopMatcher } from "./stop-strings.ts";

/** One generated token. `L`: what the caller attaches to a token, such as its log-probabilities. */
export interface StreamToken<L = undefined> {
  readonly id: number;
  /** Its text in UTF-8; any part of a character, and empty for tokens that are not shown. */
  readonly bytes: Uint8Array;
  readonly attached: L;
}

/** Text that will not change any more, and the tokens that begin in it. */
export interface TextPiece<L = undefined> {
  readonly text: string;
  readonly tokens: readonly StreamToken<L>[];
}

/** Turns the tokens of one answer into text. */
export class TextStream<L = undefined> {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #matcher: StopMatcher;
  /** Decoded text that is not certain yet. */
  #held = "";
  /** Length of the text that was returned; `#held` follows it. */
  #nReturned = 0;
  /** Tokens that begin after the returned text, with the text length at which they begin. */
  #waiting: { token: StreamToken<L>; from: number }[] = [];
  #stop: string | undefined;

  /** Throws `invalid-option` for unusable stop strings. */
  constructor(stops: readonly string[]) {
    this.#matcher = new StopMatcher(stops);
  }

  /** The stop string that ended the text, if one did. Nothing may be pushed afterwards. */
  get stop(): string | undefined {
    return this.#stop;
  }

  /** Adds a token; returns what became certain, or undefined if nothing did. */
  push(token: StreamToken<L>): TextPiece<L> | undefined {
    if (this.#stop !== undefined) throw internalError("a token was pushed after the stop string");
    this.#waiting.push({ token, from: this.#nReturned + this.#held.length });
    this.#scan(this.#decoder.decode(token.bytes, { stream: true }));
    return this.#release(
      this.#stop === undefined ? this.#held.length - this.#matcher.held : this.#held.length,
    );
  }

  /** Ends the text: returns what was held back. An incomplete character becomes U+FFFD. */
  end(): TextPiece<L> | undefined {
    if (this.#stop !== undefined) return undefined;
    this.#scan(this.#decoder.decode());
    if (this.#stop !== undefined) return this.#release(this.#held.length);
    const rest = this.#waiting.map(({ token }) => token);
    this.#waiting = [];
    const text = this.#held;
    this.#held = "";
    return text === "" && rest.length === 0 ? undefined : { text, tokens: rest };
  }

  /** Appends text to `#held`, which a stop string cuts off. */
  #scan(text: string): void {
    const before = this.#held.length;
    this.#held += text;
    const match = this.#matcher.scan(text);
    if (!match) return;
    this.#stop = match.stop;
    this.#held = this.#held.slice(0, before + match.end - match.stop.length);
  }

  /** Returns the first `n` units of `#held` and the tokens that begin in them. */
  #release(n: number): TextPiece<L> | undefined {
    if (n === 0) return undefined;
    const text = this.#held.slice(0, n);
    this.#held = this.#held.slice(n);
    this.#nReturned += n;
    const split = this.#waiting.findIndex(({ from }) => from >= this.#nReturned);
    const tokens = this.#waiting.splice(0, split < 0 ? this.#waiting.length : split);
    return { text, tokens: tokens.map(({ token }) => token) };
  }
}
