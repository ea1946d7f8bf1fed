/** Quantized pages in WASM against f64: every byte, and the error that the ranges allow. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { FORMAT_CODES } from "../../src/backend/wasm/page-converter.ts";
import type { CacheFormat } from "../../src/kv/page.ts";
import { groupChannels, type QuantizedFormat, rangeCounts, wholePageBytes } from "../../src/kv/quantize.ts";
import { normals } from "../fixtures/random.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { codeAt, e4m3, encodeHalf, rangesOf } from "../reference/page-codec.ts";

const FORMATS: readonly (readonly [QuantizedFormat, number])[] = [
  ["q8", 8],
  ["q4", 4],
  ["q2", 2],
];
const TOKENS = 32;

/** A page as f32, K (headDim, 32) then V (32, headDim), and what the codec makes of it. */
interface RoundTrip {
  /** K half and V half. */
  readonly halves: readonly [Uint8Array, Uint8Array];
  readonly decoded: Float32Array;
  readonly status: number;
}

function roundTrip(wasm: WasmModule, page: Float32Array, bits: number, clip: number): RoundTrip {
  const headDim = page.length / (2 * TOKENS);
  const format = FORMAT_CODES[`q${bits}` as CacheFormat];
  const bytes = wasm.call("kv_page_bytes", headDim, format);
  const keyBytes = 16 + 2 * rangeCounts(headDim).k + (headDim * TOKENS * bits) / 8;
  const hot = wasm.alloc(page.byteLength, "test");
  const cold = wasm.alloc(bytes, "test");
  wasm.f32(hot, page.length).set(page);
  const status = wasm.call("kv_convert_pages", hot, FORMAT_CODES.f32, 1, headDim, clip, format, cold);
  wasm.f32(hot, page.length).fill(Number.NaN);
  if (status === 0)
    assert.equal(wasm.call("kv_convert_pages", cold, format, 1, headDim, 1, FORMAT_CODES.f32, hot), 0);
  const whole = wasm.bytes(cold, bytes).slice();
  const decoded = wasm.f32(hot, page.length).slice();
  wasm.free(hot);
  wasm.free(cold);
  return { halves: [whole.subarray(0, keyBytes), whole.subarray(keyBytes)], decoded, status };
}

/** V of a page, or its decoded form, as (headDim, 32). */
function byChannel(v: Float32Array): Float32Array {
  const headDim = v.length / TOKENS;
  return Float32Array.from(v, (_, i) => v[(i % TOKENS) * headDim + Math.floor(i / TOKENS)]!);
}

/** Checks one half, x and decoded as (headDim, 32). */
function checkHalf(
  half: "k" | "v",
  bytes: Uint8Array,
  x: Float32Array,
  decoded: Float32Array,
  bits: number,
  clip: number,
) {
  const headDim = x.length / TOKENS;
  const ranges = rangesOf(half, headDim, groupChannels(headDim));
  const expected = encodeHalf(x, ranges, bits, clip);
  const nRanges = ranges.length;
  const rangeOf = new Map(ranges.flatMap((indices, range) => indices.map((i) => [i, range])));
  const scale = new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true);
  assert.equal(scale, expected.scale);
  const lo = Array.from(bytes.subarray(16, 16 + nRanges), e4m3);
  const step = Array.from(bytes.subarray(16 + nRanges, 16 + 2 * nRanges), e4m3);
  // In f32 a range may be one FP8 number off where it lies on the edge of two, and two factors about equally good.
  assert.ok(differing(lo, expected.lo) <= (clip === 1 ? 0 : 0.03 * nRanges), "lo");
  assert.ok(differing(step, expected.step) <= (clip === 1 ? 0.02 : 0.05) * nRanges, "step");
  const codes = bytes.subarray(16 + 2 * nRanges);
  const top = 2 ** bits - 1;
  let squaredError = 0;
  for (let i = 0; i < x.length; i++) {
    const range = rangeOf.get(i)!;
    const [low, width] = [lo[range]! * scale, step[range]! * scale];
    const code = codeAt(codes, bits, Math.floor(i / TOKENS), i % TOKENS);
    const stands = low + width * code;
    const rounding = 2 ** -22 * (Math.abs(low) + width * top);
    assert.ok(Math.abs(decoded[i]! - stands) <= rounding, `decoded ${decoded[i]} of ${stands}`);
    // Outside the clipped range it is the nearer end.
    const inside = Math.min(low + width * top, Math.max(low, x[i]!));
    assert.ok(Math.abs(stands - inside) <= width * 0.5001, `${stands} of ${x[i]}, step ${width}`);
    if (clip === 1) assert.ok(Math.abs(inside - x[i]!) <= 2 ** -20 * Math.abs(x[i]!), `${x[i]} was clipped`);
    squaredError += ((stands - x[i]!) / scale) ** 2;
  }
  const least = expected.squaredError.reduce((a, b) => a + b);
  assert.ok(squaredError <= 1.001 * least, `squared error ${squaredError} of ${least}`);
}

