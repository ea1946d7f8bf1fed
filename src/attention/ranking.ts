/** Orders candidates by score, deterministically: equal scores (as f32) go to the lower index. */

/** Candidates are numbered below this. */
const MAX_CANDIDATES = 2 ** 20;

export class Ranking {
  /** score bits * 2^20 + (2^20 - 1 - index): one number that sorts by both, exact in f64. */
  #keys = new Float64Array(256);
  #n = 0;
  readonly #score = new Float32Array(1);
  readonly #bits = new Uint32Array(this.#score.buffer);

  /** Starts a new ranking. */
  clear(): void {
    this.#n = 0;
  }

  add(index: number, score: number): void {
    if (this.#n === this.#keys.length) {
      const grown = new Float64Array(2 * this.#n);
      grown.set(this.#keys);
      this.#keys = grown;
    }
    // Bits of an f32 in an order that unsigned numbers have; NaN counts as the lowest.
    this.#score[0] = Number.isNaN(score) ? -Infinity : score + 0;
    const bits = this.#bits[0]!;
    const ordered = bits >= 0x80000000 ? 0xffffffff - bits : bits + 0x80000000;
    this.#keys[this.#n++] = ordered * MAX_CANDIDATES + (MAX_CANDIDATES - 1 - index);
  }

  /** Indices, best first. Valid until the next `clear`. */
  *descending(): Generator<number> {
    const keys = this.#keys.subarray(0, this.#n).sort();
    for (let i = keys.length - 1; i >= 0; i--) yield MAX_CANDIDATES - 1 - (keys[i]! % MAX_CANDIDATES);
  }
}

/** a[aAt .. aAt + n) · b[bAt .. bAt + n). */
export function dot(a: Float32Array, aAt: number, b: Float32Array, bAt: number, n: number): number {
  let even = 0;
  let odd = 0;
  for (let i = 0; i < n; i += 2) {
    even += a[aAt + i]! * b[bAt + i]!;
    odd += a[aAt + i + 1]! * b[bAt + i + 1]!;
  }
  return even + odd;
}

/** Sums every `group` neighbouring heads: (n, nHeads, headDim) as (n, nHeads / group, headDim). */
export function sumHeads(x: Float32Array, headDim: number, group: number): Float32Array {
  if (group === 1) return x;
  const sums = new Float32Array(x.length / group);
  for (let head = 0; head * headDim < x.length; head++)
    for (let c = 0; c < headDim; c++) sums[Math.floor(head / group) * headDim + c]! += x[head * headDim + c]!;
  return sums;
}
