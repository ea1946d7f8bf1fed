// @ts-check
/**
 * Simple quantizers for every ggml tensor type that Inlay runs: one function per type that encodes one block.
 *
 * They make valid, reasonably accurate blocks with all bit fields in use; they do not try to match ggml's own
 * quantizers, which search harder. Layouts are described where they are written; test/reference/dequantize.ts is
 * the independent reading of the same formats.
 */

import { fromF16, toBf16, toF16 } from "./half.mjs";
import { encodeQ2K, encodeQ3K, encodeQ4K, encodeQ5K, encodeQ6K } from "./k-quants.mjs";
import { bestAffine, bestSymmetric } from "./scales.mjs";

/** @typedef {import("./model.mjs").BlockEncoder} BlockEncoder */
/** @typedef {import("./model.mjs").Quantizer} Quantizer */
/** @typedef {import("./model.mjs").TypeName} TypeName */

/** @type {Readonly<Record<TypeName, Quantizer>>} */
export const QUANTIZERS = {
  F32: { id: 0, blockElements: 1, blockBytes: 4, encode: encodeF32 },
  F16: {
    id: 1,
    blockElements: 1,
    blockBytes: 2,
    encode: (x, from, out, at) => put16(out, at, toF16(x[from])),
  },
  BF16: {
    id: 30,
    blockElements: 1,
    blockBytes: 2,
    encode: (x, from, out, at) => put16(out, at, toBf16(x[from])),
  },
  Q4_0: { id: 2, blockElements: 32, blockBytes: 18, encode: encodeQ4_0 },
  Q4_1: { id: 3, blockElements: 32, blockBytes: 20, encode: encodeQ4_1 },
  Q5_0: { id: 6, blockElements: 32, blockBytes: 22, encode: encodeQ5_0 },
  Q5_1: { id: 7, blockElements: 32, blockBytes: 24, encode: encodeQ5_1 },
  Q8_0: { id: 8, blockElements: 32, blockBytes: 34, encode: encodeQ8_0 },
  Q2_K: { id: 10, blockElements: 256, blockBytes: 84, encode: encodeQ2K },
  Q3_K: { id: 11, blockElements: 256, blockBytes: 110, encode: encodeQ3K },
  Q4_K: { id: 12, blockElements: 256, blockBytes: 144, encode: encodeQ4K },
  Q5_K: { id: 13, blockElements: 256, blockBytes: 176, encode: encodeQ5K },
  Q6_K: { id: 14, blockElements: 256, blockBytes: 210, encode: encodeQ6K },
  IQ4_NL: { id: 20, blockElements: 32, blockBytes: 18, encode: encodeIQ4NL },
};

/**
 * Encodes all of `x`, whose length must be a multiple of the type's block.
 * @param {TypeName} type
 * @param {Float32Array} x
 * @returns {Uint8Array}
 */
export function quantize(type, x) {
  const { blockElements, blockBytes, encode } = QUANTIZERS[type];
  const out = new Uint8Array((x.length / blockElements) * blockBytes);
  for (let from = 0, at = 0; from < x.length; from += blockElements, at += blockBytes)
    encode(x, from, out, at);
  return out;
}

function put16(/** @type {Uint8Array} */ out, /** @type {number} */ at, /** @type {number} */ value) {
  out[at] = value & 255;
  out[at + 1] = value >>> 8;
}

/** Stores `x` as f16 and returns what the reader will see. */
function putF16(/** @type {Uint8Array} */ out, /** @type {number} */ at, /** @type {number} */ x) {
  const half = toF16(x);
  put16(out, at, half);
  return fromF16(half);
}

/** The level nearest to `x / d`, in [low, high]; 0 when d is 0. */
function level(
  /** @type {number} */ x,
  /** @type {number} */ d,
  /** @type {number} */ low,
  /** @type {number} */ high,
) {
  return d === 0 ? 0 : Math.min(high, Math.max(low, Math.round(x / d)));
}

