/** Attention estimated from mean keys: the plain loops against the definition, and the WASM kernel against the loops. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { estimateMasses, type KeyRuns, queryRunEnds } from "../../src/attention/estimate.ts";
import { blockCount, type QueryBlocks } from "../../src/attention/policy.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { normals, uniform } from "../fixtures/random.ts";
import { cannotRun, instantiate } from "../fixtures/wasm.ts";
import { attentionProbabilities } from "../reference/attention-probabilities.ts";

const SHAPE = { nHeads: 6, nKvHeads: 2, headDim: 16 } as const;
const SCALE = 0.25;

/** Random runs, of which each block sees two ranges; the last block sees none. */
function randomRuns(nRuns: number, nBlocks: number, seed: number, size = 1): KeyRuns {
  const next = uniform(seed);
  const visible = new Uint32Array(4 * nBlocks);
  for (let b = 0; b + 1 < nBlocks; b++) {
    const edges = Array.from({ length: 4 }, () => Math.floor(next() * (nRuns + 1))).sort((x, y) => x - y);
    visible.set(edges, 4 * b);
  }
  return {
    nRuns,
    features: normals(nRuns * SHAPE.nKvHeads * SHAPE.headDim, seed, size),
    lengths: Float32Array.from({ length: nRuns }, () => 1 + Math.floor(64 * next())),
    visible,
  };
}

function estimate(q: Float32Array, blocks: QueryBlocks, runs: KeyRuns) {
  return estimateMasses({ rows: q, rowEnds: queryRunEnds(blocks, 1).rowEnds }, runs, SHAPE, SCALE);
}

describe("the definition", () => {
  test("runs of one key have the exact attention", () => {
    const nTokens = 40;
    const q = normals(nTokens * 96, 1);
    const k = normals(nTokens * 32, 2);
    const blocks = { qStart: nTokens - 1, qLen: 1, blockSize: 1 };
    const last = q.subarray((nTokens - 1) * 96);
    const lengths = new Float32Array(nTokens).fill(1);
    const visible = Uint32Array.of(0, 7, 7, nTokens);
    const masses = estimate(last, blocks, { nRuns: nTokens, features: k, lengths, visible });
    for (const kvHead of [0, 1]) {
      const sums = new Float64Array(nTokens);
      for (const h of [0, 1, 2])
        for (const [i, p] of attentionProbabilities(
          { q, k, ...SHAPE, scale: SCALE, window: undefined },
          nTokens - 1,
          kvHead * 3 + h,
        ).entries())
          sums[i]! += p / 3;
      for (const [i, sum] of sums.entries()) assert.ok(Math.abs(masses[kvHead * nTokens + i]! - sum) < 1e-6);
    }
  });

  test("what a block sees adds up to 1, the rest is 0; scores of ±1000 stay finite", () => {
    const blocks = { qStart: 0, qLen: 75, blockSize: 32 };
    for (const size of [1, 1000]) {
      const runs = randomRuns(90, 3, 3, size);
      const masses = estimate(normals(75 * 96, 4, size), blocks, runs);
      for (let row = 0; row < 6; row++) {
        const b = Math.floor(row / 2);
        const [from, to, from2, to2] = runs.visible.subarray(4 * b);
        const own = masses.subarray(row * 90, (row + 1) * 90);
        const isSeen = (i: number) => (i >= from! && i < to!) || (i >= from2! && i < to2!);
        const sum = own.reduce((total, mass) => total + mass, 0);
        assert.ok(Math.abs(sum - (b === 2 ? 0 : 1)) < 1e-5, `row ${row}: ${sum}`);
        assert.ok(own.every((mass, i) => isSeen(i) || mass === 0));
      }
    }
  });

  test("a constant added to all logits changes nothing, a run of twice the length counts twice", () => {
    const blocks = { qStart: 0, qLen: 1, blockSize: 1 };
    const q = normals(96, 5);
    const visible = Uint32Array.of(0, 3, 3, 3);
    const key = normals(32, 6);
    const features = (scales: number[]) =>
      Float32Array.from(scales.flatMap((x) => [...key].map((c) => x * c)));
    // Equal keys, 16, 32 and 16 of them: features are their mean times sqrt(length).
    const lengths = Float32Array.of(16, 32, 16);
    const masses = estimate(q, blocks, {
      nRuns: 3,
      features: features([4, Math.sqrt(32), 4]),
      lengths,
      visible,
    });
    for (const at of [0, 3])
      for (const [i, share] of [0.25, 0.5, 0.25].entries())
        assert.ok(Math.abs(masses[at + i]! - share) < 1e-6, `${masses}`);
  });

  test("means of few queries end at blocks", () => {
    const { ends, rowEnds } = queryRunEnds({ qStart: 5, qLen: 75, blockSize: 32 }, 10);
    assert.deepEqual([...ends], [10, 20, 30, 32, 42, 52, 62, 64, 74, 75]);
    assert.deepEqual([...rowEnds], [4, 8, 10]);
  });
});

for (const build of ["simd", "relaxed"] as const)
  test(`the kernel equals the loops, ${build}`, { skip: cannotRun(build) }, async () => {
    const ops = new WasmOps(await instantiate(build));
    for (const [nTokens, blockSize, nRuns] of [
      [1, 1, 5],
      [75, 32, 1],
      [75, 32, 31],
      [64, 32, 32],
      [129, 64, 90],
      [33, 16, 300],
    ] as const) {
      const blocks = { qStart: 0, qLen: nTokens, blockSize };
      const runs = randomRuns(nRuns, blockCount(blocks) + 1, nRuns);
      const own = { ...runs, visible: runs.visible.subarray(0, 4 * blockCount(blocks)) };
      const q = normals(nTokens * 96, nTokens);
      using tensor = ops.heap.create(nTokens, 96);
      tensor.view.set(q);
      const before = ops.memory().scratch;
      const actual = ops.estimateMasses(tensor, blocks, own, SHAPE, SCALE);
      const expected = estimate(q, blocks, own);
      assert.equal(actual.length, expected.length);
      for (const [i, x] of expected.entries())
        assert.ok(
          Math.abs(actual[i]! - x) < 2e-6,
          `${nTokens} tokens, ${nRuns} runs, at ${i}: ${actual[i]} is not ${x}`,
        );
      assert.equal(ops.memory().scratch, before);
    }
  });
