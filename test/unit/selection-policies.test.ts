/** Every policy keeps the invariants I1-I10 of algorithms.md F.2, for random shapes and lengths around every page edge. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { DensePolicy } from "../../src/attention/dense.ts";
import { DhsaPolicy } from "../../src/attention/dhsa.ts";
import { estimateMasses, type KeyRuns, queryRunEnds } from "../../src/attention/estimate.ts";
import { assertSelection } from "../../src/attention/invariants.ts";
import { KeyFeatures } from "../../src/attention/key-features.ts";
import { PREFILL_POLICIES } from "../../src/attention/names.ts";
import { createPolicy } from "../../src/attention/policies.ts";
import {
  type AttentionShape,
  type Budget,
  keysToRead,
  type SelectionPolicy,
} from "../../src/attention/policy.ts";
import { poolRows, querySums, selectInParts, tokensRead } from "../fixtures/policy-case.ts";
import { normals, uniform } from "../fixtures/random.ts";

type Maker = (shape: AttentionShape) => SelectionPolicy;

const POLICIES: Record<string, Maker> = Object.fromEntries(
  PREFILL_POLICIES.map((name) => [
    name,
    (shape: AttentionShape) => createPolicy(name, shape, shape.headDim ** -0.5),
  ]),
);
for (const granule of [8, 32])
  for (const headMode of ["layer", "kvGroup"] as const)
    POLICIES[`dhsa, granule ${granule}, lists per ${headMode}`] = (shape) =>
      new DhsaPolicy(shape, { granule, headMode });
POLICIES["dhsa, chunks of 32"] = (shape) => new DhsaPolicy(shape, { boundaryLayer: undefined });
POLICIES["dhsa, boundaries from layer 1"] = (shape) => new DhsaPolicy(shape, { boundaryLayer: 1 });

const EVERYTHING: Budget = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };
const LENGTHS = [1, 31, 32, 33, 64, 257, 700];

interface Trial {
  readonly shape: AttentionShape;
  readonly layer: number;
  readonly length: number;
  readonly parts: number[];
  readonly budget: Budget;
  readonly blockSize: number;
  readonly rows: { q: Float32Array; k: Float32Array };
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;

function trials(n: number, seed: number): Trial[] {
  const next = uniform(seed);
  const upTo = (most: number) => Math.floor(next() * most);
  return Array.from({ length: n }, (_, i) => {
    const nKvHeads = 1 + upTo(3);
    const nHeads = nKvHeads * (1 + upTo(3));
    const headDim = [8, 16][upTo(2)]!;
    const length = LENGTHS[i % LENGTHS.length]!;
    const parts: number[] = [];
    for (let left = length; left > 0; left -= parts.at(-1)!) parts.push(Math.min(left, 1 + upTo(300)));
    return {
      shape: { nLayers: 2, nHeads, nKvHeads, headDim, window: [undefined, [100, 37, 1][upTo(3)]!] },
      layer: upTo(2),
      length,
      parts,
      budget: {
        tokens: upTo(200),
        fraction: next(),
        sinks: 32 * upTo(3),
        local: upTo(150),
        denseBelow: upTo(2) * 150,
      },
      blockSize: [16, 32, 64][upTo(3)]!,
      rows: {
        q: normals(length * nHeads * headDim, seed + i),
        k: normals(length * nKvHeads * headDim, seed + 1000 + i),
      },
    };
  });
}

for (const [name, make] of Object.entries(POLICIES)) {
  describe(name, () => {
    test("keeps the invariants, whatever the lengths and budgets", () => {
      for (const { shape, layer, parts, budget, blockSize, rows } of trials(28, 1))
        for (const { blocks, selection } of selectInParts(make(shape), shape, rows, parts, budget, {
          layer,
          blockSize,
        }))
          assertSelection(selection, shape, blocks, budget);
    });

    test("with a budget for everything it is dense", () => {
      for (const { shape, layer, length, rows } of trials(14, 2))
        for (const full of [
          { tokens: Infinity, sinks: 0, local: 0, denseBelow: 0 },
          { tokens: 0, fraction: 1, sinks: 32, local: 64, denseBelow: 0 },
          { tokens: 0, fraction: 0.1, sinks: 32, local: 64, denseBelow: 1000 },
        ]) {
          const all = selectInParts(make(shape), shape, rows, [length], full, { layer })[0]!;
          const dense = selectInParts(new DensePolicy(shape), shape, rows, [length], EVERYTHING, {
            layer,
          })[0]!;
          for (let h = 0; h < shape.nKvHeads; h++)
            for (let b = 0; b < all.selection.nBlocks; b++) {
              const read = [...tokensRead(all.selection, b, h)];
              assert.deepEqual(read, [...tokensRead(dense.selection, b, h)]);
            }
          assert.equal(all.selection.mask, undefined);
        }
    });

    test("the same input gives the same selection", () => {
      for (const { shape, layer, parts, budget, rows } of trials(7, 3)) {
        const twice = [1, 2].map(() =>
          selectInParts(make(shape), shape, rows, parts, budget, { layer }).map(({ selection }) => selection),
        );
        assert.deepEqual(twice[0], twice[1]);
      }
    });

    if (!make(trials(1, 0)[0]!.shape).lookahead)
      // I9 does not hold for policies that look ahead.
      test("a prompt in parts reads what a whole one does", () => {
        for (const { shape, layer, length, budget, rows } of trials(14, 4)) {
          const parts: number[] = [];
          for (let left = length; left > 0; left -= parts.at(-1)!) parts.push(Math.min(left, 96));
          const whole = selectInParts(make(shape), shape, rows, [length], budget, { layer })[0]!;
          for (const { blocks, selection } of selectInParts(make(shape), shape, rows, parts, budget, {
            layer,
          }))
            for (let b = 0; b < selection.nBlocks; b++)
              for (let h = 0; h < shape.nKvHeads; h++) {
                const tokens = tokensRead(selection, b, h);
                const expected = tokensRead(whole.selection, blocks.qStart / 32 + b, h);
                assert.deepEqual([...tokens], [...expected], `block ${b} of part at ${blocks.qStart}`);
              }
        }
      });

    test("reads no more than the budget, what is forced excepted", () => {
      for (const { shape, parts, budget, rows } of trials(21, 5)) {
        const policy = make(shape);
        if (policy.name === "dense" || policy.name === "window") continue;
        for (const { blocks, selection } of selectInParts(policy, shape, rows, parts, budget))
          for (let b = 0; b < selection.nBlocks; b++) {
            const end = blocks.qStart + Math.min((b + 1) * blocks.blockSize, blocks.qLen);
            const forced = budget.sinks + budget.local + blocks.blockSize + 3 * 32 + 2 * 64 + 2 * 16;
            const most = Math.max(keysToRead(budget, blocks, b, end), forced);
            const read = Array.from(
              { length: shape.nKvHeads },
              (_, h) => [...tokensRead(selection, b, h)].filter((t) => t < end).length,
            );
            // The heads of dhsa share what they have.
            const n = policy.name === "dhsa" ? mean(read) : Math.max(...read);
            assert.ok(n <= most, `${n} tokens read of ${end}, ${most} allowed`);
          }
      }
    });

    test("the end of the prompt reads everything", () => {
      const [{ shape, rows }] = trials(7, 6).filter(({ length }) => length === 700) as [Trial];
      const budget = { tokens: 64, fraction: 0.1, sinks: 32, local: 32, denseBelow: 0 };
      const [{ selection }] = selectInParts(make(shape), shape, rows, [700], budget, { denseFrom: 636 }) as [
        ReturnType<typeof selectInParts>[number],
      ];
      for (let h = 0; h < shape.nKvHeads; h++) {
        assert.equal([...tokensRead(selection, 21, h)].filter((t) => t < 700).length, 700);
        assert.equal(tokensRead(selection, 19, h).has(0), true);
      }
    });
  });
}

describe("budgets of single heads", () => {
  const shape: AttentionShape = {
    nLayers: 2,
    nHeads: 4,
    nKvHeads: 2,
    headDim: 16,
    window: [undefined, undefined],
  };
  const rows = { q: normals(700 * 64, 8), k: normals(700 * 32, 9) };
  const budget: Budget = { tokens: 64, fraction: 0.3, sinks: 32, local: 32, denseBelow: 0 };
  const layer = 1;
  for (const name of ["dhsa", "vertical-slash", "sample"] as const)
    test(`${name}: a head with twice the budget reads more, one with half of it less, and ones change nothing`, () => {
      const pages = (perKvHead?: Float32Array) => {
        const own = { ...budget, perKvHead };
        const [part] = selectInParts(POLICIES[name]!(shape), shape, rows, [700], own, { layer });
        const { selection, blocks } = part!;
        assertSelection(selection, shape, blocks, own);
        return [0, 1].map((h) => {
          const [from, to] = [h, h + 1].map((row) => selection.rowPtr[row * selection.nBlocks]!);
          return to! - from!;
        });
      };
      const equal = pages();
      assert.deepEqual(pages(Float32Array.of(1, 1, 1, 1)), equal);
      assert.deepEqual(pages(Float32Array.of(2, 0.5, 1, 1)), equal, "another layer's factors");
      const [more, less] = pages(Float32Array.of(1, 1, 2, 0.5));
      assert.ok(more! > 1.2 * equal[0]! && less! < 0.95 * equal[1]!, `${more} and ${less} beside ${equal}`);
      const all = pages(Float32Array.of(1, 1, 100, 1));
      assert.equal(all[0], (22 * 23) / 2, "at most everything");
      assert.ok(all[1]! >= 0.8 * equal[1]!, `the other head chooses: ${all[1]} beside ${equal[1]}`);
    });
});

test("4097 tokens: the longest length of the table, for the default policies", () => {
  const shape: AttentionShape = { nLayers: 1, nHeads: 2, nKvHeads: 1, headDim: 16, window: [undefined] };
  const rows = { q: normals(4097 * 32, 8), k: normals(4097 * 16, 9) };
  const budget = { tokens: 256, fraction: 0.25, sinks: 32, local: 128, denseBelow: 0 };
  for (const name of PREFILL_POLICIES) {
    const parts = name === "sample" ? [4000, 97] : [2048, 2049];
    for (const { blocks, selection } of selectInParts(POLICIES[name]!(shape), shape, rows, parts, budget))
      assertSelection(selection, shape, blocks, budget);
  }
});

describe("dhsa", () => {
  const shape: AttentionShape = { nLayers: 1, nHeads: 4, nKvHeads: 2, headDim: 32, window: [undefined] };
  const nTokens = 2048;

  /** Random keys, one of which points where the last block's queries do. */
  function planted(needle: number, seed: number) {
    const clip = (x: number) => Math.max(-3, Math.min(3, x));
    const q = normals(nTokens * 128, seed).map(clip);
    const k = normals(nTokens * 64, seed + 1).map(clip);
    for (let h = 0; h < 2; h++) {
      const direction = normals(32, seed + 2 + h, 1).map((x) => Math.sign(x));
      for (let c = 0; c < 32; c++) {
        k[(needle * 2 + h) * 32 + c] = 6 * direction[c]!;
        for (let t = nTokens - 32; t < nTokens; t++)
          for (let g = 0; g < 2; g++) q[(t * 4 + h * 2 + g) * 32 + c]! += 3 * direction[c]!;
      }
    }
    return { q, k };
  }

  for (const granule of [8, 32])
    test(`finds a planted needle at 5 % of the keys, granule ${granule}`, () => {
      const budget = { tokens: 0, fraction: 0.05, sinks: 0, local: 0, denseBelow: 0 };
      for (let i = 0; i < 20; i++) {
        const needle = 40 + ((i * 997) % 1900);
        const policy = new DhsaPolicy(shape, { granule });
        const rows = planted(needle, 50 + i);
        const { selection } = selectInParts(policy, shape, rows, [nTokens], budget)[0]!;
        for (let h = 0; h < 2; h++)
          assert.ok(tokensRead(selection, 63, h).has(needle), `needle ${needle}, KV head ${h}`);
      }
    });

  test("lists per layer do not depend on the order of the KV heads", () => {
    const { q, k } = planted(700, 3);
    const swap = (x: Float32Array, group: number) =>
      x.map((_, i) => {
        const head = Math.floor(i / 32) % (2 * group);
        return x[i + (head < group ? group : -group) * 32]!;
      });
    const budget = { tokens: 0, fraction: 0.2, sinks: 32, local: 32, denseBelow: 0 };
    const select = (rows: { q: Float32Array; k: Float32Array }) =>
      selectInParts(new DhsaPolicy(shape, { headMode: "layer" }), shape, rows, [nTokens], budget)[0]!
        .selection;
    const [a, b] = [select({ q, k }), select({ q: swap(q, 2), k: swap(k, 1) })];
    assert.deepEqual(a.rowPtr, b.rowPtr);
    assert.deepEqual(a.page, b.page);
  });

  test("what one layer has no use for, the next may read, and no more", () => {
    const deep: AttentionShape = { ...shape, nLayers: 2, window: [undefined, undefined] };
    const budget: Budget = { tokens: 0, fraction: 0.25, sinks: 32, local: 32, denseBelow: 0 };
    const blocks = { qStart: 0, qLen: nTokens, blockSize: 32 };
    const keys = new KeyFeatures({ nLayers: 2, nKvHeads: 2, headDim: 32, granule: 32 });
    const sharp = planted(700, 5);
    const flat = { q: normals(nTokens * 128, 7).map((x) => 0.1 * x), k: sharp.k };
    // All of the first layer's queries look for the needle only.
    for (let t = 0; t < nTokens - 32; t++) sharp.q.copyWithin(t * 128, (nTokens - 1) * 128, nTokens * 128);
    const policy = new DhsaPolicy(deep, { boundaryLayer: undefined });
    for (const layer of [0, 1])
      keys.append(layer, nTokens, (ends, sums) => poolRows(sharp.k, 64, ends, sums));
    const read = [sharp, flat].map(({ q }, layer) => {
      const estimate = (runs: KeyRuns) =>
        estimateMasses({ rows: q, rowEnds: queryRunEnds(blocks, 1).rowEnds }, runs, deep, 1);
      const view = { querySums: querySums(q, deep, blocks), keys, estimate };
      const [selection] = policy.select(layer, blocks, budget, view);
      assertSelection(selection!, deep, blocks, budget);
      return Array.from(
        { length: 64 },
        (_, b) => tokensRead(selection!, b, 0).size + tokensRead(selection!, b, 1).size,
      );
    });
    for (let b = 32; b < 64; b++) {
      const share = 2 * keysToRead(budget, blocks, b, 32 * (b + 1));
      assert.ok(read[0]![b]! < 0.8 * share, `block ${b}: the first layer reads ${read[0]![b]} of ${share}`);
      assert.ok(read[1]![b]! > 1.1 * share, `block ${b}: the second layer reads ${read[1]![b]} of ${share}`);
      assert.ok(
        read[0]![b]! + read[1]![b]! <= 2 * share,
        `block ${b}: both read ${read[0]![b]! + read[1]![b]!}`,
      );
    }
  });

  test("decoding keeps its pages for eight tokens, unless the query turns", () => {
    const rows = { q: normals(600 * 128, 1), k: normals(600 * 64, 2) };
    // 60 single tokens with nearly one query; then it turns.
    for (let t = 520; t < 600; t++)
      for (let c = 0; c < 128; c++) {
        const turned = t >= 570 ? -1 : 1;
        rows.q[t * 128 + c] = turned * (rows.q[519 * 128 + c]! + 0.05 * rows.q[t * 128 + c]!);
      }
    const budget = { tokens: 0, fraction: 0.3, sinks: 32, local: 64, denseBelow: 0 };
    const parts = [520, ...new Array<number>(80).fill(1)];
    const chosen = selectInParts(new DhsaPolicy(shape), shape, rows, parts, budget)
      .slice(1)
      .map(({ selection }) => [...tokensRead(selection, 0, 0)].filter((t) => t >= 32 && t < 400).join());
    for (let t = 1; t < 80; t++) {
      if (t % 8 !== 0 && t !== 50 && t < 50) assert.equal(chosen[t], chosen[t - 1], `token ${t}`);
      if (t === 50) assert.notEqual(chosen[t], chosen[t - 1], "the query turned");
    }
  });
});
