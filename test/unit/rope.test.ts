import assert from "node:assert/strict";
import { test } from "node:test";
import { ropeSpec } from "../../src/model/rope.ts";
import type { RopeConfig } from "../../src/model/rope-config.ts";
import { pairFrequency, type ReferenceRope, ropeMagnitude, rotate } from "../reference/rope.ts";

const YARN = { originalContextLength: 4096, betaFast: 32, betaSlow: 1, extFactor: 1, attnFactor: 1 };
const llama3Factors = Float32Array.from({ length: 32 }, (_, i) => Math.min(32, Math.max(1, (i - 12) * 2)));

const CASES: {
  name: string;
  config: Partial<RopeConfig>;
  factors?: Float32Array;
  reference: Partial<ReferenceRope>;
}[] = [
  { name: "plain", config: {}, reference: {} },
  {
    name: "base 1e6, partial rotation",
    config: { freqBase: 1e6, nRot: 32 },
    reference: { base: 1e6, nRot: 32 },
  },
  { name: "linear", config: { scaling: { type: "linear", factor: 4 } }, reference: { linearFactor: 4 } },
  {
    name: "Llama 3 factors",
    config: { hasFactors: true },
    factors: llama3Factors,
    reference: { factors: llama3Factors },
  },
  {
    name: "yarn",
    config: { scaling: { type: "yarn", factor: 8, ...YARN } },
    reference: { yarn: { factor: 8, originalContext: 4096 } },
  },
  {
    name: "yarn of Qwen2.5 (base 1e6, 32768 positions, factor 4)",
    config: {
      freqBase: 1e6,
      nRot: 128,
      scaling: { type: "yarn", factor: 4, ...YARN, originalContextLength: 32768 },
    },
    reference: { base: 1e6, nRot: 128, yarn: { factor: 4, originalContext: 32768 } },
  },
  {
    name: "yarn whose bounds meet the ends of a small head",
    config: { nRot: 8, scaling: { type: "yarn", factor: 16, ...YARN, originalContextLength: 64 } },
    reference: { nRot: 8, yarn: { factor: 16, originalContext: 64 } },
  },
  {
    name: "yarn with its own bounds, attention factor, and frequency factors",
    config: {
      hasFactors: true,
      scaling: { type: "yarn", factor: 2, ...YARN, betaFast: 8, betaSlow: 2, attnFactor: 0.7 },
    },
    factors: llama3Factors,
    reference: {
      factors: llama3Factors,
      yarn: { factor: 2, originalContext: 4096, betaFast: 8, betaSlow: 2, attnFactor: 0.7 },
    },
  },
];

for (const { name, config, factors, reference } of CASES) {
  test(`rope: ${name} as the reference`, () => {
    const full: RopeConfig = {
      nRot: 64,
      freqBase: 10_000,
      pairs: "halves",
      scaling: { type: "none" },
      hasFactors: false,
      ...config,
    };
    const expected: ReferenceRope = { nRot: 64, base: 10_000, pairs: "halves", ...reference };
    const { frequencies, magnitude, pairs } = ropeSpec(full, factors);
    assert.equal(frequencies.length, full.nRot / 2);
    assert.equal(pairs, "halves");
    assert.ok(Math.abs(magnitude - ropeMagnitude(expected)) < 1e-12);
    for (const [i, frequency] of frequencies.entries()) {
      const want = pairFrequency(expected, i);
      assert.ok(Math.abs(frequency - want) <= 1e-12 * want, `pair ${i}: ${frequency}, expected ${want}`);
    }
  });
}

test("rope: yarn keeps fast pairs, divides slow ones, and mixes between", () => {
  const scaling = { type: "yarn", factor: 8, ...YARN } as const;
  const base = { nRot: 64, freqBase: 10_000, pairs: "halves", hasFactors: false } as const;
  const plain = ropeSpec({ ...base, scaling: { type: "none" } }).frequencies;
  const { frequencies, magnitude } = ropeSpec({ ...base, scaling });
  const ratios = Array.from(frequencies, (f, i) => plain[i]! / f);
  assert.equal(ratios[0], 1);
  assert.ok(Math.abs(ratios.at(-1)! - 8) < 1e-9);
  assert.ok(
    ratios.every((r, i) => i === 0 || r >= ratios[i - 1]! - 1e-12),
    `${ratios}`,
  );
  assert.ok(ratios.some((r) => r > 1.5 && r < 7));
  assert.equal(magnitude, 0.1 * Math.log(8) + 1);
});

test("rope: factors must be there exactly when the model has them, and be positive", () => {
  const config: RopeConfig = {
    nRot: 8,
    freqBase: 1e4,
    pairs: "adjacent",
    scaling: { type: "none" },
    hasFactors: true,
  };
  const wrong = { code: "invalid-model", message: /rope_freqs\.weight has no values; 4 expected/ };
  assert.throws(() => ropeSpec(config), wrong);
  assert.throws(() => ropeSpec(config, [1, 1, 1]), { message: /has 3 values; 4 expected/ });
  assert.throws(() => ropeSpec({ ...config, hasFactors: false }, [1, 1, 1, 1]), {
    message: /has 4 values; none expected/,
  });
  assert.throws(() => ropeSpec(config, [1, 0, 1, 1]), { message: /rope_freqs\.weight\[1\] is 0/ });
  assert.throws(() => ropeSpec(config, [1, 1, Number.NaN, 1]), { message: /\[2\] is NaN/ });
});

test("reference rope: a quarter turn by hand, in both layouts", () => {
  // base chosen so that pair 0 turns 1 rad and pair 1 turns 0.5 rad per position: base^(-2/4) = 0.5.
  const rope = { nRot: 4, base: 4 } as const;
  const x = Float64Array.of(1, 2, 3, 4, 5);
  const pos = Math.PI / 2;
  const adjacent = rotate(x, 5, pos, { ...rope, pairs: "adjacent" });
  const halves = rotate(x, 5, pos, { ...rope, pairs: "halves" });
  const r = Math.SQRT1_2;
  // (1,2) turns by 90°: (-2,1). (3,4) by 45°: ((3-4)r, (3+4)r). The fifth dimension does not turn.
  assertClose(adjacent, [-2, 1, -r, 7 * r, 5]);
  // (1,3) by 90°: (-3,1). (2,4) by 45°: ((2-4)r, (2+4)r).
  assertClose(halves, [-3, -2 * r, 1, 6 * r, 5]);
});

test("reference rope: scores depend on the distance only", () => {
  const rope: ReferenceRope = { nRot: 8, base: 100, pairs: "halves" };
  const q = Float64Array.from({ length: 8 }, (_, i) => Math.sin(i + 1));
  const k = Float64Array.from({ length: 8 }, (_, i) => Math.cos(3 * i));
  const score = (i: number, j: number) => {
    const a = rotate(q, 8, i, rope);
    const b = rotate(k, 8, j, rope);
    return a.reduce((sum, v, d) => sum + v * b[d]!, 0);
  };
  assert.ok(Math.abs(score(7, 3) - score(1007, 1003)) < 1e-9);
  assert.ok(Math.abs(score(7, 3) - score(7, 4)) > 1e-3);
});

function assertClose(actual: ArrayLike<number>, expected: readonly number[]): void {
  assert.equal(actual.length, expected.length);
  for (const [i, want] of expected.entries()) {
    assert.ok(Math.abs(actual[i]! - want) < 1e-12, `element ${i}: ${actual[i]}, expected ${want}`);
  }
}
