/**
 * Key features (src/attention/key-features.ts) of stored pages: what a forward pass would have remembered of the keys,
 * computed from the pages alone. A prompt has them from here when it is pinned and when it is restored, so that sparse
 * attention chooses the same keys before and after, also where the stored keys are quantized.
 *
 * The boundary detector wants keys before RoPE: they are turned back, within f32 rounding of what was turned.
 */

import { KeyFeatures } from "../attention/key-features.ts";
import type { PageConverter } from "../backend/wasm/page-converter.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import { type RopeSpec, ropeTable } from "../model/rope.ts";
import { type KvRecord, runBytes, storedRuns } from "./manifest.ts";
import type { StoredPages } from "./page-transfer.ts";

/** What is to be remembered of a model's keys. */
export interface FeaturePlan {
  readonly granule: number;
  readonly boundaryLayer?: number | undefined;
}

/** The keys of some pages: (nPages, nKvHeads, headDim, PAGE_TOKENS), of which the first `nTokens` tokens count. */
interface PageKeys {
  readonly keys: Float32Array;
  readonly nTokens: number;
}

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
  add({ layer, from, to }: KvRecord, bytes: Uint8Array<ArrayBuffer>): void {
    const { shape, nTokens } = this.stored;
    let at = 0;
    for (const run of storedRuns(shape, nTokens, from, to)) {
      const size = runBytes(shape, run);
      const first = run.from * PAGE_TOKENS;
      const count = Math.min(run.to * PAGE_TOKENS, nTokens) - first;
      this.converter.withKeys(bytes.subarray(at, at + size), run.format, (keys) =>
        this.#add(layer, first, { keys, nTokens: count }),
      );
      at += size;
    }
  }

  #add(layer: number, first: number, pages: PageKeys): void {
    const { features } = this;
    if (layer === features.shape.boundaryLayer)
      features.appendBoundaryKeys(this.#keysBeforeRope(first, pages));
    features.append(layer, pages.nTokens, (ends, sums) => this.#pool(pages, ends, sums));
  }

  /** Sums of the keys over runs of tokens that do not cross pages, (nRuns, nKvHeads * headDim); see PoolRuns. */
  #pool({ keys }: PageKeys, ends: Uint32Array, sums: Float32Array): void {
    const { width } = this.features;
    let from = 0;
    for (const [i, to] of ends.entries()) {
      const page = Math.floor(from / PAGE_TOKENS);
      const [first, last] = [from - page * PAGE_TOKENS, to - page * PAGE_TOKENS];
      for (let c = 0; c < width; c++) {
        const row = (page * width + c) * PAGE_TOKENS;
        let sum = 0;
        for (let t = first; t < last; t++) sum += keys[row + t]!;
        sums[i * width + c] = sum + (i === 0 ? sums[c]! : 0);
      }
      from = to;
    }
  }

  /** (nTokens, nKvHeads * headDim). Undoes the rotation by cos and sin times a magnitude. */
  #keysBeforeRope(position: number, { keys, nTokens }: PageKeys): Float32Array {
    const { width } = this.features;
    const { headDim } = this.features.shape;
    const { angles, nRot, pairs } = ropeTable(this.rope, position, nTokens);
    const square = this.rope.magnitude ** 2;
    const rows = new Float32Array(nTokens * width);
    for (let t = 0; t < nTokens; t++) {
      const page = Math.floor(t / PAGE_TOKENS);
      const key = (c: number) => keys[(page * width + c) * PAGE_TOKENS + (t % PAGE_TOKENS)]!;
      const row = rows.subarray(t * width, (t + 1) * width);
      for (let c = 0; c < width; c++) row[c] = key(c);
      for (let head = 0; head < width; head += headDim)
        for (let pair = 0; pair < nRot / 2; pair++) {
          const [a, b] =
            pairs === "adjacent"
              ? [head + 2 * pair, head + 2 * pair + 1]
              : [head + pair, head + pair + nRot / 2];
          const cos = angles[t * nRot + 2 * pair]! / square;
          const sin = angles[t * nRot + 2 * pair + 1]! / square;
          row[a] = cos * key(a) + sin * key(b);
          row[b] = cos * key(b) - sin * key(a);
        }
    }
    return rows;
  }
}
