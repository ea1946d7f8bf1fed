/**
 * A large array of strings kept as the file has it: token texts and merges.
 *
 * A vocabulary has some 300,000 strings. They go to the tokenizer as bytes, and JavaScript looks at few of them,
 * so nothing is decoded until asked for.
 */

/** `ignoreBOM` keeps U+FEFF, which is a token of its own in many vocabularies. */
const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** `count` strings, each a u64 LE length followed by UTF-8 bytes, back to back. Lengths are already checked. */
export class StringArray {
  #offsets: Uint32Array | undefined;

  constructor(
    readonly count: number,
    readonly bytes: Uint8Array,
  ) {}

  /** String `i`; bytes that are not UTF-8 become U+FFFD. */
  at(i: number): string | undefined {
    const raw = this.bytesAt(i);
    return raw && UTF8.decode(raw);
  }

  /** The UTF-8 bytes of string `i`. */
  bytesAt(i: number): Uint8Array | undefined {
    if (!(i >= 0 && i < this.count)) return undefined;
    this.#offsets ??= this.#findOffsets();
    return this.bytes.subarray(this.#offsets[i]! + 8, this.#offsets[i + 1]);
  }

  *[Symbol.iterator](): IterableIterator<string> {
    for (let i = 0; i < this.count; i++) yield UTF8.decode(this.bytesAt(i));
  }

  /** Where each string's length stands; the last entry is the end. */
  #findOffsets(): Uint32Array {
    const view = new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.byteLength);
    const offsets = new Uint32Array(this.count + 1);
    for (let i = 0, at = 0; i < this.count; i++) {
      at += 8 + view.getUint32(at, true);
      offsets[i + 1] = at;
    }
    return offsets;
  }
}
