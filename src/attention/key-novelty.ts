/**
 * The training-free score of a chunk's end (algorithms.md A.9), in streaming form: how much the keys after a position
 * differ from those before it.
 *
 * g_i = mean over KV heads of 1 - cos(left, right), left and right being the mean keys of the `HALF` tokens up to i and
 * after i, both centred by the running mean of all keys so far, since keys carry big constant channels. A position is a
 * candidate where g_i lies above its exponential average (half-life 512 tokens; that is z_i > 0).
 */

import type { BoundaryScore, ScoredPosition } from "./boundaries.ts";

/** Tokens on each side of a position that are compared. */
const HALF = 8;
const ADAPTATION = 1 - 2 ** (-1 / 512);

export class KeyNovelty implements BoundaryScore {
  readonly half = HALF;
  /** Sums of keys, (nKvHeads * headDim) each: of all tokens, of the HALF newest, and of the HALF before those. */
  #total: Float64Array;
  #left: Float64Array;
  #right: Float64Array;
  #average = 0;

  constructor(
    private readonly nKvHeads: number,
    private readonly headDim: number,
  ) {
    const width = nKvHeads * headDim;
    this.#total = new Float64Array(width);
    this.#left = new Float64Array(width);
    this.#right = new Float64Array(width);
  }

  step(keys: Float32Array, t: number): ScoredPosition {
    this.#addToSums(keys, t);
    const position = t - HALF;
    if (position < HALF - 1) return { score: -Infinity, isCandidate: false };
    const score = this.#novelty(t + 1);
    // Plain averages until there are enough positions for the exponential one.
    this.#average += Math.max(ADAPTATION, 1 / (position - HALF + 2)) * (score - this.#average);
    return { score, isCandidate: score > this.#average };
  }

  clone(): KeyNovelty {
    const copy = new KeyNovelty(this.nKvHeads, this.headDim);
    copy.#total = this.#total.slice();
    copy.#left = this.#left.slice();
    copy.#right = this.#right.slice();
    copy.#average = this.#average;
    return copy;
  }

  /** Moves the windows on, so that `right` ends with token t. */
  #addToSums(keys: Float32Array, t: number): void {
    const total = this.#total;
    const left = this.#left;
    const right = this.#right;
    const width = total.length;
    const at = t * width;
    const back = HALF * width;
    for (let c = 0; c < width; c++) {
      const entering = keys[at + c]!;
      const crossing = t >= HALF ? keys[at - back + c]! : 0;
      const leaving = t >= 2 * HALF ? keys[at - 2 * back + c]! : 0;
      total[c]! += entering;
      right[c]! += entering - crossing;
      left[c]! += crossing - leaving;
    }
  }

  /** Mean over KV heads of 1 - cos(left, right), both centred. */
  #novelty(nTokens: number): number {
    const { nKvHeads, headDim } = this;
    const total = this.#total;
    const left = this.#left;
    const right = this.#right;
    const centre = HALF / nTokens;
    let sum = 0;
    for (let h = 0; h < nKvHeads; h++) {
      let lr = 0;
      let ll = 0;
      let rr = 0;
      for (let c = h * headDim; c < (h + 1) * headDim; c++) {
        const mean = total[c]! * centre;
        const l = left[c]! - mean;
        const r = right[c]! - mean;
        lr += l * r;
        ll += l * l;
        rr += r * r;
      }
      sum += 1 - lr / Math.max(Math.sqrt(ll * rr), 1e-6);
    }
    return sum / nKvHeads;
  }
}
