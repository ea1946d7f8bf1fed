/**
 * Quantized half pages, element by element in f64: asymmetric codes, of values per token (SKVQ, algorithms.md C.1) and of
 * keys per channel (KIVI, C.2), with FP8 ranges rounded outward before coding. Written for reading; shares no code with src/ and wasm/.
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

/** A half page's parameters, unscaled E4M3 numbers. */
export interface HalfPage {
  readonly scale: number;
  /** One for each range. */
  readonly lo: number[];
  readonly step: number[];
  /** Squared error of each range, scaled. */
  readonly squaredError: number[];
}

/** Clippings tried beside none. */
const CLIP_STEPS = 4;

/** Indices into (headDim, 32) of the elements that share a range. K: a channel's tokens. V: a token's group of `g` channels. */
export function rangesOf(half: "k" | "v", headDim: number, g: number): number[][] {
  if (half === "k")
    return Array.from({ length: headDim }, (_, c) =>
      Array.from({ length: TOKENS }, (_, t) => c * TOKENS + t),
    );
  return Array.from({ length: (headDim / g) * TOKENS }, (_, range) => {
    const group = Math.floor(range / TOKENS);
    return Array.from({ length: g }, (_, i) => (group * g + i) * TOKENS + (range % TOKENS));
  });
}

/** What `x` (headDim, 32) is coded with. `clip`: the least part of a range that is kept. */
export function encodeHalf(
  x: ArrayLike<number>,
  ranges: readonly (readonly number[])[],
  bits: number,
  clip: number,
): HalfPage {
  const top = 2 ** bits - 1;
  const largest = Math.max(...Array.from(x, Math.abs));
  let exponent = -100;
  while (largest / 448 >= 2 ** exponent) exponent++;
  const half: HalfPage = { scale: 2 ** exponent, lo: [], step: [], squaredError: [] };
  const cuts = Array.from(
    { length: clip === 1 ? 1 : CLIP_STEPS + 1 },
    (_, i) => ((1 - clip) * i) / (2 * CLIP_STEPS),
  );
  for (const range of ranges) {
    const values = range.map((i) => x[i]! / half.scale);
    const least = Math.min(...values);
    const most = Math.max(...values);
    let best = { lo: 0, step: 0, error: Number.POSITIVE_INFINITY };
    for (const cut of cuts) {
      const end = cut * (most - least);
      const lo = NUMBERS.findLast((n) => n <= least + end)!;
      const step = NUMBERS.find((n) => n >= (most - end - lo) / top)!;
      const error = values.reduce((sum, value) => sum + (value - nearest(value, lo, step, top)) ** 2, 0);
      if (error < best.error) best = { lo, step, error };
    }
    half.lo.push(best.lo);
    half.step.push(best.step);
    half.squaredError.push(best.error);
  }
  return half;
}

/** The number nearest to `x` that a range can stand for. */
function nearest(x: number, lo: number, step: number, top: number): number {
  if (step === 0) return lo;
  return lo + step * Math.min(top, Math.max(0, Math.round((x - lo) / step)));
}

/** Reads code (channel, token) of a coded half page's bytes. */
export function codeAt(codes: Uint8Array, bits: number, channel: number, token: number): number {
  const bytesPerChannel = (TOKENS * bits) / 8;
  const byte = codes[channel * bytesPerChannel + (token % bytesPerChannel)]!;
  return (byte >> (bits * Math.floor(token / bytesPerChannel))) & (2 ** bits - 1);
}
