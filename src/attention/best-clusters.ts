/**
 * The floor of Squeezed Attention [ours]: a head reads at least its best clusters, whatever the threshold.
 *
 * A mean of keys hides one key that stands out among them. Where a head looks for one such key, its sinks then seem to have
 * all of the attention, and no cluster is above a threshold that serves all heads; but the cluster with the key is
 * still among the best of its head.
 */

/** Bits of an f32 that buckets do not tell apart. */
const DROPPED_BITS = 20;
const ONE_BITS = 0x3f800000;
const LEAST_F32 = 2 ** -149;

export class BestClusters {
  /** Keys per bucket of estimates; f32 between 0 and 1 are in order as whole numbers too. */
  readonly #histogram = new Float64Array((ONE_BITS >>> DROPPED_BITS) + 1);

  /**
   * What the best entries of [from, to) that have `floor` keys together, or all there are, have at least; infinite if `floor` is 0.
   * Entries without any estimated probability are never among them. `sigma[at + e]`: probability of one key of entry e, at most 1 but
   * for rounding; `counts`: keys of an entry.
   */
  least(
    sigma: Float32Array,
    at: number,
    counts: Float32Array,
    [from, to]: readonly [number, number],
    floor: number,
  ): number {
    if (floor <= 0) return Infinity;
    const bits = new Uint32Array(sigma.buffer, sigma.byteOffset + 4 * at, to);
    const bucketOf = (e: number) => Math.min(bits[e]!, ONE_BITS) >>> DROPPED_BITS;
    const histogram = this.#histogram.fill(0);
    for (let e = from; e < to; e++) if (bits[e]! > 0) histogram[bucketOf(e)]! += counts[e]!;
    let keys = 0;
    let bucket = histogram.length - 1;
    while (bucket > 0 && keys + histogram[bucket]! < floor) keys += histogram[bucket--]!;
    const inBucket: number[] = [];
    for (let e = from; e < to; e++) if (bits[e]! > 0 && bucketOf(e) === bucket) inBucket.push(e);
    inBucket.sort((a, b) => bits[b]! - bits[a]!);
    for (const e of inBucket) {
      keys += counts[e]!;
      if (keys >= floor) return sigma[at + e]!;
    }
    return LEAST_F32;
  }
}
