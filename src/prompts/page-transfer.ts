/** Pages between a cache and the records of a stored prompt, whatever the two are coded in. */

import type { PageConverter } from "../backend/wasm/page-converter.ts";
import { headFormats } from "../kv/mixed-format.ts";
import { clearPastTokens, PAGE_TOKENS, pageCount } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import { convertLayer } from "./layer-pages.ts";
import { type KvRecord, type PromptShape, runBytes, storedRuns } from "./manifest.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** The prompt whose pages are moved. */
export interface StoredPages {
  readonly shape: PromptShape;
  readonly nTokens: number;
}

export class PageTransfer {
  constructor(
    private readonly cache: PagedCache,
    private readonly stored: StoredPages,
    private readonly converter: PageConverter,
  ) {}

  /**
   * The bytes of a record. Pages that are stored in another format than the cache has them in are changed in the cache
   * too, to what will be restored: a prompt gives the same answers before and after.
   */
  async take(record: KvRecord): Promise<Bytes> {
    const live = await this.cache.readPages(record.layer, record.from, record.to);
    const bytes = this.#convert(record, live, "toStored");
    if (bytes === live) return bytes;
    const { layer, from, to } = record;
    const restored = this.#convert(record, bytes, "toLive");
    // Pages of a prompt that this one was pinned on are mostly so already, and stay shared with it.
    if (!isSame(restored, live)) await this.cache.writePages(layer, from, to, restored);
    return bytes;
  }

  /**
   * Fills expected pages with the bytes of a record, for the cache and its forks. `fork`: one that has a copy of its own of
   * the last page, in which it goes on.
   */
  async give(record: KvRecord, bytes: Bytes, fork?: PagedCache): Promise<void> {
    const { layer, from, to } = record;
    const pages = this.#convert(record, bytes, "toLive");
    await this.cache.fillPages(layer, from, to, pages);
    if (fork && fork.slots[to - 1] !== this.cache.slots[to - 1]) {
      const { shape, nTokens } = this.stored;
      const last = storedRuns(shape, nTokens, to - 1, to)[0]!;
      const size = runBytes(shape, layer, { ...last, format: this.cache.formatOf(to - 1) });
      await fork.fillPages(layer, to - 1, to, pages.subarray(-size));
    }
  }

  /** `pages` itself where nothing is to be done. */
  #convert({ layer, from, to }: KvRecord, pages: Bytes, direction: "toStored" | "toLive"): Bytes {
    const { shape, nTokens } = this.stored;
    const { nKvHeads, headDim } = shape;
    const parts: Bytes[] = [];
    let at = 0;
    for (const run of storedRuns(shape, nTokens, from, to)) {
      // A cache has all pages of a run in one format: either it codes them as they are stored, or it cannot.
      const live = this.cache.formatOf(run.from);
      const [source, target] = direction === "toStored" ? [live, run.format] : [run.format, live];
      const size = runBytes(shape, layer, { ...run, format: source });
      const [ofSource, ofTarget] = [source, target].map((format) => headFormats(format, layer, nKvHeads));
      const part = pages.subarray(at, at + size);
      parts.push(convertLayer(this.converter, headDim, part, ofSource!, ofTarget!));
      at += size;
    }
    const isSame = parts.every((part) => part.buffer === pages.buffer);
    const result = isSame ? pages : concat(parts);
    const past = nTokens - (to - 1) * PAGE_TOKENS;
    if (direction === "toStored" && to === pageCount(nTokens) && past < PAGE_TOKENS) {
      const last = runBytes(shape, layer, { from: to - 1, to, format: shape.format });
      clearPastTokens(result.subarray(-last), shape, past);
    }
    return result;
  }
}

function isSame(a: Bytes, b: Bytes): boolean {
  return a.byteLength === b.byteLength && a.every((byte, i) => byte === b[i]);
}

function concat(parts: readonly Bytes[]): Bytes {
  const whole = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.byteLength;
  }
  return whole;
}
