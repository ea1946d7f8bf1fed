/** Sampled attention on the GPU, over pages of every format, beside f64. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { HybridAttention } from "../../src/backend/webgpu/hybrid-attention.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";
import { sampleMasses } from "../fixtures/policy-case.ts";
import { normals } from "../fixtures/random.ts";
import { instantiate } from "../fixtures/wasm.ts";

const found = await nodeDevice();
/** Keys of f16 pages have 11 bits, of q8 about 8. */
const TOLERANCE = { f32: 2e-4, f16: 0.05, q8: 0.1 } as const;

describe("sampled attention on the GPU", { skip: found.skip }, () => {
  if (found.skip !== false) return;
  const { device } = found;
  for (const [format, window, nHeads] of [
    ["f32", undefined, 6],
    ["f32", 40, 2],
    ["f16", undefined, 6],
    ["q8", undefined, 6],
  ] as const)
    test(`equals f64, ${format} pages, window ${window}, ${nHeads} heads on 2`, async () => {
      const ops = new WasmOps(await instantiate("simd"));
      const heads = { nLayers: 1, nHeads, nKvHeads: 2, headDim: 16 };
      const pages = format === "q8" ? ({ format: "f32", cold: format } as const) : { format };
      const attention = await HybridAttention.create(device, ops.heap, { ...heads, ...pages });
      const cache = attention.createCache();
      const width = nHeads * 16;
      const rows = { q: normals(300 * width, 1), k: normals(300 * 32, 2, 0.5) };
      for (const [qStart, qLen] of [
        [0, 77],
        [77, 123],
        [200, 99],
        [299, 1],
      ] as const) {
        const blocks = { qStart, qLen, blockSize: qLen === 1 ? 1 : 32 };
        const load = (x: Float32Array, columns: number) => {
          const tensor = ops.heap.create(qLen, columns);
          tensor.view.set(x.subarray(qStart * columns, (qStart + qLen) * columns));
          return tensor;
        };
        using q = load(rows.q, width);
        using k = load(rows.k, 32);
        cache.reserve(qLen);
        const sampled = qLen === 1 ? Uint32Array.of(0) : Uint32Array.of(0, 19, 33, qLen - 1);
        const call = { layer: 0, q, k, v: k, cache, blocks, scale: 0.25, window };
        const actual = await attention.sampleMasses(call, sampled);
        const expected = sampleMasses(rows, { ...heads, window: [window] }, blocks, sampled, 0);
        assert.equal(actual.nPages, expected.nPages);
        for (const name of ["columns", "diagonals"] as const) {
          assert.equal(actual[name].length, expected[name].length);
          for (const [i, e] of expected[name].entries())
            assert.ok(
              Math.abs(actual[name][i]! - e) <= TOLERANCE[format],
              `${name} ${i}: ${actual[name][i]} for ${e}`,
            );
        }
        cache.commit(qLen);
      }
      cache.dispose();
      attention.dispose();
    });
});
