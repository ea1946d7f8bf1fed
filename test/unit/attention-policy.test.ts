/** Selections keep the invariants of algorithms.md F.2, for random shapes; broken ones are found. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { DensePolicy } from "../../src/attention/dense.ts";
import { assertSelection } from "../../src/attention/invariants.ts";
import type { AttentionShape, Budget, QueryBlocks, Selection } from "../../src/attention/policy.ts";
import { WindowPolicy } from "../../src/attention/window.ts";
import { uniform } from "../fixtures/random.ts";

const SHAPE: AttentionShape = {
  nLayers: 3,
  nHeads: 8,
  nKvHeads: 2,
  headDim: 64,
  window: [undefined, 100, 37],
};
const EVERYTHING: Budget = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };

function randomCalls(n: number, seed: number): { blocks: QueryBlocks; layer: number; budget: Budget }[] {
  const next = uniform(seed);
  const upTo = (most: number) => Math.floor(next() * most);
  return Array.from({ length: n }, () => {
    const sinks = 32 * upTo(3);
    const local = upTo(200);
    return {
      layer: upTo(3),
      blocks: { qStart: upTo(5) * 31 + upTo(400), qLen: 1 + upTo(300), blockSize: [1, 16, 32, 64][upTo(4)]! },
      budget: { tokens: sinks + local + 1 + upTo(300), sinks, local, denseBelow: upTo(2) * 200 },
    };
  });
}

test("dense keeps the invariants and lists every page", () => {
  for (const { blocks, layer } of randomCalls(300, 1)) {
    const [selection] = new DensePolicy(SHAPE).select(layer, blocks, EVERYTHING);
    assertSelection(selection!, SHAPE, blocks, EVERYTHING);
    if (SHAPE.window[layer] === undefined) {
      const last = selection!.page.subarray(selection!.rowPtr.at(-2)!);
      assert.equal(last.length, Math.ceil((blocks.qStart + blocks.qLen) / 32));
    }
  }
});

test("dense gives layers with the same window the same object, and a new one per call", () => {
  const policy = new DensePolicy({ ...SHAPE, window: [undefined, undefined, 37] });
  const blocks = { qStart: 0, qLen: 64, blockSize: 32 };
  assert.equal(policy.select(0, blocks, EVERYTHING), policy.select(1, blocks, EVERYTHING));
  assert.notEqual(policy.select(0, blocks, EVERYTHING), policy.select(2, blocks, EVERYTHING));
  assert.notEqual(policy.select(0, blocks, EVERYTHING), policy.select(0, { ...blocks }, EVERYTHING));
});

test("window keeps the invariants and its budget", () => {
  for (const { blocks, layer, budget } of randomCalls(300, 2)) {
    const [selection] = new WindowPolicy(SHAPE).select(layer, blocks, budget);
    assertSelection(selection!, SHAPE, blocks, budget);
    const { rowPtr } = selection!;
    for (let b = 0; b + 1 < rowPtr.length; b++) {
      const nKeys = (rowPtr[b + 1]! - rowPtr[b]!) * 32;
      const most = Math.max(budget.tokens, budget.denseBelow, budget.sinks + budget.local + blocks.blockSize);
      // Whole pages: one more at each end of the window.
      assert.ok(nKeys <= most + 3 * 32, `${nKeys} keys in a budget of ${most}`);
    }
  }
});

test("window with a budget for everything is dense", () => {
  for (const { blocks, layer } of randomCalls(50, 3)) {
    const budget = { tokens: 10_000, sinks: 32, local: 128, denseBelow: 0 };
    const [window] = new WindowPolicy(SHAPE).select(layer, blocks, budget);
    const [dense] = new DensePolicy(SHAPE).select(layer, blocks, EVERYTHING);
    assert.deepEqual(window, dense);
  }
});

describe("assertSelection finds what is broken", () => {
  const blocks = { qStart: 64, qLen: 40, blockSize: 32 };
  const budget = { tokens: 64, sinks: 32, local: 20, denseBelow: 0 };
  const sound = (): Selection => ({
    layer: 0,
    nKvHeads: 2,
    nBlocks: 2,
    headShared: true,
    rowPtr: Uint32Array.of(0, 3, 7),
    page: Uint32Array.of(0, 1, 2, 0, 1, 2, 3),
    segment: "tail",
  });
  const check = (change: Partial<Selection>) =>
    assertSelection({ ...sound(), ...change }, SHAPE, blocks, budget);

  test("the control is sound", () => check({}));
  const broken: [string, Partial<Selection>, RegExp][] = [
    ["a page twice", { page: Uint32Array.of(0, 1, 1, 0, 1, 2, 3) }, /page 1 after page 1/],
    ["a page past the end", { page: Uint32Array.of(0, 1, 2, 0, 1, 2, 4) }, /past token 104/],
    [
      "a page of the future",
      { page: Uint32Array.of(0, 1, 3, 0, 1, 2, 3) },
      /after the block's last query 95/,
    ],
    [
      "the block itself missing",
      { rowPtr: Uint32Array.of(0, 2, 6), page: Uint32Array.of(0, 1, 0, 1, 2, 3) },
      /local token/,
    ],
    [
      "sinks missing",
      { rowPtr: Uint32Array.of(0, 2, 6), page: Uint32Array.of(1, 2, 0, 1, 2, 3) },
      /sink token 0/,
    ],
    ["an empty row", { rowPtr: Uint32Array.of(0, 0, 4), page: Uint32Array.of(0, 1, 2, 3) }, /row 0 is empty/],
    ["an empty mask", { mask: Uint32Array.of(~0, 0, ~0, ~0, ~0, ~0, 0xff) }, /page 1 has an empty mask/],
    ["bits past the end", { mask: new Uint32Array(7).fill(~0) }, /page 3 has bits past token 104/],
    ["rowPtr of the wrong length", { rowPtr: Uint32Array.of(0, 7) }, /rowPtr has 2 entries/],
    ["too few pages", { page: Uint32Array.of(0, 1, 2) }, /rowPtr ends at 7/],
  ];
  test("a page that the budget allows is missing", () => {
    const everything = { ...budget, tokens: 104 };
    const change = { rowPtr: Uint32Array.of(0, 2, 5), page: Uint32Array.of(1, 2, 1, 2, 3) };
    const broken = { ...sound(), ...change };
    assert.throws(() => assertSelection(broken, SHAPE, blocks, everything), /dense token 0 is missing/);
  });
  for (const [name, change, message] of broken) test(name, () => assert.throws(() => check(change), message));
});
