/**
 * Angles of rotary embedding (RoPE, Su et al. 2021, arXiv:2104.09864): one frequency per pair of dimensions.
 *
 * Pair i of a head turns by `pos * frequencies[i]`. All stretching for long contexts is folded into the
 * frequencies and one magnitude, so that kernels know only cos and sin.
 */

import type { RopeTable } from "../backend/backend.ts";
import { InlayError } from "../errors.ts";
import type { RopeConfig, RopeScaling } from "./rope-config.ts";

/** How a model's heads turn. */
export interface RopeSpec {
  /** Angle per position of each pair, (nRot / 2), all stretching included. */
  readonly frequencies: Float64Array;
  /** Ratio of neighbouring frequencies before stretching: freqBase^(-2 / nRot). */
  readonly ratio: number;
  /** cos and sin are multiplied by this (YaRN's mscale; 1 otherwise). */
  readonly magnitude: number;
  readonly pairs: "adjacent" | "halves";
}

/**
 * The frequencies of a model. `factors` is the content of `rope_freqs.weight`, (nRot / 2), and must be given
 * exactly when `config.hasFactors`.
 */
export function ropeSpec(config: RopeConfig, factors?: ArrayLike<number>): RopeSpec {
  const nPairs = config.nRot / 2;
  if (config.hasFactors !== (factors !== undefined) || (factors && factors.length !== nPairs)) {
    throw new InlayError(
      "invalid-model",
      `rope_freqs.weight has ${factors?.length ?? "no"} values; ${config.hasFactors ? nPairs : "none"} expected`,
    );
  }
  const frequencies = Float64Array.from({ length: nPairs }, (_, i) => {
    const factor = factors?.[i] ?? 1;
    if (!(factor > 0 && factor < Infinity)) {
      throw new InlayError(
        "invalid-model",
        `rope_freqs.weight[${i}] is ${factor}; it must be positive and finite`,
      );
    }
    const frequency = config.freqBase ** (-i / nPairs) / factor;
    return stretched(frequency, i, config);
  });
  const ratio = config.freqBase ** (-1 / nPairs);
  return { frequencies, ratio, magnitude: magnitude(config.scaling), pairs: config.pairs };
}

/**
 * cos and sin for positions [pos, pos + nTokens).
 *
 * Angles are made as ggml makes them: from one pair to the next by an f32 product with the ratio, so that they
 * carry its rounding (up to 1e-7 of the angle a pair) and a model's tokens do not part from llama.cpp's over it.
 */
export function ropeTable(spec: RopeSpec, pos: number, nTokens: number): RopeTable {
  const nPairs = spec.frequencies.length;
  const ratio = Math.fround(spec.ratio);
  const stretch = Float32Array.from(spec.frequencies, (frequency, i) => frequency / spec.ratio ** i);
  const angles = new Float32Array(nTokens * nPairs * 2);
  let at = 0;
  for (let t = 0; t < nTokens; t++) {
    let theta = Math.fround(pos + t);
    for (let i = 0; i < nPairs; i++) {
      const angle = Math.fround(theta * stretch[i]!);
      angles[at++] = Math.fround(Math.cos(angle)) * spec.magnitude;
      angles[at++] = Math.fround(Math.sin(angle)) * spec.magnitude;
      theta = Math.fround(theta * ratio);
    }
  }
  return { angles, nTokens, nRot: 2 * nPairs, pairs: spec.pairs };
}

function stretched(frequency: number, pair: number, config: RopeConfig): number {
  const { scaling } = config;
  if (scaling.type === "none") return frequency;
  const interpolated = frequency / scaling.factor;
  if (scaling.type === "linear") return interpolated;
  const kept = yarnRamp(pair, config.nRot, config.freqBase, scaling) * scaling.extFactor;
  return interpolated * (1 - kept) + frequency * kept;
}

/**
 * YaRN section 3.2: 1 for pairs that turn more than betaFast times over the original context (kept), 0 for those
 * that turn less than betaSlow times (interpolated), linear in the pair's index between. The two bounds are
 * rounded outwards to whole pairs and clamped to the head as ggml does, which decides the last digits.
 */
function yarnRamp(
  pair: number,
  nRot: number,
  freqBase: number,
  scaling: Extract<RopeScaling, { type: "yarn" }>,
): number {
  const pairTurning = (nTurns: number) =>
    (nRot * Math.log(scaling.originalContextLength / (nTurns * 2 * Math.PI))) / (2 * Math.log(freqBase));
  const low = Math.max(0, Math.floor(pairTurning(scaling.betaFast)));
  const high = Math.min(nRot - 1, Math.ceil(pairTurning(scaling.betaSlow)));
  const position = (pair - low) / Math.max(0.001, high - low);
  return 1 - Math.min(1, Math.max(0, position));
}

/** YaRN equation 22: longer contexts flatten the softmax, larger queries and keys undo that. */
function magnitude(scaling: RopeScaling): number {
  if (scaling.type !== "yarn") return 1;
  const yarn = scaling.extFactor > 0 && scaling.factor > 1 ? 0.1 * Math.log(scaling.factor) + 1 : 1;
  return yarn * scaling.attnFactor;
}
