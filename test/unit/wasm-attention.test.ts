/** Attention over pages in WASM against f64, on both sides of the length where the flash kernel takes over. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { WasmVariant } from "../../src/backend/wasm/variant.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import {
  type AttentionCase,
  type Opener,
  openWasm,
  runCase,
  runKernels,
} from "../fixtures/attention-case.ts";
import { ATTENTION_CASES, BASE } from "../fixtures/attention-table.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";

/** Sums of up to some hundred f32 terms in another order: 1e-6 is usual, 1e-5 allowed (design: 1e-4). */
const TOLERANCE = 1e-5;
/** f16 pages against f32 keys and values. */
const TOLERANCE_UNROUNDED = 5e-3;

/** Above this many keys the flash kernel runs, below it the exact one (kExactKeys in attention_exact.h). */
const EXACT_KEYS = 256;

async function opener(variant: WasmVariant): Promise<Opener> {
  const ops = new WasmOps(await instantiate(variant));
  return (c) => openWasm(ops, c);
}

/** The table's cases run the exact kernel unless they are long; every third is run again behind a long context. */
const LONG_CASES: AttentionCase[] = ATTENTION_CASES.filter(({ chunks }, i) => {
  const nTokens = chunks.reduce((a, b) => a + b, 0);
  return i % 3 === 0 && nTokens <= EXACT_KEYS && chunks.length <= 5;
}).map((c) => ({
  ...c,
  name: `${c.name}, behind ${EXACT_KEYS} keys`,
  chunks: [EXACT_KEYS + 1, ...c.chunks],
}));

for (const variant of SINGLE_THREAD_VARIANTS) {
  describe(`attention in WASM equals f64, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const c of ATTENTION_CASES)
      test(c.name, async () => {
        const { error, errorUnrounded } = await runCase(await opener(variant), c);
        assert.ok(error <= TOLERANCE, `relative error ${error}`);
        assert.ok(errorUnrounded <= TOLERANCE_UNROUNDED, `${errorUnrounded} against f32 keys and values`);
      });
    for (const c of LONG_CASES)
      test(c.name, async () => {
        const { error } = await runCase(await opener(variant), c);
        assert.ok(error <= TOLERANCE, `relative error ${error}`);
      });

    test("logits of a thousand stay finite", async () => {
      for (const chunks of [BASE.chunks, [300, 1, 40]])
        for (const softcap of [undefined, 50]) {
          const c: AttentionCase = { ...BASE, name: "large", chunks, qScale: 500, softcap, lists: "masked" };
          const { error, actual } = await runCase(await opener(variant), c);
          assert.ok(actual.every(Number.isFinite));
          // A logit of 1e3 carries 1e-4 of rounding in f32, which is its weight's relative error.
          assert.ok(error <= 5e-3, `relative error ${error}`);
        }
    });
  });
}

test("memory that held NaN before does not reach an answer through the free places of a page", async () => {
  const c: AttentionCase = {
    name: "",
    nHeads: 4,
    nKvHeads: 2,
    headDim: 16,
    format: "f32",
    chunks: [300, 1],
    blockSize: 32,
    lists: "dense",
  };
  const ops = new WasmOps(await instantiate("simd"));
  const expected = await runCase(() => openWasm(ops, c), c);
  const { wasm } = ops;
  const blocks = Array.from({ length: 64 }, () => wasm.alloc(1 << 14, "test"));
  for (const ptr of blocks) wasm.bytes(ptr, 1 << 14).fill(0xff);
  for (const ptr of blocks) wasm.free(ptr);
  assert.deepEqual(await runCase(() => openWasm(ops, c), c), expected);
});

test("the same call twice gives the same bits", async () => {
  const c: AttentionCase = { ...BASE, name: "twice", chunks: [290, 1, 64] };
  const open = await opener("simd");
  const [first, second] = [await runKernels(open, c), await runKernels(open, c)];
  assert.deepEqual(first.actual, second.actual);
});
