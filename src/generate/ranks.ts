/**
 * The order of tokens by likelihood, without sorting the vocabulary.
 *
 * A rank is one double that holds a logit and its token id, so that ranks compare as tokens do: a larger logit
 * first, and the lower id first among equal logits. Ranks sort natively, without a comparison function:
 *
 *     rank = order(logit) * 2^21 + (2^21 - 1 - id)      order: the f32's bits as an increasing 32-bit integer
 *
 * That is at most 53 bits, which a double holds exactly.
 */

/** Vocabularies may have up to 2^21 tokens. */
export const MAX_VOCAB = 1 << 21;

const SIGN_BIT = -0x80000000;

/** Up to this many tokens are selected with a heap, in one scan; more by partitioning. */
const HEAP_MAX = 4096;
/** Ranges this short are sorted instead of partitioned. */
const SORT_MAX = 64;

/** The rank of token `id` whose logit has these f32 bits. -0 ranks with 0. */
function rankOf(bits: number, id: number): number {
  const plain = bits === SIGN_BIT ? 0 : bits;
  const order = (plain < 0 ? ~plain : plain ^ SIGN_BIT) >>> 0;
  return order * MAX_VOCAB + (MAX_VOCAB - 1 - id);
}

/** The token id of a rank. */
export function idOfRank(rank: number): number {
  return MAX_VOCAB - 1 - (rank - Math.floor(rank / MAX_VOCAB) * MAX_VOCAB);
}

/**
 * Ranks of all tokens whose logit is at least `least`, in no particular order, in the first places of `out`.
 * logits: (vocabSize), none NaN. out: length >= vocabSize.
 */
export function ranksFrom(logits: Float32Array, least: number, out: Float64Array): Float64Array {
  const bits = new Int32Array(logits.buffer, logits.byteOffset, logits.length);
  let n = 0;
  for (let id = 0; id < logits.length; id++) if (logits[id]! >= least) out[n++] = rankOf(bits[id]!, id);
  return out.subarray(0, n);
}

/** The first id from `from` on whose logit is at least `least`; logits.length if there is none. */
export function nextAtLeast(logits: Float32Array, least: number, from: number): number {
  let id = from;
  // Almost every logit is too small, so four are refused at once.
  for (const end = logits.length - 3; id < end; id += 4)
    if (
      logits[id]! >= least ||
      logits[id + 1]! >= least ||
      logits[id + 2]! >= least ||
      logits[id + 3]! >= least
    )
      break;
  while (id < logits.length && !(logits[id]! >= least)) id++;
  return id;
}

/**
 * The `k` largest ranks, in no particular order, in the first places of `out` (length >= vocabSize).
 * k is clipped to the vocabulary.
 */
export function largestRanks(logits: Float32Array, k: number, out: Float64Array): Float64Array {
  const size = Math.min(k, logits.length);
  if (size > HEAP_MAX) {
    const ranks = ranksFrom(logits, -Infinity, out);
    return ranks.subarray(
      0,
      shortestBeginning(ranks, () => 1, size),
    );
  }
  const bits = new Int32Array(logits.buffer, logits.byteOffset, size);
  for (let id = 0; id < size; id++) out[id] = rankOf(bits[id]!, id);
  improveHeap(logits, out, size);
  return out.subarray(0, size);
}

/** heap[0, size) holds the ranks of the first `size` tokens; afterwards those of the `size` best of all. */
function improveHeap(logits: Float32Array, heap: Float64Array, size: number): void {
  if (size === 0) return;
  const bits = new Int32Array(logits.buffer, logits.byteOffset, logits.length);
  for (let at = (size >> 1) - 1; at >= 0; at--) siftDown(heap, size, at);
  let least = logits[idOfRank(heap[0]!)]!;
  for (
    let id = nextAtLeast(logits, least, size);
    id < logits.length;
    id = nextAtLeast(logits, least, id + 1)
  ) {
    const rank = rankOf(bits[id]!, id);
    // An equal logit with a higher id is a lower rank, and stays out.
    if (rank < heap[0]!) continue;
    heap[0] = rank;
    siftDown(heap, size, 0);
    least = logits[idOfRank(heap[0]!)]!;
  }
}

/** Restores the min-heap below `at` in heap[0, size). */
function siftDown(heap: Float64Array, size: number, at: number): void {
  const value = heap[at]!;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= size) break;
    if (child + 1 < size && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= value) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = value;
}

/**
 * How many of the largest ranks it takes until their weights reach `wanted` (all, if they never do), at least 1.
 * Afterwards those ranks are the beginning of `ranks`, in no particular order.
 * Quickselect (Hoare 1961, "Algorithm 65: Find") that follows the sum of weights instead of the count.
 */
export function shortestBeginning(
  ranks: Float64Array,
  weightOf: (rank: number) => number,
  wanted: number,
): number {
  let from = 0;
  let to = ranks.length;
  let reached = 0;
  while (to - from > SORT_MAX) {
    const middle = partition(ranks, from, to);
    let sum = reached;
    for (let i = from; i < middle; i++) sum += weightOf(ranks[i]!);
    if (sum >= wanted) to = middle;
    else {
      reached = sum;
      from = middle;
    }
  }
  ranks.subarray(from, to).sort().reverse();
  while (from < to) {
    reached += weightOf(ranks[from++]!);
    if (reached >= wanted) break;
  }
  return from;
}

/** Moves larger ranks before smaller ones in ranks[from, to) and returns the boundary, strictly inside. */
function partition(ranks: Float64Array, from: number, to: number): number {
  const a = ranks[from]!;
  const b = ranks[(from + to) >> 1]!;
  const c = ranks[to - 1]!;
  const pivot = Math.max(Math.min(a, b), Math.min(Math.max(a, b), c));
  let i = from;
  let j = to - 1;
  for (;;) {
    while (ranks[i]! > pivot) i++;
    while (ranks[j]! < pivot) j--;
    if (i >= j) break;
    const swapped = ranks[i]!;
    ranks[i++] = ranks[j]!;
    ranks[j--] = swapped;
  }
  return i;
}
