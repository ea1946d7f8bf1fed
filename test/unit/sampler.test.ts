import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import { Random } from "../../src/generate/random.ts";
import { Sampler } from "../../src/generate/sampler.ts";
import type { SamplingParams } from "../../src/generate/sampling-params.ts";
import { referenceProbabilities, referenceSample, softmax } from "../reference/sampling.ts";

/** Every step off: the model's own distribution. */
const PLAIN: SamplingParams = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repeatLastN: 64,
  logitBias: new Map(),
  seed: 7,
};

function randomLogits(n: number, random: Random, spread: number): Float32Array {
  return Float32Array.from(
    { length: n },
    () => (random.next() + random.next() + random.next() - 1.5) * spread,
  );
}

function sampleOnce(logits: Float32Array, params: Partial<SamplingParams>, u = 0.5): number {
  const sampler = new Sampler({
    vocabSize: logits.length,
    params: { ...PLAIN, ...params },
    promptIds: [],
    random: () => u,
  });
  return sampler.sample(logits).id;
}

function bitsOf(allowed: ReadonlySet<number>, vocabSize: number): Uint32Array {
  const bits = new Uint32Array(Math.ceil(vocabSize / 32));
  for (const id of allowed) bits[id >> 5]! |= 1 << (id % 32);
  return bits;
}

describe("sampler equals its reference", () => {
  const cases: { name: string; params: Partial<SamplingParams>; vocabSize?: number; masked?: boolean }[] = [
    { name: "the plain distribution", params: {} },
    { name: "greedy", params: { temperature: 0 } },
    { name: "low temperature", params: { temperature: 0.1 } },
    { name: "temperature 2", params: { temperature: 2 } },
    { name: "top_k 1", params: { topK: 1 } },
    { name: "top_k 5", params: { topK: 5 } },
    { name: "top_k of half the vocabulary", params: { topK: 150 } },
    { name: "top_k one below the vocabulary", params: { topK: 300 } },
    { name: "top_k of the vocabulary", params: { topK: 301 } },
    { name: "top_k above the vocabulary", params: { topK: 5000 } },
    { name: "top_p 0.9", params: { topP: 0.9 } },
    { name: "top_p 0.999", params: { topP: 0.999 } },
    { name: "top_p tiny", params: { topP: 1e-9 } },
    { name: "top_p 0", params: { topP: 0 } },
    { name: "min_p 0.05", params: { minP: 0.05 } },
    { name: "min_p 1", params: { minP: 1 } },
    { name: "top_k, top_p", params: { topK: 20, topP: 0.7 } },
    { name: "top_p, min_p", params: { topP: 0.95, minP: 0.2 } },
    { name: "llama.cpp's defaults", params: { temperature: 0.8, topK: 40, topP: 0.95, minP: 0.05 } },
    { name: "repetition over a window", params: { repetitionPenalty: 1.4, repeatLastN: 4 } },
    { name: "repetition over everything", params: { repetitionPenalty: 0.7, repeatLastN: -1 } },
    { name: "repetition over nothing", params: { repetitionPenalty: 3, repeatLastN: 0 } },
    {
      name: "frequency and presence",
      params: { frequencyPenalty: 0.5, presencePenalty: -1, temperature: 0.3 },
    },
    {
      name: "bias",
      params: {
        logitBias: new Map([
          [3, 100],
          [9, 99.5],
          [0, -100],
        ]),
      },
    },
    { name: "a mask", params: { topK: 4 }, masked: true },
    { name: "a greedy mask", params: { temperature: 0, logitBias: new Map([[2, 100]]) }, masked: true },
    {
      name: "everything at once",
      params: {
        temperature: 1.3,
        topK: 50,
        topP: 0.9,
        minP: 0.01,
        repetitionPenalty: 1.2,
        repeatLastN: 6,
        frequencyPenalty: 0.4,
        presencePenalty: 0.3,
        logitBias: new Map([
          [5, 2],
          [6, -3],
        ]),
      },
      masked: true,
    },
    { name: "a vocabulary of one", params: { topP: 0.5 }, vocabSize: 1 },
    { name: "a vocabulary of two", params: { topK: 1 }, vocabSize: 2 },
  ];
  for (const { name, params, vocabSize = 301, masked = false } of cases)
    test(name, () => {
      const random = new Random(vocabSize + name.length);
      for (let answer = 0; answer < 8; answer++) {
        const full = { ...PLAIN, ...params };
        const promptIds = Array.from({ length: 7 }, () => Math.floor(random.next() * vocabSize));
        let u = 0;
        const sampler = new Sampler({ vocabSize, params: full, promptIds, random: () => u });
        const answerIds: number[] = [];
        // Few distinct logits in every other answer, so that ties cross every cut.
        const round = answer % 2 === 0 ? (x: number) => x : Math.round;
        for (let i = 0; i < 12; i++) {
          const logits = randomLogits(vocabSize, random, 8).map(round);
          if (vocabSize > 20) logits[17] = -Infinity;
          const before = logits.slice();
          u = i === 0 ? 0 : i === 1 ? 1 - 2 ** -53 : random.next();
          const allowed = masked
            ? new Set(Array.from({ length: 100 }, () => Math.floor(random.next() * vocabSize)))
            : undefined;
          const expected = referenceSample({ logits, params: full, promptIds, answerIds, allowed, u });
          const actual = sampler.sample(logits, allowed && bitsOf(allowed, vocabSize)).id;
          assert.equal(actual, expected, `answer ${answer}, token ${i}, u ${u}`);
          assert.deepEqual(logits, before, "the caller's logits are not changed");
          answerIds.push(actual);
        }
      }
    });
});

