/** Softmax attention probabilities of one query and head in f64: what a selection keeps or loses. */

export interface ProbabilityInput {
  /** (nTokens, nHeads, headDim). */
  readonly q: ArrayLike<number>;
  /** (nTokens, nKvHeads, headDim). */
  readonly k: ArrayLike<number>;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  /** Query at position p sees keys above p - window. */
  readonly window?: number | undefined;
}

/** Probability of each key 0..position; they sum to 1. */
export function attentionProbabilities(
  input: ProbabilityInput,
  position: number,
  head: number,
): Float64Array {
  const { q, k, nHeads, nKvHeads, headDim, scale, window } = input;
  const kvHead = Math.floor(head / (nHeads / nKvHeads));
  const scores = Float64Array.from({ length: position + 1 }, (_, key) => {
    if (window !== undefined && position - key >= window) return -Infinity;
    let dot = 0;
    for (let d = 0; d < headDim; d++)
      dot += q[(position * nHeads + head) * headDim + d]! * k[(key * nKvHeads + kvHead) * headDim + d]!;
    return dot * scale;
  });
  const top = scores.reduce((a, b) => Math.max(a, b));
  const weights = scores.map((x) => Math.exp(x - top));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((w) => w / total);
}
