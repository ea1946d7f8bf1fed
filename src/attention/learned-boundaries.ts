/**
 * The learned score of a chunk's end (DHSA, arXiv:2510.24606; algorithms.md A.3): a small network looks at the keys of
 * the 2w tokens around a position. tools/boundary-predictor trains it; src/model/boundary-file.ts reads its file.
 *
 *     E = LayerNorm(MHA(X, X, X))      X (2w, C): keys of all KV heads, before RoPE; no mask, no residual
 *     l, r = mean of E's first and second half
 *     logit = w2 · relu(W1 [l, r, |l-r|, l*r, cos(l, r)] + c1) + c2
 *
 * The reference takes keys after RoPE; those before it look the same wherever the text stands. Query, key and value of a
 * token serve all 2w windows that it is in; the rest is computed per position, some 0.6 million multiply-adds where C is 192.
 */

import type { BoundaryScore, ScoredPosition } from "./boundaries.ts";
import { dot } from "./ranking.ts";

/** Weights, f32, row-major (outputs, inputs). C channels, W tokens on each side, F hidden numbers. */
export interface PredictorWeights {
  readonly channels: number;
  /** W. */
  readonly half: number;
  /** Heads of the attention; they divide the channels. */
  readonly heads: number;
  /** A position is a candidate where its logit is larger. */
  readonly threshold: number;
  /** (3C, C) and (3C): query, key, value. */
  readonly inWeight: Float32Array;
  readonly inBias: Float32Array;
  /** (C, C) and (C). */
  readonly outWeight: Float32Array;
  readonly outBias: Float32Array;
  /** (C). */
  readonly normWeight: Float32Array;
  readonly normBias: Float32Array;
  /** (F, 4C + 1) and (F). */
  readonly hiddenWeight: Float32Array;
  readonly hiddenBias: Float32Array;
  /** (F) and (1). */
  readonly logitWeight: Float32Array;
  readonly logitBias: Float32Array;
}

const NORM_EPS = 1e-5;
const COSINE_EPS = 1e-6;

export class LearnedBoundaries implements BoundaryScore {
  readonly half: number;
  /** (2 * half, 3C): query, key and value of the newest tokens, token t at t % (2 * half). */
  #projected: Float32Array;

  constructor(private readonly weights: PredictorWeights) {
    this.half = weights.half;
    this.#projected = new Float32Array(2 * weights.half * 3 * weights.channels);
  }

  step(keys: Float32Array, t: number): ScoredPosition {
    const { half, weights } = this;
    const { channels, inWeight, inBias } = weights;
    const own = this.#projected.subarray((t % (2 * half)) * 3 * channels);
    for (let o = 0; o < 3 * channels; o++)
      own[o] = dot(inWeight, o * channels, keys, t * channels, channels) + inBias[o]!;
    if (t < 2 * half - 1) return { score: -Infinity, isCandidate: false };
    const score = this.#logit(t);
    return { score, isCandidate: score > weights.threshold };
  }

  clone(): LearnedBoundaries {
    const copy = new LearnedBoundaries(this.weights);
    copy.#projected = this.#projected.slice();
    return copy;
  }

  /** Of the position whose window ends with token t. */
  #logit(t: number): number {
    const { weights, half } = this;
    const { channels, hiddenWeight, hiddenBias, logitWeight, logitBias } = weights;
    const features = new Float32Array(4 * channels + 1);
    const left = features.subarray(0, channels);
    const right = features.subarray(channels, 2 * channels);
    for (let i = 0; i < 2 * half; i++) {
      const row = this.#normed(this.#attended(t, i));
      const side = i < half ? left : right;
      for (let c = 0; c < channels; c++) side[c]! += row[c]! / half;
    }
    for (let c = 0; c < channels; c++) {
      features[2 * channels + c] = Math.abs(left[c]! - right[c]!);
      features[3 * channels + c] = left[c]! * right[c]!;
    }
    const norms =
      Math.max(Math.sqrt(dot(left, 0, left, 0, channels)), COSINE_EPS) *
      Math.max(Math.sqrt(dot(right, 0, right, 0, channels)), COSINE_EPS);
    const last = 4 * channels;
    features[last] = dot(left, 0, right, 0, channels) / norms;
    let logit = logitBias[0]!;
    for (let f = 0; f < hiddenBias.length; f++) {
      const at = f * (last + 1);
      const sum = dot(hiddenWeight, at, features, 0, last) + hiddenWeight[at + last]! * features[last]!;
      logit += logitWeight[f]! * Math.max(0, sum + hiddenBias[f]!);
    }
    return logit;
  }

  /** Row i of the window's attention, after the output matrix: (C). */
  #attended(t: number, i: number): Float32Array {
    const { weights, half } = this;
    const { channels, heads, outWeight, outBias } = weights;
    const size = 2 * half;
    const width = channels / heads;
    const projected = this.#projected;
    const at = (token: number) => ((t + 1 + token) % size) * 3 * channels;
    const mixed = new Float32Array(channels);
    const shares = new Float64Array(size);
    for (let c = 0; c < channels; c += width) {
      let top = -Infinity;
      for (let j = 0; j < size; j++) {
        let score = 0;
        for (let d = c; d < c + width; d++) score += projected[at(i) + d]! * projected[at(j) + channels + d]!;
        shares[j] = score / Math.sqrt(width);
        top = Math.max(top, shares[j]!);
      }
      let total = 0;
      for (let j = 0; j < size; j++) total += shares[j] = Math.exp(shares[j]! - top);
      for (let j = 0; j < size; j++)
        for (let d = c; d < c + width; d++)
          mixed[d]! += (shares[j]! / total) * projected[at(j) + 2 * channels + d]!;
    }
    return outBias.map((bias, o) => bias + dot(outWeight, o * channels, mixed, 0, channels));
  }

  /** LayerNorm, in place. */
  #normed(row: Float32Array): Float32Array {
    const { normWeight, normBias } = this.weights;
    const n = row.length;
    const mean = row.reduce((sum, x) => sum + x, 0) / n;
    const variance = row.reduce((sum, x) => sum + (x - mean) ** 2, 0) / n;
    const scale = 1 / Math.sqrt(variance + NORM_EPS);
    for (let c = 0; c < n; c++) row[c] = (row[c]! - mean) * scale * normWeight[c]! + normBias[c]!;
    return row;
  }
}
