/**
 * Quantized half pages, element by element in f64: SKVQ's asymmetric codes (algorithms.md C.1) with FP8 ranges rounded
 * outward before coding. Written for reading; shares no code with src/ and wasm/.
 */

const TOKENS = 32;

/** Every finite E4M3 number from its 8 bits: 1 sign, 4 exponent (bias 7), 3 mantissa; S.1111.111 is NaN. */
export function e4m3(bits: number): number {
  const sign = bits & 0x80 ? -1 : 1;
  const exponent = (bits >> 3) & 15;
  const mantissa = bits & 7;
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  return exponent === 0 ? sign * mantissa * 2 ** -9 : sign * (1 + mantissa / 8) * 2 ** (exponent - 7);
}

const NUMBERS = Array.from({ length: 256 }, (_, bits) => e4m3(bits))
  .filter((x) => !Number.isNaN(x))
  .sort((a, b) => a - b);

/** A half page taken apart. */
export interface HalfPage {
  readonly scale: number;
  /** (nGroups, 32), unscaled E4M3 numbers. */
  readonly lo: number[];
  readonly step: number[];
  /** (headDim, 32) before rounding to a code, so that a test can see what lies close to a half. */
  readonly unrounded: number[];
}

/** What `x` (headDim, 32) is coded as, in groups of `g` channels. */
export function encodeHalf(
  x: ArrayLike<number>,
  headDim: number,
  g: number,
  bits: number,
  clip: number,
): HalfPage {
  const top = 2 ** bits - 1;
  const largest = Math.max(...Array.from(x, Math.abs));
  let exponent = -100;
  while (largest / 448 >= 2 ** exponent) exponent++;
  const scale = 2 ** exponent;
  const lo: number[] = [];
  const step: number[] = [];
  const unrounded = new Array<number>(headDim * TOKENS);
  for (let group = 0; group < headDim / g; group++)
    for (let t = 0; t < TOKENS; t++) {
      const channels = Array.from({ length: g }, (_, i) => group * g + i);
      const values = channels.map((c) => x[c * TOKENS + t]! / scale);
      const low = NUMBERS.findLast((n) => n <= clip * Math.min(...values))!;
      const width = NUMBERS.find((n) => n >= (clip * Math.max(...values) - low) / top)!;
      lo[group * TOKENS + t] = low;
      step[group * TOKENS + t] = width;
      for (const [i, c] of channels.entries())
        unrounded[c * TOKENS + t] = width === 0 ? values[i]! - low : (values[i]! - low) / width;
    }
  return { scale, lo, step, unrounded };
}

/** Reads code (channel, token) of a coded half page's bytes. */
export function codeAt(codes: Uint8Array, bits: number, channel: number, token: number): number {
  const bytesPerChannel = (TOKENS * bits) / 8;
  const byte = codes[channel * bytesPerChannel + (token % bytesPerChannel)]!;
  return (byte >> (bits * Math.floor(token / bytesPerChannel))) & (2 ** bits - 1);
}
