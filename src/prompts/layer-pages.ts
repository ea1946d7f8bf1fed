/** Pages of one layer, (nPages, nKvHeads, K then V), whose KV heads may be stored in different formats. */

import type { PageConverter } from "../backend/wasm/page-converter.ts";
import type { CacheFormat } from "../kv/page.ts";
import { wholePageBytes } from "../kv/quantize.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** A view of such pages by KV head. */
export class LayerPages {
  readonly #nPages: number;
  /** Bytes from a page's start to each KV head, and to the next page. */
  readonly #offsets: number[] = [0];

  /** `formats`: of each KV head. */
  constructor(
    private readonly bytes: Bytes,
    formats: readonly CacheFormat[],
    headDim: number,
  ) {
    for (const format of formats) this.#offsets.push(this.#offsets.at(-1)! + wholePageBytes(format, headDim));
    this.#nPages = bytes.byteLength / this.#offsets.at(-1)!;
  }

  /** A copy of pages of one KV head, one after the other. @default all of them */
  gather(head: number, pages: readonly number[] = Array.from({ length: this.#nPages }, (_, i) => i)): Bytes {
    const size = this.#offsets[head + 1]! - this.#offsets[head]!;
    const own = new Uint8Array(pages.length * size);
    for (const [i, page] of pages.entries()) own.set(this.#page(page, head), i * size);
    return own;
  }

  /** Puts them back. */
  scatter(head: number, own: Bytes): void {
    const size = own.byteLength / this.#nPages;
    for (let page = 0; page < this.#nPages; page++)
      this.#page(page, head).set(own.subarray(page * size, (page + 1) * size));
  }

  #page(page: number, head: number): Bytes {
    const first = page * this.#offsets.at(-1)!;
    return this.bytes.subarray(first + this.#offsets[head]!, first + this.#offsets[head + 1]!);
  }
}

/** Pages in other formats; `pages` itself where nothing is to be done. Throws as `PageConverter.convert` does. */
export function convertLayer(
  converter: PageConverter,
  headDim: number,
  pages: Bytes,
  from: readonly CacheFormat[],
  to: readonly CacheFormat[],
): Bytes {
  if (from.every((format, head) => format === to[head])) return pages;
  if (isOneFormat(from) && isOneFormat(to)) return converter.convert(pages, from[0]!, to[0]!);
  const source = new LayerPages(pages, from, headDim);
  const size = (formats: readonly CacheFormat[]) =>
    formats.reduce((sum, format) => sum + wholePageBytes(format, headDim), 0);
  const converted = new Uint8Array((pages.byteLength / size(from)) * size(to));
  const target = new LayerPages(converted, to, headDim);
  for (const [head, format] of from.entries())
    target.scatter(head, converter.convert(source.gather(head), format, to[head]!));
  return converted;
}

function isOneFormat(formats: readonly CacheFormat[]): boolean {
  return formats.every((format) => format === formats[0]);
}
