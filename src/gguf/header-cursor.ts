/**
 * Walks the header of a GGUF file while its bytes arrive.
 *
 * The header is collected into one growing buffer. The buffer grows with the bytes received, never with what
 * the file claims, and every claim is held against a limit and the file's size before it is followed.
 */

import { type ErrorDetails, InlayError } from "../errors.ts";
import type { ByteReader } from "./byte-reader.ts";
import { StringArray } from "./string-array.ts";

/** A header larger than this is not a language model's: the largest vocabularies take some 20 MB. */
export const MAX_HEADER_BYTES = 256 << 20;

/** Keys, tensor names and values alike: a limit against nonsense lengths, far above real ones. */
export const MAX_STRING_BYTES = 16 << 20;

export class HeaderCursor {
  /** [0, #end) is filled; [#position, #end) is not yet consumed. */
  #buffer: Uint8Array = new Uint8Array(0);
  #view = new DataView(this.#buffer.buffer);
  #end = 0;
  #position = 0;

  constructor(private readonly reader: ByteReader) {}

  /** For messages. */
  get fileName(): string {
    return this.reader.source.name;
  }

  /** Size of the file, when known. */
  get fileSize(): number | undefined {
    return this.reader.source.size;
  }

  /** Bytes consumed. */
  get position(): number {
    return this.#position;
  }

  /** An `invalid-model` that names the file and the place. */
  invalid(message: string, details: ErrorDetails = {}, options?: ErrorOptions): InlayError {
    const place = { byte: this.#position, ...details };
    return new InlayError("invalid-model", `${this.fileName}: ${clipped(message)}`, place, options);
  }

  /** Makes the next `n` bytes available; fails at once when the file, or a header, cannot have them. */
  async need(n: number, what: string): Promise<void> {
    const end = this.#position + n;
    if (end <= this.#end) return;
    const size = this.fileSize;
    if (size !== undefined && end > size) throw this.#truncated(what, end, size);
    if (end > MAX_HEADER_BYTES) {
      throw this.invalid(`${what} reaches to byte ${end}; a header may have ${MAX_HEADER_BYTES} bytes`);
    }
    while (this.#end < end) {
      const chunk = await this.reader.next();
      if (!chunk) throw this.#truncated(what, end, this.#end);
      this.#append(chunk);
    }
  }

  /** The first bytes of the file without consuming them: as many of `n` as the file has. */
  async peekStart(n: number): Promise<Uint8Array> {
    while (this.#end < n) {
      const chunk = await this.reader.next();
      if (!chunk) break;
      this.#append(chunk);
    }
    return this.#buffer.subarray(0, Math.min(n, this.#end));
  }

  async u32(what: string): Promise<number> {
    await this.need(4, what);
    this.#position += 4;
    return this.#view.getUint32(this.#position - 4, true);
  }

  async u64(what: string): Promise<bigint> {
    await this.need(8, what);
    this.#position += 8;
    return this.#view.getBigUint64(this.#position - 8, true);
  }

  /** A u64 that must not exceed `limit`. */
  async count(what: string, limit: number): Promise<number> {
    const value = await this.u64(what);
    if (value > BigInt(limit)) {
      throw this.invalid(`${what} is ${value}, the limit is ${limit}; the file is damaged`, {
        found: value,
        limit,
      });
    }
    return Number(value);
  }

  /** The next `n` bytes, as a copy that starts at an address of its own. */
  async bytes(n: number, what: string): Promise<ArrayBuffer> {
    await this.need(n, what);
    this.#position += n;
    return this.#buffer.slice(this.#position - n, this.#position).buffer as ArrayBuffer;
  }

  /** A u64 length and that many bytes of UTF-8. `isStrict` refuses bytes that are not UTF-8. */
  async string(what: string, maxBytes = MAX_STRING_BYTES, isStrict = false): Promise<string> {
    const length = await this.count(`the length of ${what}`, maxBytes);
    await this.need(length, what);
    const raw = this.#buffer.subarray(this.#position, this.#position + length);
    try {
      const text = (isStrict ? STRICT_UTF8 : LENIENT_UTF8).decode(raw);
      this.#position += length;
      return text;
    } catch (cause) {
      const hex = Array.from(raw.subarray(0, 16), (b) => b.toString(16).padStart(2, "0")).join(" ");
      throw this.invalid(`${what} is not UTF-8 (bytes ${hex}${length > 16 ? " …" : ""})`, {}, { cause });
    }
  }

  /** The next `count` strings undecoded, as a copy; only their lengths are looked at. */
  async strings(count: number, what: string): Promise<StringArray> {
    const start = this.#position;
    for (let i = 0; i < count; i++) {
      if (this.#end - this.#position < 8) await this.need(8, what);
      const low = this.#view.getUint32(this.#position, true);
      const high = this.#view.getUint32(this.#position + 4, true);
      if (high !== 0 || low > MAX_STRING_BYTES) {
        const length = (BigInt(high) << 32n) | BigInt(low);
        throw this.invalid(`string ${i} of ${what} has ${length} bytes, the limit is ${MAX_STRING_BYTES}`);
      }
      if (this.#end - this.#position < 8 + low) await this.need(8 + low, what);
      this.#position += 8 + low;
    }
    return new StringArray(count, this.#buffer.slice(start, this.#position));
  }

  /** Ends the walk: a copy of the header's bytes, while everything behind them goes back to the reader. */
  finish(): Uint8Array {
    this.reader.unread(this.#buffer.subarray(this.#position, this.#end));
    return this.#buffer.slice(0, this.#position);
  }

  #append(chunk: Uint8Array): void {
    const end = this.#end + chunk.byteLength;
    if (this.#end === 0) {
      // The common case of a file in memory, or a first chunk that has it all: no copy.
      this.#use(chunk);
    } else if (end > this.#buffer.byteLength) {
      const larger = new Uint8Array(end * 2);
      larger.set(this.#buffer.subarray(0, this.#end));
      this.#use(larger);
      larger.set(chunk, this.#end);
    } else {
      this.#buffer.set(chunk, this.#end);
    }
    this.#end = end;
  }

  #use({ buffer, byteOffset, byteLength }: Uint8Array): void {
    // A plain Uint8Array even when the chunk is a Node Buffer, whose slice() does not copy.
    this.#buffer = new Uint8Array(buffer, byteOffset, byteLength);
    this.#view = new DataView(buffer, byteOffset, byteLength);
  }

  #truncated(what: string, expected: number, size: number): InlayError {
    return this.invalid(
      `the file has ${size} bytes, but ${clipped(what)} reaches to byte ${expected}; the download is incomplete`,
      { expected, size },
    );
  }
}

/** Names come from the file and may be 64 kB of nonsense. */
function clipped(text: string): string {
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

const STRICT_UTF8 = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });
const LENIENT_UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });
