import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { expNonPositive } from "../../src/generate/exp.ts";
import { Penalties } from "../../src/generate/penalties.ts";
import { MAX_SEED, Random, randomSeed, splitmix64, xoshiro128ss } from "../../src/generate/random.ts";
import {
  idOfRank,
  largestRanks,
  MAX_VOCAB,
  nextAtLeast,
  ranksFrom,
  shortestBeginning,
} from "../../src/generate/ranks.ts";
import { applyTokenBits } from "../../src/generate/token-mask.ts";

describe("random numbers", () => {
  test("xoshiro128** gives the published sequence of state 0, 1, 2, 3", () => {
    const state = Uint32Array.of(0, 1, 2, 3);
    const expected = [
      5760, 17280, 2966400, 32451840, 2604340873, 3891234569, 1254043636, 216095511, 3291724652, 2070429911,
    ];
    assert.deepEqual(
      expected.map(() => xoshiro128ss(state)),
      expected,
    );
  });
  test("splitmix64 gives the published sequence of seed 1234567", () => {
    let state = 1234567n;
    for (const expected of [6457827717110365317n, 3203168211198807973n, 9817491932198370423n]) {
      const [next, output] = splitmix64(state);
      assert.equal(output, expected);
      state = next;
    }
  });
  test("uniform in [0, 1): mean, variance and the 16 sixteenths", () => {
    const random = new Random(2024);
    const n = 100_000;
    const counts = new Array<number>(16).fill(0);
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < n; i++) {
      const u = random.next();
      assert.ok(u >= 0 && u < 1);
      counts[Math.floor(u * 16)]!++;
      sum += u;
      squares += u * u;
    }
    // Standard errors: 0.00091 of the mean, 0.00094 of the second moment.
    assert.ok(Math.abs(sum / n - 1 / 2) < 0.004);
    assert.ok(Math.abs(squares / n - 1 / 3) < 0.004);
    const chiSquare = counts.reduce((total, count) => total + (count - n / 16) ** 2 / (n / 16), 0);
    assert.ok(chiSquare < 37.7, `chi-square ${chiSquare}; 15 degrees of freedom, 0.1 %`);
  });
  test("the largest and smallest seed work and differ", () => {
    assert.notEqual(new Random(0).next(), new Random(MAX_SEED).next());
  });
  test("random seeds are in range and differ", () => {
    const seeds = Array.from({ length: 100 }, randomSeed);
    assert.ok(seeds.every((seed) => Number.isSafeInteger(seed) && seed >= 0));
    assert.equal(new Set(seeds).size, 100);
  });
});

describe("expNonPositive", () => {
  test("is within 4 ulps of Math.exp", () => {
    const random = new Random(5);
    for (let i = 0; i < 200_000; i++) {
      const x = -random.next() * (i % 2 === 0 ? 700 : 20);
      const expected = Math.exp(x);
      assert.ok(Math.abs(expNonPositive(x) - expected) <= 4 * 2 ** -52 * expected, `exp(${x})`);
    }
  });
  for (const [x, expected] of [
    [0, 1],
    [-0, 1],
    [-1e-300, 1],
    [-1000, 0],
    [-1e300, 0],
    [-Infinity, 0],
  ] as const)
    test(`exp(${x})`, () => assert.equal(expNonPositive(x), expected));
  test("never rises as x falls, into the subnormals", () => {
    let last = 1;
    for (let x = 0; x > -750; x -= 0.0371) {
      const value = expNonPositive(x);
      assert.ok(value <= last && value >= 0, `exp(${x})`);
      last = value;
    }
    assert.equal(last, 0);
  });
});

