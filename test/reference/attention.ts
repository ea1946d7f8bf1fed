/**
 * Causal grouped-query attention in f64, one query and head at a time. The reference of every attention kernel and,
 * through `isKept`, of every sparse selection: attention is exact over exactly the keys that are kept.
 */

import { logSumExp } from "./math.ts";

export interface AttentionInput {
  /** (nQueries, nHeads, headDim). */
  readonly q: ArrayLike<number>;
  /** (nKeys, nKvHeads, headDim); key j stands at position j. */
  readonly k: ArrayLike<number>;
  /** (nKeys, nKvHeads, headDim). */
  readonly v: ArrayLike<number>;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  /** Position of query 0; default: the queries are the last positions of the keys. */
  readonly qStart?: number;
  /** Default 1 / sqrt(headDim). */
  readonly scale?: number;
  /** Query at position p sees keys above p - window. */
  readonly window?: number | undefined;
  /** Scores become cap * tanh(score / cap). */
  readonly softcap?: number | undefined;
  /** Further restricts what is seen; default everything causal. Positions are absolute. */
  readonly isKept?: (query: number, key: number, kvHead: number) => boolean;
}

export interface AttentionOutput {
  /** (nQueries, nHeads, headDim); zeros where no key is seen. */
  readonly out: Float64Array;
  /** Natural log of the sum of exponentials, (nQueries, nHeads); -Infinity where no key is seen. */
  readonly lse: Float64Array;
}

export function attention(input: AttentionInput): AttentionOutput {
  const { q, k, v, nHeads, nKvHeads, headDim } = input;
  const nQueries = q.length / (nHeads * headDim);
  const nKeys = k.length / (nKvHeads * headDim);
  const qStart = input.qStart ?? nKeys - nQueries;
  const scale = input.scale ?? 1 / Math.sqrt(headDim);
  const out = new Float64Array(nQueries * nHeads * headDim);
  const lse = new Float64Array(nQueries * nHeads);

  const keyAt = (key: number, kvHead: number) => (key * nKvHeads + kvHead) * headDim;
  for (let query = 0; query < nQueries; query++) {
    for (let head = 0; head < nHeads; head++) {
      const kvHead = Math.floor(head / (nHeads / nKvHeads));
      const position = qStart + query;
      const queryAt = (query * nHeads + head) * headDim;

      const keys: number[] = [];
      for (let key = 0; key < nKeys; key++) {
        if (key > position) continue;
        if (input.window !== undefined && position - key >= input.window) continue;
        if (input.isKept && !input.isKept(position, key, kvHead)) continue;
        keys.push(key);
      }
      const scores = keys.map((key) => {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += q[queryAt + d]! * k[keyAt(key, kvHead) + d]!;
        const score = dot * scale;
        return input.softcap === undefined ? score : input.softcap * Math.tanh(score / input.softcap);
      });
      const total = logSumExp(scores);
      lse[query * nHeads + head] = total;
      for (const [i, key] of keys.entries()) {
        const weight = Math.exp(scores[i]! - total);
        for (let d = 0; d < headDim; d++) out[queryAt + d]! += weight * v[keyAt(key, kvHead) + d]!;
      }
    }
  }
  return { out, lse };
}
