/**
 * Key features (src/attention/key-features.ts) of stored pages: what a forward pass would have remembered of the keys,
 * computed from the pages alone. A prompt has them from here when it is pinned and when it is restored, so that sparse
 * attention chooses the same keys before and after, also where the stored keys are quantized.
 *
 * The boundary detector wants keys before RoPE: they are turned back, within f32 rounding of what was turned.
 */

import { type FeatureShape, KeyFeatures } from "../attention/key-features.ts";
import type { PageConverter } from "../backend/wasm/page-converter.ts";
import { headFormats, MixedFormat, type SlotFormat } from "../kv/mixed-format.ts";
import { type CacheFormat, PAGE_TOKENS } from "../kv/page.ts";
import { type RopeSpec, ropeTable } from "../model/rope.ts";
import { convertLayer } from "./layer-pages.ts";
import { type KvRecord, runBytes, storedRuns } from "./manifest.ts";
import type { StoredPages } from "./page-transfer.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** What is to be remembered of a model's keys. */
export type FeaturePlan = Pick<FeatureShape, "granule" | "boundaryLayer" | "boundaryScore">;

export class PageFeatures {
  readonly features: KeyFeatures;

  constructor(
    plan: FeaturePlan,
    private readonly stored: StoredPages,
    private readonly rope: RopeSpec,
    private readonly converter: PageConverter,
  ) {
    const { nLayers, nKvHeads, headDim } = stored.shape;
    this.features = new KeyFeatures({ nLayers, nKvHeads, headDim, ...plan });
  }

  /** Takes the bytes of a record; all of them in order. */
  add({ layer, from, to }: KvRecord, bytes: Bytes): void {
    const { shape, nTokens } = this.stored;
    let at = 0;
    for (const run of storedRuns(shape, nTokens, from, to)) {
      const size = runBytes(shape, layer, run);
      const { pages, format } = this.#uniform(layer, bytes.subarray(at, at + size), run.format);
      const first = run.from * PAGE_TOKENS;
      const count = Math.min(run.to * PAGE_TOKENS, nTokens) - first;
      if (layer === this.features.shape.boundaryLayer)
        this.features.appendBoundaryKeys(this.#keysBeforeRope(pages, format, first, count));
      // What lies past the last token of a stored page is zero, and adds nothing.
      this.converter.withKeySums(pages, format, this.features.shape.granule, (keySums) =>
        this.features.append(layer, count, (ends, sums) => this.#copySums(keySums, ends.length, sums)),
      );
      at += size;
    }
  }

  /** Pages of one format: those of mixed heads as f32. */
  #uniform(layer: number, pages: Bytes, format: SlotFormat): { pages: Bytes; format: CacheFormat } {
    if (!(format instanceof MixedFormat)) return { pages, format };
    const { nKvHeads, headDim } = this.stored.shape;
    const f32 = headFormats("f32", layer, nKvHeads);
    const formats = headFormats(format, layer, nKvHeads);
    return { pages: convertLayer(this.converter, headDim, pages, formats, f32), format: "f32" };
  }

  /** From (nPages, nKvHeads, granules of a page, headDim) to (nRuns, nKvHeads, headDim); see PoolRuns. */
  #copySums(keySums: Float32Array, nRuns: number, sums: Float32Array): void {
    const { granule, nKvHeads, headDim } = this.features.shape;
    const perPage = PAGE_TOKENS / granule;
    for (let run = 0; run < nRuns; run++)
      for (let head = 0; head < nKvHeads; head++) {
        const row = (Math.floor(run / perPage) * nKvHeads + head) * perPage + (run % perPage);
        sums.set(keySums.subarray(row * headDim, (row + 1) * headDim), (run * nKvHeads + head) * headDim);
      }
  }

  /** Keys of `nTokens` tokens from `position` on, (nTokens, nKvHeads * headDim): undoes the rotation times a magnitude. */
  #keysBeforeRope(pages: Bytes, format: CacheFormat, position: number, nTokens: number): Float32Array {
    const { width } = this.features;
    const rows = new Float32Array(nTokens * width);
    this.converter.withKeys(pages, format, (keys) => transposePages(keys, width, nTokens, rows));
    this.#turnBack(rows, position, nTokens);
    return rows;
  }

  #turnBack(rows: Float32Array, position: number, nTokens: number): void {
    const { nKvHeads, headDim } = this.features.shape;
    const { angles, nRot, pairs } = ropeTable(this.rope, position, nTokens);
    const scale = 1 / this.rope.magnitude ** 2;
    const [step, distance] = pairs === "adjacent" ? [2, 1] : [1, nRot / 2];
    for (let t = 0; t < nTokens; t++)
      for (let head = 0; head < nKvHeads; head++) {
        let a = (t * nKvHeads + head) * headDim;
        for (let i = t * nRot; i < (t + 1) * nRot; i += 2, a += step) {
          const cos = angles[i]! * scale;
          const sin = angles[i + 1]! * scale;
          const x = rows[a]!;
          const y = rows[a + distance]!;
          rows[a] = cos * x + sin * y;
          rows[a + distance] = cos * y - sin * x;
        }
      }
  }
}

/** Rows (nTokens, width) of pages (width, PAGE_TOKENS), each read in its own order. */
function transposePages(keys: Float32Array, width: number, nTokens: number, rows: Float32Array): void {
  for (let first = 0; first < nTokens; first += PAGE_TOKENS) {
    const n = Math.min(PAGE_TOKENS, nTokens - first);
    for (let c = 0; c < width; c++) {
      const from = first * width + c * PAGE_TOKENS;
      for (let t = 0; t < n; t++) rows[(first + t) * width + c] = keys[from + t]!;
    }
  }
}