describe("sampled frequencies", () => {
  const logits = Float32Array.of(2, 1, 0.5, 0.5, 0, -1, -3, -Infinity);
  const cases: { name: string; params: Partial<SamplingParams> }[] = [
    { name: "plain", params: {} },
    { name: "temperature 0.5", params: { temperature: 0.5 } },
    { name: "top_k 4", params: { topK: 4 } },
    { name: "top_p 0.8", params: { topP: 0.8 } },
    { name: "min_p 0.2, temperature 1.5", params: { minP: 0.2, temperature: 1.5 } },
  ];
  for (const { name, params } of cases)
    test(name, () => {
      const full = { ...PLAIN, ...params };
      const expected = referenceProbabilities({ logits, params: full, promptIds: [], answerIds: [], u: 0 });
      const sampler = new Sampler({ vocabSize: logits.length, params: full, promptIds: [] });
      const nDraws = 40_000;
      const counts = expected.map(() => 0);
      for (let i = 0; i < nDraws; i++) counts[sampler.sample(logits).id]!++;
      let chiSquare = 0;
      expected.forEach((p, id) => {
        if (p === 0) assert.equal(counts[id], 0, `token ${id} has probability 0`);
        else chiSquare += (counts[id]! - nDraws * p) ** 2 / (nDraws * p);
      });
      // 7 classes at most, 6 degrees of freedom: P(chi² > 22.5) = 0.001. The seed is fixed.
      assert.ok(chiSquare < 22.5, `chi-square ${chiSquare}: ${counts}`);
    });
});

