/** Floats as model files hold them: F32, F16 and BF16, read in units of 16 bits. */

import type { TensorType } from "../../gguf/tensor-types.ts";

/** Whether elements of the type are floats, not blocks. */
export function isFloatType(type: TensorType): boolean {
  return type.blockElements === 1;
}

/** Exponent bits of the upper (for F16 the only) half of an element: all set in infinities and NaNs. */
const EXPONENTS: Readonly<Record<string, number>> = { F32: 0x7f80, F16: 0x7c00, BF16: 0x7f80 };

/** Index of the first of `n` elements that is infinite or NaN; -1 if there is none. */
export function firstNonFinite(type: TensorType, halves: Uint16Array, n: number): number {
  const mask = EXPONENTS[type.name]!;
  const stride = type.blockBytes / 2;
  for (let i = 0, at = stride - 1; i < n; i++, at += stride) if ((halves[at]! & mask) === mask) return i;
  return -1;
}

/** All elements as f32. */
export function toFloats(type: TensorType, halves: Uint16Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
  switch (type.name) {
    case "F32":
      return new Float32Array(halves.buffer, halves.byteOffset, halves.length / 2);
    case "F16":
      return Float32Array.from(halves, f16);
    default: {
      const words = Uint32Array.from(halves, (bits) => bits << 16);
      return new Float32Array(words.buffer);
    }
  }
}

/** A finite half float. */
function f16(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const magnitude = exponent === 0 ? fraction * 2 ** -24 : (fraction + 1024) * 2 ** (exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}
