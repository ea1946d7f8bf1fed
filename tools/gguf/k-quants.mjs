// @ts-check
/**
 * The K types: super-blocks of 256 numbers whose sub-blocks of 16 or 32 have small integer scales, which one or two
 * f16 numbers turn into real ones.
 *
 *   with minimum   value = d * scale_j * q - dmin * min_j     Q2_K, Q4_K, Q5_K
 *   symmetric      value = d * scale_j * q                    Q3_K, Q6_K
 */

import { fromF16, toF16 } from "./half.mjs";
import { bestSymmetric } from "./scales.mjs";

/** @typedef {import("./model.mjs").BlockEncoder} BlockEncoder */

const SUPER = 256;

/**
 * Stores `x` as f16 and returns what the reader will see.
 * @param {Uint8Array} out
 * @param {number} at
 * @param {number} x
 */
function putF16(out, at, x) {
  const half = toF16(x);
  out[at] = half & 255;
  out[at + 1] = half >>> 8;
  return fromF16(half);
}

/**
 * Scales, minima and levels of a type with minima. d and dmin are written as f16 at the given places.
 * @param {Float32Array} x
 * @param {number} from
 * @param {{ sub: number, maxLevel: number, maxScale: number }} shape
 * @param {Uint8Array} out
 * @param {number} dAt
 * @param {number} dminAt
 */
function fitWithMinimum(x, from, { sub, maxLevel, maxScale }, out, dAt, dminAt) {
  const nSub = SUPER / sub;
  const scale = new Float64Array(nSub);
  const depth = new Float64Array(nSub);
  for (let j = 0; j < nSub; j++) {
    let min = 0;
    let max = 0;
    for (let i = from + j * sub; i < from + (j + 1) * sub; i++) {
      if (x[i] < min) min = x[i];
      if (x[i] > max) max = x[i];
    }
    scale[j] = (max - min) / maxLevel;
    depth[j] = -min;
  }
  const d = putF16(out, dAt, Math.max(...scale) / maxScale);
  const dmin = putF16(out, dminAt, Math.max(...depth) / maxScale);
  const toLevel = (/** @type {number} */ value, /** @type {number} */ unit, /** @type {number} */ top) =>
    unit === 0 ? 0 : Math.min(top, Math.max(0, Math.round(value / unit)));
  const scales = Array.from(scale, (s) => toLevel(s, d, maxScale));
  const minima = Array.from(depth, (m) => toLevel(m, dmin, maxScale));
  const levels = new Uint8Array(SUPER);
  for (let i = 0; i < SUPER; i++) {
    const j = Math.floor(i / sub);
    levels[i] = toLevel(x[from + i] + dmin * minima[j], d * scales[j], maxLevel);
  }
  return { scales, minima, levels };
}

/**
 * Scales and levels of a symmetric type, levels shifted so that the lowest is 0. Writes d as f16 at `dAt`.
 * @param {Float32Array} x
 * @param {number} from
 * @param {{ half: number, lowestScale: number }} shape  levels [-half, half), scales [lowestScale, -lowestScale)
 * @param {Uint8Array} out
 * @param {number} dAt
 */
function fitSymmetric(x, from, { half, lowestScale }, out, dAt) {
  const scale = Array.from({ length: 16 }, (_, j) => bestSymmetric(x, from + j * 16, 16, -half, half - 1));
  const extreme = scale.reduce((most, s) => (Math.abs(s) > Math.abs(most) ? s : most), 0);
  const d = putF16(out, dAt, extreme / lowestScale);
  const scales = scale.map((s) =>
    d === 0 ? 0 : Math.min(-lowestScale - 1, Math.max(lowestScale, Math.round(s / d))),
  );
  const levels = new Uint8Array(SUPER);
  for (let i = 0; i < SUPER; i++) {
    const unit = d * scales[i >> 4];
    levels[i] = half + (unit === 0 ? 0 : Math.min(half - 1, Math.max(-half, Math.round(x[from + i] / unit))));
  }
  return { scales, levels };
}

/**
 * @type {BlockEncoder}
 * Q2_K: 16 bytes (scale low, min high nibble), 64 bytes of two-bit levels, f16 d, f16 dmin. A half of 128 numbers has
 * 32 bytes; bits 2k, 2k+1 of byte l are number 32 k + l of that half.
 */
export function encodeQ2K(x, from, out, at) {
  const { scales, minima, levels } = fitWithMinimum(
    x,
    from,
    { sub: 16, maxLevel: 3, maxScale: 15 },
    out,
    at + 80,
    at + 82,
  );
  for (let j = 0; j < 16; j++) out[at + j] = scales[j] | (minima[j] << 4);
  putTwoBits(out, at + 16, levels);
}