describe("sampler edge cases", () => {
  test("equal logits: greedy and top_k 1 take the lowest id", () => {
    const logits = new Float32Array(100).fill(1.5);
    assert.equal(sampleOnce(logits, { temperature: 0 }), 0);
    assert.equal(sampleOnce(logits, { topK: 1 }, 0.99), 0);
    assert.equal(sampleOnce(logits, { topP: 0 }, 0.99), 0);
  });
  test("equal logits: top_k and top_p cut at exactly k and p", () => {
    const logits = new Float32Array(100).fill(-2);
    assert.equal(sampleOnce(logits, { topK: 10 }, 1 - 2 ** -53), 9);
    assert.equal(sampleOnce(logits, { topP: 0.25 }, 1 - 2 ** -53), 24);
    assert.equal(sampleOnce(logits, { minP: 1 }, 1 - 2 ** -53), 99);
  });
  test("-0 and 0 are equal", () => {
    const logits = Float32Array.of(-1, -0, 0);
    assert.equal(sampleOnce(logits, { temperature: 0 }), 1);
    assert.equal(sampleOnce(logits, { topK: 1 }), 1);
  });
  test("a tie on the boundary of top_k keeps the lower ids", () => {
    const logits = Float32Array.of(0, 5, 0, 7, 0, 0);
    const ids = new Set(
      Array.from({ length: 50 }, (_, i) => sampleOnce(logits, { topK: 4, temperature: 2 }, i / 50)),
    );
    assert.deepEqual([...ids].sort(), [0, 1, 2, 3]);
  });
  test("tokens at -Infinity are never drawn, even when top_k reaches them", () => {
    const logits = new Float32Array(50).fill(-Infinity);
    logits[20] = -4;
    logits[30] = -5;
    for (const params of [{}, { topK: 10 }, { topP: 0.999999 }, { temperature: 0 }]) {
      for (const u of [0, 0.3, 0.9, 1 - 2 ** -53]) {
        const id = sampleOnce(logits, params, u);
        assert.ok(id === 20 || id === 30, `${JSON.stringify(params)} ${u} gave ${id}`);
      }
    }
  });
  test("extreme logits do not overflow", () => {
    assert.equal(sampleOnce(Float32Array.of(-3e38, 3e38, 1), {}), 1);
    assert.equal(sampleOnce(Float32Array.of(-3e38, 3e38, 1), { temperature: 1e-300 }), 1);
  });
  test("a forbidden token stays forbidden whatever its bias", () => {
    const sampler = new Sampler({
      vocabSize: 40,
      params: { ...PLAIN, logitBias: new Map([[3, 100]]), temperature: 0 },
      promptIds: [],
    });
    assert.equal(sampler.sample(new Float32Array(40), bitsOf(new Set([7, 35]), 40)).id, 7);
    assert.equal(sampler.sample(new Float32Array(40), new Int32Array(2).fill(-1)).id, 3);
  });
});

describe("unusable logits are refused", () => {
  const cases: { name: string; logits: number[]; details: Record<string, number>; message: RegExp }[] = [
    {
      name: "NaN",
      logits: [1, Number.NaN, 2, Number.NaN],
      details: { nNaN: 2, nInfinite: 0, vocabSize: 4 },
      message: /2 NaN and 0 \+Infinity among 4 logits/,
    },
    {
      name: "NaN only",
      logits: [Number.NaN],
      details: { nNaN: 1, nInfinite: 0, vocabSize: 1 },
      message: /1 NaN/,
    },
    {
      name: "+Infinity",
      logits: [1, Infinity, 2],
      details: { nNaN: 0, nInfinite: 1, vocabSize: 3 },
      message: /1 \+Infinity among 3/,
    },
    {
      name: "nothing allowed",
      logits: [-Infinity, -Infinity],
      details: { nNaN: 0, nInfinite: 0, vocabSize: 2 },
      message: /all 2 logits are -Infinity/,
    },
  ];
  for (const c of cases)
    test(c.name, () => {
      for (const temperature of [0, 1]) {
        assert.throws(
          () => sampleOnce(Float32Array.from(c.logits), { temperature }),
          (error: unknown) => {
            assert.ok(error instanceof InlayError);
            assert.equal(error.code, "internal");
            assert.match(error.message, c.message);
            assert.deepEqual(error.details, c.details);
            return true;
          },
        );
      }
    });
  test("a mask that allows nothing", () => {
    const sampler = new Sampler({ vocabSize: 33, params: PLAIN, promptIds: [] });
    assert.throws(() => sampler.sample(new Float32Array(33), new Uint32Array(2)), { code: "internal" });
  });
  test("logits of another length", () => {
    const sampler = new Sampler({ vocabSize: 33, params: PLAIN, promptIds: [] });
    assert.throws(() => sampler.sample(new Float32Array(32)), { code: "internal", message: /32 logits.*33/ });
  });
  test("a bias on a token outside the vocabulary", () => {
    const params = { ...PLAIN, logitBias: new Map([[33, 1]]) };
    assert.throws(() => new Sampler({ vocabSize: 33, params, promptIds: [] }), {
      code: "invalid-option",
      message: "logit_bias names token 33, but the vocabulary has the ids 0 to 32",
    });
  });
});

