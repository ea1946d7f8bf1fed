/** KV pages outside a cache: from one format to another, and their keys as numbers. Computed in WASM, wherever they go. */

import { InlayError, internalError } from "../../errors.ts";
import { type CacheFormat, PAGE_TOKENS } from "../../kv/page.ts";
import { CLIP, isQuantized, wholePageBytes } from "../../kv/quantize.ts";
import type { WasmModule } from "./module.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** The C enum PageFormat. */
export const FORMAT_CODES: Readonly<Record<CacheFormat, number>> = { f32: 0, f16: 1, q8: 2, q4: 3, q2: 4 };

export class PageConverter {
  constructor(
    private readonly wasm: WasmModule,
    private readonly headDim: number,
  ) {}

  /** Pages (K, then V, of one KV head each) in another format. Throws `out-of-memory`, `invalid-model` for what is not finite. */
  convert(pages: Bytes, from: CacheFormat, to: CacheFormat): Bytes {
    if (from === to) return pages;
    const nPages = this.#count(pages, from);
    const size = nPages * wholePageBytes(to, this.headDim);
    return this.#withPages(pages, size, (input, output) => {
      const clip = isQuantized(to) ? CLIP[to] : 1;
      const [fromCode, toCode] = [FORMAT_CODES[from], FORMAT_CODES[to]];
      const status = this.wasm.call(
        "kv_convert_pages",
        input,
        fromCode,
        nPages,
        this.headDim,
        clip,
        toCode,
        output,
      );
      if (status === 0) return this.wasm.bytes(output, size).slice();
      if (status < 0) throw internalError(`converting ${from} pages to ${to} returned ${status}`);
      throw new InlayError(
        "invalid-model",
        `the ${status % 2 === 1 ? "keys" : "values"} of a page are not finite, or too large for ${to}: the model's weights ` +
          "or activations overflow; try another file of the model",
        { from, to },
      );
    });
  }

  /** The keys of pages: (nPages, headDim, PAGE_TOKENS). Valid inside `use` only, which must not allocate in the heap. */
  withKeys<T>(pages: Bytes, format: CacheFormat, use: (keys: Float32Array) => T): T {
    const nPages = this.#count(pages, format);
    const length = nPages * this.headDim * PAGE_TOKENS;
    return this.#withPages(pages, 4 * length, (input, output) => {
      const status = this.wasm.call(
        "kv_decode_keys",
        input,
        FORMAT_CODES[format],
        nPages,
        this.headDim,
        output,
      );
      if (status !== 0) throw internalError(`reading the keys of ${format} pages returned ${status}`);
      return use(this.wasm.f32(output, length));
    });
  }

  /**
   * Sums of the keys of pages over runs of `granule` tokens, a multiple of 4: (nPages, PAGE_TOKENS / granule, headDim).
   * Valid inside `use` only, which must not allocate in the heap.
   */
  withKeySums(pages: Bytes, format: CacheFormat, granule: number, use: (sums: Float32Array) => void): void {
    const nPages = this.#count(pages, format);
    const length = (nPages * this.headDim * PAGE_TOKENS) / granule;
    this.#withPages(pages, 4 * length, (input, output) => {
      const code = FORMAT_CODES[format];
      const status = this.wasm.call("kv_sum_keys", input, code, nPages, this.headDim, granule, output);
      if (status !== 0) throw internalError(`summing the keys of ${format} pages returned ${status}`);
      use(this.wasm.f32(output, length));
    });
  }

  #count(pages: Bytes, format: CacheFormat): number {
    const n = pages.byteLength / wholePageBytes(format, this.headDim);
    if (!Number.isInteger(n)) throw internalError(`${pages.byteLength} bytes are no whole ${format} pages`);
    return n;
  }

  #withPages<T>(pages: Bytes, outputBytes: number, use: (input: number, output: number) => T): T {
    const input = this.wasm.alloc(pages.byteLength, "KV pages being converted");
    try {
      const output = this.wasm.alloc(outputBytes, "KV pages being converted");
      try {
        this.wasm.bytes(input, pages.byteLength).set(pages);
        return use(input, output);
      } finally {
        this.wasm.free(output);
      }
    } finally {
      this.wasm.free(input);
    }
  }
}
