/**
 * Thresholds of Squeezed Attention: the estimated probability of a key above which just a wanted share of all keys lies,
 * pooled over layers, heads and the prompt's last queries (algorithms.md B.2, step 4).
 *
 * Estimates are f32 between 0 and 1, so their upper bits are a logarithmic scale: a histogram over them finds a quantile
 * within 2^-12 of its value without keeping millions of numbers.
 */

/** Bits of an f32 that are not told apart. */
const DROPPED_BITS = 11;
const ONE_BITS = 0x3f800000;

export class Calibration {
  /** Keys per bucket of estimates. */
  readonly #histogram = new Float64Array((ONE_BITS >>> DROPPED_BITS) + 1);
  readonly #value = new Float32Array(1);
  readonly #bits = new Uint32Array(this.#value.buffer);
  #total = 0;
  #nForced = 0;
  #isFinite = true;

  /** Counts `nKeys` keys whose estimated probability is `sigma`. */
  add(sigma: number, nKeys: number): void {
    // Probabilities may exceed 1 by rounding.
    this.#value[0] = Math.min(sigma, 1);
    if (!(sigma >= 0)) this.#isFinite = false;
    else this.#histogram[this.#bits[0]! >>> DROPPED_BITS]! += nKeys;
    this.#total += nKeys;
  }

  /** Counts `nKeys` keys that are read whatever their estimate is. */
  addForced(nKeys: number): void {
    this.#nForced += nKeys;
    this.#total += nKeys;
  }

  /**
   * The threshold above which `1 - sparsity` of the keys lie, at least, or are read anyway; NaN if an estimate was not a number, or there was none.
   * It is above 0: keys without any probability may be left out at every sparsity but 0, where it is negative.
   */
  threshold(sparsity: number): number {
    if (!this.#isFinite || this.#total === 0) return Number.NaN;
    if (sparsity === 0) return -1;
    const wanted = (1 - sparsity) * this.#total;
    let kept = this.#nForced;
    for (let bucket = this.#histogram.length - 1; bucket > 0; bucket--) {
      kept += this.#histogram[bucket]!;
      if (kept < wanted) continue;
      // The largest f32 below the bucket: it is kept whole.
      this.#bits[0] = (bucket << DROPPED_BITS) - 1;
      return this.#value[0]!;
    }
    this.#bits[0] = (1 << DROPPED_BITS) - 1;
    return this.#value[0]!;
  }
}