describe("seeds", () => {
  const logits = randomLogits(500, new Random(1), 4);
  const answer = (seed: number | undefined) => {
    const sampler = new Sampler({ vocabSize: 500, params: { ...PLAIN, seed }, promptIds: [] });
    return { seed: sampler.seed, ids: Array.from({ length: 20 }, () => sampler.sample(logits).id) };
  };
  test("the same seed gives the same tokens", () => assert.deepEqual(answer(123), answer(123)));
  test("another seed gives others", () => assert.notDeepEqual(answer(123).ids, answer(124).ids));
  test("no seed: a random one, reported, that repeats the answer", () => {
    const first = answer(undefined);
    assert.notEqual(first.seed, answer(undefined).seed);
    assert.deepEqual(answer(first.seed), first);
  });
  test("seed 42, exact ids: a change here breaks every caller's stored seeds", () => {
    assert.deepEqual(
      answer(42).ids,
      [256, 5, 317, 323, 425, 365, 394, 129, 283, 314, 182, 216, 463, 316, 314, 457, 314, 175, 317, 34],
    );
  });
});

describe("log-probabilities", () => {
  const logits = randomLogits(1000, new Random(9), 6);
  const params = {
    ...PLAIN,
    temperature: 0.2,
    topK: 3,
    repetitionPenalty: 2,
    repeatLastN: -1,
    logitBias: new Map([[500, 100]]),
  };
  test("are those of the model, whatever the sampler does", () => {
    const expected = softmax([...logits]).map(Math.log);
    const ranked = expected.map((_, id) => id).sort((a, b) => expected[b]! - expected[a]!);
    for (const nTop of [0, 1, 5, 20]) {
      const sampler = new Sampler({ vocabSize: 1000, params, promptIds: [ranked[0]!], topLogprobs: nTop });
      for (let i = 0; i < 3; i++) {
        const { id, logprobs } = sampler.sample(logits);
        assert.equal(id, 500, "the bias decides");
        assert.equal(logprobs!.id, 500);
        assert.ok(Math.abs(logprobs!.logprob - expected[500]!) < 1e-12);
        assert.deepEqual(
          logprobs!.top.map((t) => t.id),
          ranked.slice(0, nTop),
        );
        for (const t of logprobs!.top) assert.ok(Math.abs(t.logprob - expected[t.id]!) < 1e-12);
      }
    }
  });
  test("more alternatives than tokens", () => {
    const sampler = new Sampler({ vocabSize: 2, params: PLAIN, promptIds: [], topLogprobs: 20 });
    const { logprobs } = sampler.sample(Float32Array.of(0, -Infinity));
    assert.deepEqual(logprobs, {
      id: 0,
      logprob: 0,
      top: [
        { id: 0, logprob: 0 },
        { id: 1, logprob: -Infinity },
      ],
    });
  });
  test("absent when not asked for", () => {
    const sampler = new Sampler({ vocabSize: 2, params: PLAIN, promptIds: [] });
    assert.deepEqual(Object.keys(sampler.sample(Float32Array.of(0, 1))), ["id"]);
  });
});
