/** The small operations and attention of the reference against numbers worked out by hand or by identity. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { seededRandom } from "../../tools/gguf/model.mjs";
import { type AttentionInput, attention } from "../reference/attention.ts";
import { roundInput } from "../reference/input-rounding.ts";
import { argmax, gelu, logSoftmax, logSumExp, matVec, rmsNorm, silu, softmax } from "../reference/math.ts";

function assertClose(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-12): void {
  assert.equal(actual.length, expected.length);
  for (let i = 0; i < expected.length; i++) {
    assert.ok(
      Math.abs(actual[i]! - expected[i]!) <= tolerance,
      `element ${i}: ${actual[i]}, expected ${expected[i]}`,
    );
  }
}

test("small operations by hand", () => {
  // mean of squares of (3, 4) is 12.5
  assertClose(rmsNorm(Float64Array.of(3, 4), Float64Array.of(1, 2), 0), [
    3 / Math.sqrt(12.5),
    8 / Math.sqrt(12.5),
  ]);
  assertClose(rmsNorm(Float64Array.of(0, 0), Float64Array.of(1, 1), 1e-5), [0, 0]);
  assertClose(matVec(Float64Array.of(1, 2, 3, 4, 5, 6), Float64Array.of(1, -1, 2)), [5, 11]);
  assertClose([silu(0), silu(1), silu(-800)], [0, 1 / (1 + Math.exp(-1)), 0]);
  // From the tanh form: gelu(1) = 0.5 (1 + tanh(0.7978845608 * 1.044715)).
  assertClose([gelu(0), gelu(1), gelu(-10)], [0, 0.8411919906082768, 0], 1e-9);
  assertClose(softmax(Float64Array.of(1000, 1000)), [0.5, 0.5]);
  assertClose(logSoftmax(Float64Array.of(0, Math.log(3))), [-Math.log(4), Math.log(0.75)]);
  assert.equal(logSumExp([]), -Infinity);
  assert.equal(logSumExp([-Infinity, -Infinity]), -Infinity);
  assert.equal(argmax([1, 3, 3, 2]), 1);
});

test("input rounding: int8 per 32 with an f16 scale, per 256 with an f32 scale, and halves", () => {
  // The largest, 254, sets the scale to 2; 3 lies between levels 1 and 2 and goes up.
  const x = new Float64Array(256).fill(3);
  x[0] = -254;
  const q8 = roundInput(8, x);
  assert.deepEqual([q8[0], q8[1], q8[31]], [-254, 4, 4]);
  // The second block of 32 has its own scale, 3 / 127, stored as the nearest f16, 3.0239e-2... times 127.
  assert.ok(Math.abs(q8[32]! - 3) < 3 * 2 ** -11 && q8[32] !== 3);
  assert.deepEqual([roundInput(12, x)[0], roundInput(12, x)[200]], [-254, 4]);
  const tie = 1 + 2 ** -11;
  assert.deepEqual(Array.from(roundInput(1, Float64Array.of(tie, tie + 2 ** -30, 0))), [1, 1 + 2 ** -10, 0]);
  assert.deepEqual(Array.from(roundInput(30, Float64Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8))), [
    1,
    1 + 2 ** -6,
  ]);
  assert.equal(roundInput(0, x), x);
  assert.deepEqual(roundInput(2, new Float64Array(32)), new Float64Array(32));
});

function randomInput(nQueries: number, nKeys: number, shape: Partial<AttentionInput> = {}): AttentionInput {
  const random = seededRandom(5);
  const { nHeads = 4, nKvHeads = 2, headDim = 8 } = shape;
  const numbers = (n: number) => Float64Array.from({ length: n }, () => random.gauss());
  return {
    q: numbers(nQueries * nHeads * headDim),
    k: numbers(nKeys * nKvHeads * headDim),
    v: numbers(nKeys * nKvHeads * headDim),
    nHeads,
    nKvHeads,
    headDim,
    ...shape,
  };
}

test("attention by hand: two keys, one head", () => {
  // Scores are 0 and ln 3 (scale 1): weights 1/4 and 3/4.
  const { out, lse } = attention({
    q: [1, 0],
    k: [0, 5, Math.log(3), -5],
    v: [4, 0, 0, 8],
    nHeads: 1,
    nKvHeads: 1,
    headDim: 2,
    scale: 1,
  });
  assertClose(out, [1, 6]);
  assertClose(lse, [Math.log(4)]);
});

test("attention: one visible key is copied", () => {
  const input = randomInput(3, 3);
  const first = attention(input).out.subarray(0, 4 * 8);
  for (let head = 0; head < 4; head++) {
    const kvHead = head >> 1;
    assertClose(
      first.subarray(head * 8, head * 8 + 8),
      (input.v as Float64Array).subarray(kvHead * 8, kvHead * 8 + 8),
    );
  }
  const window = attention({ ...input, window: 1 }).out;
  assertClose(
    window.subarray(2 * 32 + 24, 2 * 32 + 32),
    (input.v as Float64Array).subarray(2 * 16 + 8, 2 * 16 + 16),
  );
});

test("attention: later keys do not matter, a query on its own gives the same", () => {
  const input = randomInput(6, 6);
  const changed = { ...input, k: Float64Array.from(input.k), v: Float64Array.from(input.v) };
  changed.k.fill(9, 4 * 16);
  changed.v.fill(9, 4 * 16);
  assertClose(attention(changed).out.subarray(0, 4 * 32), attention(input).out.subarray(0, 4 * 32));
  const last = { ...input, q: (input.q as Float64Array).subarray(5 * 32) };
  assertClose(attention(last).out, attention(input).out.subarray(5 * 32));
  assertClose(attention({ ...last, qStart: 5 }).out, attention(input).out.subarray(5 * 32));
});

test("attention: a window is the same as keeping only its keys, and parts merge by log-sum-exp", () => {
  const input = randomInput(7, 20);
  const windowed = attention({ ...input, window: 5 });
  const kept = attention({ ...input, isKept: (query, key) => query - key < 5 });
  assertClose(windowed.out, kept.out);
  assertClose(windowed.lse, kept.lse);

  const whole = attention(input);
  const even = attention({ ...input, isKept: (_, key) => key % 2 === 0 });
  const odd = attention({ ...input, isKept: (_, key) => key % 2 === 1 });
  const merged = whole.out.map((_, i) => {
    const row = Math.floor(i / 8);
    return (
      even.out[i]! * Math.exp(even.lse[row]! - whole.lse[row]!) +
      odd.out[i]! * Math.exp(odd.lse[row]! - whole.lse[row]!)
    );
  });
  assertClose(merged, whole.out);
});

test("attention: soft cap bounds the scores; nothing visible gives zeros", () => {
  const input = randomInput(1, 50);
  const capped = attention({ ...input, scale: 1e6, softcap: 2 });
  // All scores lie in [-2, 2].
  assert.ok(capped.lse.every((l) => l >= Math.log(50) - 2 && l <= Math.log(50) + 2));
  const nothing = attention({ ...input, isKept: () => false });
  assert.ok(nothing.out.every((v) => v === 0) && nothing.lse.every((l) => l === -Infinity));
});