function differing(a: readonly number[], b: readonly number[]): number {
  return a.filter((x, i) => x !== b[i]).length;
}

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`quantized pages equal f64, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const [format, bits] of FORMATS)
      for (const headDim of [8, 16, 24, 64, 80, 128, 256])
        for (const clip of [1, 0.6])
          test(`${format}, headDim ${headDim}, clip ${clip}`, async () => {
            const wasm = await instantiate(variant);
            const half = TOKENS * headDim;
            for (const size of [1, 1e-4, 3e5]) {
              const page = normals(2 * half, headDim + bits, size);
              const { halves, decoded, status } = roundTrip(wasm, page, bits, clip);
              assert.equal(status, 0);
              assert.equal(halves[0].length + halves[1].length, wholePageBytes(format, headDim));
              checkHalf("k", halves[0], page.subarray(0, half), decoded.subarray(0, half), bits, clip);
              checkHalf(
                "v",
                halves[1],
                byChannel(page.subarray(half)),
                byChannel(decoded.subarray(half)),
                bits,
                clip,
              );
            }
          });

    test("a group of equal channels: within half a step, no division by zero", async () => {
      const wasm = await instantiate(variant);
      for (const [, bits] of FORMATS)
        for (const value of [0, 1, -0.3, 447, 1e-20, -3e30]) {
          const page = new Float32Array(2 * TOKENS * 64).fill(value);
          const { decoded } = roundTrip(wasm, page, bits, 1);
          // lo is off by up to an eighth of the value, which the step covers.
          const allowed = Math.abs(value) / 8 / (2 ** bits - 1) + 2 ** -109;
          for (const x of decoded) assert.ok(Math.abs(x - page[0]!) <= allowed, `${x} of ${value}`);
        }
    });

    test("an element that is not finite is found, the first of several halves", async () => {
      const wasm = await instantiate(variant);
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const page = normals(2 * TOKENS * 16, 1);
        page[TOKENS * 16 + 77] = bad;
        assert.equal(roundTrip(wasm, page, 4, 1).status, 2, "the values");
        page[5] = bad;
        assert.equal(roundTrip(wasm, page, 4, 1).status, 1, "the keys");
      }
    });

    test("bad arguments are refused", async () => {
      const wasm = await instantiate(variant);
      const ptr = wasm.alloc(1 << 20, "test");
      for (const [headDim, format, clip] of [
        [12, FORMAT_CODES.q4, 1],
        [264, FORMAT_CODES.q4, 1],
        [64, 5, 1],
        [64, FORMAT_CODES.q4, 0],
        [64, FORMAT_CODES.q4, 1.1],
      ] as const) {
        const out = ptr + (1 << 19);
        assert.equal(wasm.call("kv_convert_pages", ptr, FORMAT_CODES.f32, 1, headDim, clip, format, out), -2);
      }
    });
  });
