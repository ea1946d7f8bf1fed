/**
 * How llama.cpp rounds the input of a matrix product, which depends on the type of the weights: integer dot products
 * need integer inputs. With this rounding the reference reproduces llama.cpp's q8_0 logits; without it, it computes
 * what the model file says. (ggml-cpu's `vec_dot_type` table; quantize_row_q8_0 and quantize_row_q8_K.)
 */

import type { Vector } from "./math.ts";

const F32 = 0;
const F16 = 1;
const BF16 = 30;
const K_TYPES = [10, 11, 12, 13, 14];

/** `x` as it enters a product with weights of ggml type `typeId`. */
export function roundInput(typeId: number, x: Vector): Vector {
  if (typeId === F32) return x;
  if (typeId === F16) return x.map(nearestF16);
  if (typeId === BF16) return x.map(nearestBf16);
  return K_TYPES.includes(typeId) ? perBlock(x, 256, (scale) => scale) : perBlock(x, 32, nearestF16);
}

/** int8 levels of the largest magnitude / 127 in each block; the levels come from the scale before it is rounded. */
function perBlock(x: Vector, size: number, storeScale: (scale: number) => number): Vector {
  const out = new Float64Array(x.length);
  for (let from = 0; from < x.length; from += size) {
    const block = x.subarray(from, from + size);
    const scale = Math.fround(block.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 127);
    if (scale === 0) continue;
    const inverse = Math.fround(1 / scale);
    for (const [i, v] of block.entries())
      out[from + i] = halfAway(Math.fround(v * inverse)) * storeScale(scale);
  }
  return out;
}

/** C's roundf: halves go away from zero. With f32 products they do occur, and decide which token follows. */
function halfAway(x: number): number {
  return Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
}

/** Candidates are compared rather than bits shifted: the two neighbours of v on the f16 grid. */
function nearestF16(v: number): number {
  const exponent = Math.max(-14, Math.floor(Math.log2(Math.abs(v))));
  const spacing = 2 ** (exponent - 10);
  return v === 0 ? 0 : nearestEven(v / spacing) * spacing;
}

function nearestBf16(v: number): number {
  if (v === 0) return 0;
  const spacing = 2 ** (Math.floor(Math.log2(Math.abs(v))) - 7);
  return nearestEven(v / spacing) * spacing;
}

/** The nearest whole number, the even one of two. */
function nearestEven(x: number): number {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 === 0 ? down : down + 1;
}
