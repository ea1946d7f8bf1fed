/** Token ids to text, as they come. */

import type { DecodeOptions, Tokenizer } from "./tokenizer.ts";

export interface DetokenizerOptions extends DecodeOptions {
  /**
   * The tokens are the start of a text, so that the space which encoding puts before it is dropped. Leave it off for
   * tokens that continue a prompt. @default false
   */
  readonly atStart?: boolean;
}

const SPACE = 0x20;

/**
 * Turns tokens into text piece by piece without ever splitting a character: bytes are held back until their character
 * is complete, and what is not UTF-8 becomes U+FFFD as in TextDecoder. The pieces together are the text of
 * {@link Tokenizer.decode}.
 */
export class Detokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #options: DecodeOptions;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  #dropsSpace: boolean;

  constructor(tokenizer: Tokenizer, options: DetokenizerOptions) {
    this.#tokenizer = tokenizer;
    this.#options = options;
    this.#dropsSpace = (options.atStart ?? false) && tokenizer.addSpacePrefix;
  }

  /** The characters that `id` completes; often a word, sometimes nothing. Throws `invalid-option` for an unknown id. */
  push(id: number): string {
    return this.#print(this.#tokenizer.tokenBytes(id, this.#options));
  }

  /** The characters that several tokens complete. */
  pushAll(ids: ArrayLike<number>): string {
    return this.#print(this.#tokenizer.tokenBytes(ids, this.#options));
  }

  /** U+FFFD when a character was left incomplete, else nothing. The decoder can be used again afterwards. */
  flush(): string {
    return this.#utf8.decode();
  }

  #print(bytes: Uint8Array<ArrayBuffer>): string {
    if (bytes.length === 0) return "";
    const skipped = this.#dropsSpace && bytes[0] === SPACE ? 1 : 0;
    this.#dropsSpace = false;
    return this.#utf8.decode(bytes.subarray(skipped), { stream: true });
  }
}