describe("ranks", () => {
  const logits = Float32Array.of(1, -3, 1, -0, 0, 7.5, -Infinity, 1, -3e38, 2e-45);
  const order = [5, 0, 2, 7, 9, 3, 4, 1, 8, 6];
  const descending = (ranks: Float64Array) => Array.from(ranks.slice().sort().reverse(), idOfRank);

  for (let k = 0; k <= logits.length + 1; k++)
    test(`the ${k} largest of ten`, () => {
      assert.deepEqual(descending(largestRanks(logits, k, new Float64Array(16))), order.slice(0, k));
    });
  test("the k largest of many with ties, by heap and by partition", () => {
    const random = new Random(11);
    const many = Float32Array.from({ length: 9001 }, () => Math.round(random.next() * 300) - 150);
    const sorted = Array.from(many.keys()).sort((a, b) => many[b]! - many[a]! || a - b);
    for (const k of [1, 2, 63, 64, 65, 1000, 4095, 4096, 4097, 6000, 8999, 9000, 9001]) {
      assert.deepEqual(
        descending(largestRanks(many, k, new Float64Array(9001))),
        sorted.slice(0, k),
        `k ${k}`,
      );
    }
  });
  test("ranks from a logit on", () => {
    assert.deepEqual(descending(ranksFrom(logits, 0, new Float64Array(16))), order.slice(0, 7));
    assert.deepEqual(descending(ranksFrom(logits, 8, new Float64Array(16))), []);
  });
  test("the next logit that is large enough, from every start", () => {
    for (const least of [-Infinity, 0, 1, 7.5, 8])
      for (let from = 0; from <= logits.length; from++) {
        const found = logits.findIndex((logit, id) => id >= from && logit >= least);
        assert.equal(nextAtLeast(logits, least, from), found < 0 ? logits.length : found);
      }
  });
  test("the shortest beginning that reaches a weight, at every weight", () => {
    const random = new Random(12);
    for (const n of [1, 64, 65, 300]) {
      const values = Float32Array.from({ length: n }, () => Math.round(random.next() * n));
      const sorted = Array.from(values.keys()).sort((a, b) => values[b]! - values[a]! || a - b);
      const weightOf = (rank: number) => (idOfRank(rank) % 3) + 1;
      for (let wanted = 0; wanted <= 3 * n + 1; wanted++) {
        let expected = 0;
        for (let sum = 0; expected < n && (expected === 0 || sum < wanted); expected++)
          sum += (sorted[expected]! % 3) + 1;
        const ranks = ranksFrom(values, -Infinity, new Float64Array(n));
        assert.equal(shortestBeginning(ranks, weightOf, wanted), expected, `${n} ranks, weight ${wanted}`);
        assert.deepEqual(descending(ranks.subarray(0, expected)), sorted.slice(0, expected));
      }
    }
  });
  test("logits in the middle of a buffer", () => {
    const view = new Float32Array(Float32Array.of(9, 9, 1, 2, 3).buffer, 8, 3);
    assert.deepEqual(descending(largestRanks(view, 2, new Float64Array(3))), [2, 1]);
  });
  test("the last id of the largest vocabulary", () => {
    const large = new Float32Array(MAX_VOCAB);
    large[MAX_VOCAB - 1] = 3e38;
    assert.deepEqual(descending(largestRanks(large, 2, new Float64Array(2))), [MAX_VOCAB - 1, 0]);
  });
});

describe("penalties", () => {
  const off = { repetitionPenalty: 1, frequencyPenalty: 0, presencePenalty: 0, repeatLastN: 64 };
  const apply = (penalties: Penalties, logits: number[]) => {
    const result = Float32Array.from(logits);
    penalties.apply(result);
    return [...result];
  };
  test("repetition divides positive and multiplies negative logits, once per token", () => {
    const penalties = new Penalties({ ...off, repetitionPenalty: 2 }, [0, 1, 1]);
    assert.deepEqual(apply(penalties, [4, -4, 4]), [2, -8, 4]);
  });
  test("a token that leaves the window is no longer recent", () => {
    const penalties = new Penalties({ ...off, repetitionPenalty: 2, repeatLastN: 2 }, [0, 1, 1]);
    penalties.accept(2);
    assert.deepEqual(apply(penalties, [4, 4, 4]), [4, 2, 2]);
    penalties.accept(2);
    assert.deepEqual(apply(penalties, [4, 4, 4]), [4, 4, 2]);
  });
  test("frequency counts uses in the answer, presence any; the prompt counts for neither", () => {
    const penalties = new Penalties({ ...off, frequencyPenalty: 0.5, presencePenalty: 1 }, [3, 3, 3]);
    for (const id of [0, 1, 1]) penalties.accept(id);
    assert.deepEqual(apply(penalties, [4, 4, 4, 4]), [2.5, 2, 4, 4]);
  });
  test("ids past the logits are passed over", () => {
    const penalties = new Penalties(
      { ...off, repetitionPenalty: 2, repeatLastN: -1, frequencyPenalty: 1 },
      [9],
    );
    penalties.accept(8);
    assert.deepEqual(apply(penalties, [4, 4]), [4, 4]);
  });
  test("inactive when everything is off", () => {
    assert.equal(new Penalties(off, [1]).isActive, false);
    assert.equal(new Penalties({ ...off, repetitionPenalty: 2, repeatLastN: 0 }, [1]).isActive, false);
    assert.equal(new Penalties({ ...off, presencePenalty: 1 }, [1]).isActive, true);
  });
});

test("token bits: signed and unsigned words, a partial last word", () => {
  for (const Bits of [Int32Array, Uint32Array]) {
    const logits = new Float32Array(70).fill(1);
    applyTokenBits(logits, Bits.of(-1, 0, 0b100000, 0));
    const allowed = [...logits.keys()].filter((id) => logits[id] === 1);
    assert.deepEqual(allowed, [...Array.from({ length: 32 }, (_, id) => id), 69]);
    assert.ok(logits.every((logit) => logit === 1 || logit === -Infinity));
  }
});