/** Bits 0 and 1 of 256 levels, in the order of Q2_K and Q3_K. */
function putTwoBits(
  /** @type {Uint8Array} */ out,
  /** @type {number} */ at,
  /** @type {Uint8Array} */ levels,
) {
  for (let i = 0; i < SUPER; i++) {
    const byte = (i >> 7) * 32 + (i & 31);
    out[at + byte] |= (levels[i] & 3) << (2 * ((i >> 5) & 3));
  }
}

/**
 * @type {BlockEncoder}
 * Q3_K: 32 bytes of third bits (bit k of byte l is number 32 k + l), 64 bytes of low two bits as Q2_K, 12 bytes of
 * six-bit scales plus 32, f16 d.
 */
export function encodeQ3K(x, from, out, at) {
  const { scales, levels } = fitSymmetric(x, from, { half: 4, lowestScale: -32 }, out, at + 108);
  for (let i = 0; i < SUPER; i++) out[at + (i & 31)] |= (levels[i] >> 2) << (i >> 5);
  putTwoBits(out, at + 32, levels);
  for (let j = 0; j < 16; j++) {
    const six = scales[j] + 32;
    // Low four bits: nibble j of bytes 0..7 (second eight in the high nibbles). High two: bytes 8..11, four each.
    out[at + 96 + (j & 7)] |= (six & 15) << (j < 8 ? 0 : 4);
    out[at + 104 + (j & 3)] |= (six >> 4) << (2 * (j >> 2));
  }
}

/**
 * Eight six-bit scales and minima in 12 bytes, as Q4_K and Q5_K have them: the first four scales and minima fill the
 * low six bits of bytes 0..3 and 4..7; of the other four, bytes 8..11 hold the low nibbles and the free top bits of
 * bytes 0..7 the rest.
 * @param {Uint8Array} out
 * @param {number} at
 * @param {number[]} scales
 * @param {number[]} minima
 */
function putSixBitPairs(out, at, scales, minima) {
  for (let j = 0; j < 4; j++) {
    out[at + j] = scales[j] | ((scales[j + 4] >> 4) << 6);
    out[at + 4 + j] = minima[j] | ((minima[j + 4] >> 4) << 6);
    out[at + 8 + j] = (scales[j + 4] & 15) | ((minima[j + 4] & 15) << 4);
  }
}

/** Low nibbles of 256 levels in 128 bytes: of each 64 numbers the first 32 in the low, the others in the high nibble. */
function putNibbles(
  /** @type {Uint8Array} */ out,
  /** @type {number} */ at,
  /** @type {Uint8Array} */ levels,
) {
  for (let i = 0; i < SUPER; i++) out[at + (i >> 6) * 32 + (i & 31)] |= (levels[i] & 15) << (i & 32 ? 4 : 0);
}

/** @type {BlockEncoder} Q4_K: f16 d, f16 dmin, 12 bytes of scales and minima, 128 bytes of nibbles. */
export function encodeQ4K(x, from, out, at) {
  const { scales, minima, levels } = fitWithMinimum(
    x,
    from,
    { sub: 32, maxLevel: 15, maxScale: 63 },
    out,
    at,
    at + 2,
  );
  putSixBitPairs(out, at + 4, scales, minima);
  putNibbles(out, at + 16, levels);
}

/** @type {BlockEncoder} Q5_K: as Q4_K with 32 bytes of fifth bits (bit k of byte l is number 32 k + l) before the nibbles. */
export function encodeQ5K(x, from, out, at) {
  const { scales, minima, levels } = fitWithMinimum(
    x,
    from,
    { sub: 32, maxLevel: 31, maxScale: 63 },
    out,
    at,
    at + 2,
  );
  putSixBitPairs(out, at + 4, scales, minima);
  for (let i = 0; i < SUPER; i++) out[at + 16 + (i & 31)] |= (levels[i] >> 4) << (i >> 5);
  putNibbles(out, at + 48, levels);
}

/**
 * @type {BlockEncoder}
 * Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales, f16 d. In a half of 128 numbers, number
 * 32 k + l has its nibble in byte l + 32 (k mod 2), low for k < 2, and its pair in bits 2k of byte l.
 */
export function encodeQ6K(x, from, out, at) {
  const { scales, levels } = fitSymmetric(x, from, { half: 32, lowestScale: -128 }, out, at + 208);
  for (let i = 0; i < SUPER; i++) {
    const half = i >> 7;
    const k = (i >> 5) & 3;
    const l = i & 31;
    out[at + half * 64 + (k & 1) * 32 + l] |= (levels[i] & 15) << (k < 2 ? 0 : 4);
    out[at + 128 + half * 32 + l] |= (levels[i] >> 4) << (2 * k);
  }
  for (let j = 0; j < 16; j++) out[at + 192 + j] = scales[j] & 255;
}
