// @ts-check
/** 16-bit floating point: f16 (IEEE 754 binary16) and bf16, both rounded to nearest, ties to even. */

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The bits of the f16 nearest to `x`; too large becomes infinity. */
export function toF16(/** @type {number} */ x) {
  float[0] = x;
  const sign = (bits[0] >>> 16) & 0x8000;
  const magnitude = Math.abs(float[0]);
  if (Number.isNaN(magnitude)) return sign | 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  // Spacing of f16 numbers around `magnitude`; 2^-24 for the subnormal ones.
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude)));
  const spacing = 2 ** (exponent - 10);
  const steps = roundHalfToEven(magnitude / spacing);
  // Bits count in steps from zero, so a carry into the next exponent is right by itself.
  return sign | (((exponent + 14) << 10) + steps);
}

/** The value of f16 bits. */
export function fromF16(/** @type {number} */ half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 31;
  const fraction = half & 0x3ff;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The bits of the bf16 nearest to `x`. */
export function toBf16(/** @type {number} */ x) {
  float[0] = x;
  const all = bits[0];
  if (Number.isNaN(float[0])) return 0x7fc0;
  return ((all + 0x7fff + ((all >>> 16) & 1)) >>> 16) & 0xffff;
}

function roundHalfToEven(/** @type {number} */ x) {
  const down = Math.floor(x);
  const rest = x - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}