/** @type {BlockEncoder} */
function encodeF32(x, from, out, at) {
  new DataView(out.buffer, out.byteOffset).setFloat32(at, x[from], true);
}

/** @type {BlockEncoder} f16 d, 16 bytes: element j in the low nibble of byte j, j + 16 in the high; value (q - 8) d. */
function encodeQ4_0(x, from, out, at) {
  const d = putF16(out, at, bestSymmetric(x, from, 32, -8, 7));
  for (let j = 0; j < 16; j++) {
    const low = level(x[from + j], d, -8, 7) + 8;
    const high = level(x[from + j + 16], d, -8, 7) + 8;
    out[at + 2 + j] = low | (high << 4);
  }
}

/** @type {BlockEncoder} f16 d, f16 m, nibbles as Q4_0; value q d + m. */
function encodeQ4_1(x, from, out, at) {
  const best = bestAffine(x, from, 32, 15);
  const d = putF16(out, at, best.d);
  const m = putF16(out, at + 2, best.min);
  for (let j = 0; j < 16; j++) {
    const low = level(x[from + j] - m, d, 0, 15);
    const high = level(x[from + j + 16] - m, d, 0, 15);
    out[at + 4 + j] = low | (high << 4);
  }
}

/** Five-bit levels: low four bits as nibbles at `at + 4`, the fifth bits of elements 0..31 as a u32 at `at`. */
function putFiveBits(
  /** @type {Uint8Array} */ out,
  /** @type {number} */ at,
  /** @type {number[]} */ levels,
) {
  for (let j = 0; j < 16; j++) out[at + 4 + j] = (levels[j] & 15) | ((levels[j + 16] & 15) << 4);
  for (let j = 0; j < 32; j++) out[at + (j >> 3)] |= (levels[j] >> 4) << (j & 7);
}

/** @type {BlockEncoder} f16 d, u32 of fifth bits, nibbles; value (q - 16) d. */
function encodeQ5_0(x, from, out, at) {
  const d = putF16(out, at, bestSymmetric(x, from, 32, -16, 15));
  putFiveBits(
    out,
    at + 2,
    Array.from({ length: 32 }, (_, j) => level(x[from + j], d, -16, 15) + 16),
  );
}

/** @type {BlockEncoder} f16 d, f16 m, u32 of fifth bits, nibbles; value q d + m. */
function encodeQ5_1(x, from, out, at) {
  const best = bestAffine(x, from, 32, 31);
  const d = putF16(out, at, best.d);
  const m = putF16(out, at + 2, best.min);
  putFiveBits(
    out,
    at + 4,
    Array.from({ length: 32 }, (_, j) => level(x[from + j] - m, d, 0, 31)),
  );
}

/** @type {BlockEncoder} f16 d, 32 int8; value q d. */
function encodeQ8_0(x, from, out, at) {
  let largest = 0;
  for (let j = 0; j < 32; j++) largest = Math.max(largest, Math.abs(x[from + j]));
  const d = putF16(out, at, largest / 127);
  for (let j = 0; j < 32; j++) out[at + 2 + j] = level(x[from + j], d, -127, 127) & 255;
}

/** IQ4_NL's levels: closer together near zero, where most weights are. */
const NONLINEAR_LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** @type {BlockEncoder} f16 d, nibbles as Q4_0 that index the levels; value level[q] d. */
function encodeIQ4NL(x, from, out, at) {
  const d = putF16(out, at, bestSymmetric(x, from, 32, -127, 113));
  const nearest = (/** @type {number} */ value) => {
    const wanted = d === 0 ? 0 : value / d;
    let best = 0;
    for (let q = 1; q < 16; q++) {
      if (Math.abs(NONLINEAR_LEVELS[q] - wanted) < Math.abs(NONLINEAR_LEVELS[best] - wanted)) best = q;
    }
    return best;
  };
  for (let j = 0; j < 16; j++) out[at + 2 + j] = nearest(x[from + j]) | (nearest(x[from + j + 16]) << 4);
}
