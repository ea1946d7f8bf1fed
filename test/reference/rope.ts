/**
 * Rotary embedding in f64: each pair of dimensions is a complex number that is multiplied by e^(i·pos·frequency).
 * Written from the papers, with the wavelength of a pair as the central quantity; shares nothing with src/model.
 */

import type { Vector } from "./math.ts";

export interface ReferenceRope {
  /** Rotated dimensions of a head; the others pass through. */
  readonly nRot: number;
  readonly base: number;
  readonly pairs: "adjacent" | "halves";
  /** Divisor of each pair's frequency (`rope_freqs.weight`). */
  readonly factors?: ArrayLike<number> | undefined;
  /** Position interpolation (Chen et al. 2023): positions are divided by this. */
  readonly linearFactor?: number | undefined;
  readonly yarn?: ReferenceYarn | undefined;
}

/** YaRN (Peng et al. 2023, arXiv:2309.00071). */
export interface ReferenceYarn {
  readonly factor: number;
  readonly originalContext: number;
  /** Default 32. */
  readonly betaFast?: number;
  /** Default 1. */
  readonly betaSlow?: number;
  /** Default 1. */
  readonly attnFactor?: number;
}

/** Radians that pair `i` turns from one position to the next. */
export function pairFrequency(rope: ReferenceRope, i: number): number {
  const plain = 1 / (rope.base ** ((2 * i) / rope.nRot) * (rope.factors?.[i] ?? 1));
  if (rope.linearFactor !== undefined) return plain / rope.linearFactor;
  if (!rope.yarn) return plain;
  const { factor } = rope.yarn;
  const keep = yarnShare(rope, rope.yarn, i);
  return keep * plain + (1 - keep) * (plain / factor);
}

/**
 * How much of pair i's own frequency YaRN keeps. A pair that turns r times over the original context stands at index
 * i(r) = nRot/2 · log_base(context / 2πr); ggml rounds the two bounds to whole indices, outwards.
 */
function yarnShare(rope: ReferenceRope, yarn: ReferenceYarn, i: number): number {
  const indexOf = (turns: number) => {
    const wavelength = yarn.originalContext / turns;
    return ((rope.nRot / 2) * Math.log(wavelength / (2 * Math.PI))) / Math.log(rope.base);
  };
  const first = Math.max(Math.floor(indexOf(yarn.betaFast ?? 32)), 0);
  const last = Math.min(Math.ceil(indexOf(yarn.betaSlow ?? 1)), rope.nRot - 1);
  if (i <= first) return 1;
  if (i >= last) return 0;
  return (last - i) / (last - first);
}

/** What YaRN multiplies cos and sin by; 1 for everything else. */
export function ropeMagnitude(rope: ReferenceRope): number {
  return rope.yarn ? (1 + 0.1 * Math.log(rope.yarn.factor)) * (rope.yarn.attnFactor ?? 1) : 1;
}

/** Rotates every head of `x`, (nHeads * headDim), that stands at position `pos`. */
export function rotate(x: Vector, headDim: number, pos: number, rope: ReferenceRope): Vector {
  const out = x.slice();
  for (let head = 0; head < x.length; head += headDim) {
    for (let i = 0; i < rope.nRot / 2; i++) {
      const re = head + (rope.pairs === "adjacent" ? 2 * i : i);
      const im = head + (rope.pairs === "adjacent" ? 2 * i + 1 : i + rope.nRot / 2);
      const angle = pos * pairFrequency(rope, i);
      const cos = Math.cos(angle) * ropeMagnitude(rope);
      const sin = Math.sin(angle) * ropeMagnitude(rope);
      out[re] = x[re]! * cos - x[im]! * sin;
      out[im] = x[re]! * sin + x[im]! * cos;
    }
  }
  return out;
}
