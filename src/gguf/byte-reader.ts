/** One sequential pass over a source: chunks, with push-back and skipping. */

import { InlayError } from "../errors.ts";
import type { ByteSource } from "./source.ts";

/** Reads a source front to back. Every call rejects with `signal.reason` once the signal is aborted. */
export class ByteReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #pushedBack: Uint8Array | undefined;
  #position: number;

  constructor(
    readonly source: ByteSource,
    offset = 0,
    signal?: AbortSignal,
  ) {
    this.#chunks = source.open(offset, signal)[Symbol.asyncIterator]();
    this.#position = offset;
  }

  /** Offset in the file of the next byte. */
  get position(): number {
    return this.#position;
  }

  /** The next bytes, at least one; undefined at the end of the file. */
  async next(): Promise<Uint8Array | undefined> {
    const chunk = this.#pushedBack ?? (await this.#chunks.next()).value;
    this.#pushedBack = undefined;
    this.#position += chunk?.byteLength ?? 0;
    return chunk;
  }

  /** Gives back the tail of what `next` returned: it is returned again. */
  unread(bytes: Uint8Array): void {
    this.#position -= bytes.byteLength;
    this.#pushedBack = bytes.byteLength > 0 ? bytes : undefined;
  }

  /** Drops the bytes before `offset`, which must not lie behind the position. */
  async skipTo(offset: number, what: string): Promise<void> {
    for await (const _ of this.take(offset - this.#position, what));
  }

  /** Exactly the next `length` bytes, in chunks. Throws `invalid-model` when the file ends before: `what` is cut off. */
  async *take(length: number, what: string): AsyncGenerator<Uint8Array> {
    const end = this.#position + length;
    while (this.#position < end) {
      const left = end - this.#position;
      const chunk = await this.next();
      if (!chunk) {
        throw new InlayError(
          "invalid-model",
          `${this.source.name}: the file ends at byte ${this.#position}, but ${what} reaches to byte ${end}; ` +
            "the download is incomplete",
          { byte: this.#position, expected: end },
        );
      }
      if (chunk.byteLength > left) this.unread(chunk.subarray(left));
      yield chunk.subarray(0, left);
    }
  }

  /** Releases the source. */
  async close(): Promise<void> {
    await this.#chunks.return?.();
  }
}
