/** What the WASM backend computes for selection policies: pooled rows and sampled attention, beside plain loops and f64. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WasmAttention } from "../../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { poolRows, sampleMasses } from "../fixtures/policy-case.ts";
import { normals } from "../fixtures/random.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`${variant} build`, { skip: cannotRun(variant) }, () => {
    test("pooled rows: each run is the sum of its tokens, the first goes on", async () => {
      const ops = new WasmOps(await instantiate(variant));
      for (const [width, ends] of [
        [8, [1]],
        [576, [32, 64, 65]],
        [24, [5, 5, 37, 101]],
      ] as const) {
        const x = normals(ends.at(-1)! * width, 1);
        using tensor = ops.heap.create(ends.at(-1)!, width);
        tensor.view.set(x);
        const first = normals(width, 2);
        const expected = new Float32Array(ends.length * width);
        expected.set(first);
        using pooled = ops.pool(tensor, Uint32Array.from(ends), first);
        const actual = ops.read(pooled);
        poolRows(x, width, Uint32Array.from(ends), expected);
        for (const [i, e] of expected.entries())
          assert.ok(Math.abs(actual[i]! - e) <= 1e-4 * (1 + Math.abs(e)), `${i}: ${actual[i]} for ${e}`);
      }
    });

    test("pooling a cut run gives the bits of the whole one", async () => {
      const ops = new WasmOps(await instantiate(variant));
      const x = normals(50 * 16, 3);
      const pool = (from: number, to: number, sums: Float32Array) => {
        using tensor = ops.heap.create(to - from, 16);
        tensor.view.set(x.subarray(from * 16, to * 16));
        using pooled = ops.pool(tensor, Uint32Array.of(to - from), sums);
        return ops.read(pooled);
      };
      const whole = pool(0, 50, new Float32Array(16));
      assert.deepEqual(pool(13, 50, pool(0, 13, new Float32Array(16))), whole);
    });

    for (const window of [undefined, 40])
      for (const format of ["f32", "f16"] as const)
        test(`sampled attention equals f64, ${format} pages, window ${window}`, async () => {
          const ops = new WasmOps(await instantiate(variant));
          const shape = { nLayers: 1, nHeads: 6, nKvHeads: 2, headDim: 16, window: [window] };
          const attention = new WasmAttention(ops, { ...shape, format });
          const cache = attention.createCache();
          const rows = { q: normals(200 * 96, 1), k: normals(200 * 32, 2, 0.5) };
          for (const [qStart, qLen] of [
            [0, 77],
            [77, 123],
          ] as const) {
            const blocks = { qStart, qLen, blockSize: 32 };
            const load = (x: Float32Array, width: number) => {
              const tensor = ops.heap.create(qLen, width);
              tensor.view.set(x.subarray(qStart * width, (qStart + qLen) * width));
              return tensor;
            };
            using q = load(rows.q, 96);
            using k = load(rows.k, 32);
            cache.reserve(qLen);
            const sampled = Uint32Array.of(0, 19, 33, qLen - 1);
            const call = { layer: 0, q, k, v: k, cache, blocks, scale: 16 ** -0.5, window };
            const actual = attention.sampleMasses(call, sampled);
            const expected = sampleMasses(rows, shape, blocks, sampled, 0);
            assert.equal(actual.nPages, expected.nPages);
            // Keys of f16 pages have 11 bits, and outliers make logits of some dozens.
            const tolerance = format === "f32" ? 2e-4 : 0.1;
            for (const name of ["columns", "diagonals"] as const)
              for (const [i, e] of expected[name].entries())
                assert.ok(
                  Math.abs(actual[name][i]! - e) <= tolerance,
                  `${name} ${i}: ${actual[name][i]} for ${e}`,
                );
            cache.commit(qLen);
          }
        });
  });
