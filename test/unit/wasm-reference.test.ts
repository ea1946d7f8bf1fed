/**
 * The scalar C++ references beside the kernels (wasm/kernels/*_reference.cpp): the product builds against them over
 * sizes around every tile edge, and they against the f64 reference in TypeScript, so that the chain is closed.
 *
 * Both sides round activations alike (int8 levels and f16 scales, or f16), so kernels differ by the rounding of f32
 * sums: 1e-6 of the sum of magnitudes, as in wasm-matmul.test.ts.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { wasmTensor } from "../../src/backend/wasm/wasm-tensor.ts";
import { TENSOR_TYPES, type TensorType, tensorType } from "../../src/gguf/tensor-types.ts";
import { quantize } from "../../tools/gguf/quantize.mjs";
import { assertClose } from "../fixtures/close.ts";
import { normals } from "../fixtures/random.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { dequantize } from "../reference/dequantize.ts";
import { roundInput } from "../reference/input-rounding.ts";

const RELATIVE = 1e-6;
const ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65];
const TOKENS = [1, 3, 4, 5, 8, 33];

interface Case {
  readonly type: TensorType;
  readonly rows: number;
  readonly cols: number;
  readonly nTokens: number;
  /** Weights as in the file. */
  readonly bytes: Uint8Array;
  readonly x: Float32Array;
}

function makeCase(type: TensorType, rows: number, cols: number, nTokens: number): Case {
  const seed = 1000 * rows + 10 * cols + nTokens;
  const bytes = quantize(type.name, normals(rows * cols, seed, 0.05));
  return { type, rows, cols, nTokens, bytes, x: normals(nTokens * cols, seed + 1) };
}

function copyIn(wasm: WasmModule, bytes: Uint8Array): number {
  const ptr = wasm.alloc(bytes.byteLength, "test input");
  wasm.bytes(ptr, bytes.byteLength).set(bytes);
  return ptr;
}

const f64 = (wasm: WasmModule, ptr: number, n: number) => new Float64Array(wasm.u8.buffer, ptr, n).slice();

/** (nTokens, rows). */
function referenceMatmul(wasm: WasmModule, { type, rows, cols, nTokens, bytes, x }: Case): Float64Array {
  const w = copyIn(wasm, bytes);
  const input = copyIn(wasm, new Uint8Array(x.buffer, x.byteOffset, x.byteLength));
  const out = wasm.alloc(nTokens * rows * 8, "products");
  wasm.call("reference_matmul", type.id, w, input, out, nTokens, rows, cols);
  const products = f64(wasm, out, nTokens * rows);
  for (const ptr of [w, input, out]) wasm.free(ptr);
  return products;
}

/** Bound of the sums whose rounding is allowed, per token: (largest weight, twice) times sum |x|. */
function magnitudes({ type, bytes, x, cols, nTokens }: Case): number[] {
  const largest = 2 * dequantize(type.id, bytes).reduce((most, w) => Math.max(most, Math.abs(w)), 0);
  return Array.from({ length: nTokens }, (_, t) =>
    x.subarray(t * cols, (t + 1) * cols).reduce((sum, v) => sum + largest * Math.abs(v), 0),
  );
}

for (const variant of SINGLE_THREAD_VARIANTS) {
  describe(`kernels beside their references, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const type of TENSOR_TYPES) {
      test(`${type.name}: rows ${ROWS.join(" ")}, tokens ${TOKENS.join(" ")}`, async () => {
        const ops = new WasmOps(await instantiate(variant));
        const reference = await instantiate("reference");
        for (const [i, rows] of ROWS.entries())
          for (const nTokens of TOKENS) {
            const cols = type.blockElements === 1 ? [3, 16, 37][i % 3]! : type.blockElements * (1 + (i % 3));
            // A float "matrix" of one row is a vector, which no linear map uses.
            const given = makeCase(type, rows === 1 && type.blockElements === 1 ? 2 : rows, cols, nTokens);
            const dims = given.rows === 1 ? [cols] : [cols, given.rows];
            const byteLength = given.bytes.byteLength;
            const writer = ops.createWeight({
              name: "w",
              type,
              dims,
              offset: 0,
              byteLength,
              rows: given.rows,
              cols,
              shard: 0,
            });
            writer.write(given.bytes);
            using input = ops.heap.create(nTokens, cols);
            input.view.set(given.x);
            const [out] = ops.linear(input, [{ weight: writer.finish() }]);
            using product = wasmTensor(out!);
            const size = magnitudes(given);
            const expected = referenceMatmul(reference, given);
            const what = `${type.name} (${given.rows}, ${cols}), ${nTokens} tokens`;
            assertClose(
              product.view,
              expected,
              (at) => RELATIVE * size[Math.floor(at / given.rows)]! + 1e-12,
              what,
            );
          }
      });
    }
  });
}

describe("C++ references against TypeScript's", () => {
  for (const type of TENSOR_TYPES)
    test(type.name, async () => {
      const wasm = await instantiate("reference");
      const given = makeCase(type, 3, type.blockElements === 1 ? 20 : 2 * type.blockElements, 2);
      const { rows, cols, nTokens, bytes, x } = given;
      const weights = dequantize(type.id, bytes);
      const w = copyIn(wasm, bytes);
      const values = wasm.alloc(rows * cols * 8, "weights");
      wasm.call("reference_dequantize", type.id, w, rows, cols, values);
      // Both are exact: an f16, a scale and a level fit in f64. (+ 0 makes -0 equal to 0.)
      assert.deepEqual(
        f64(wasm, values, rows * cols).map((v) => v + 0),
        weights.map((v) => v + 0),
      );

      // K types are rounded per 32 as the rest are, and BF16 not at all.
      const isFloat = type.blockElements === 1;
      const like = isFloat ? (type.name === "F16" ? type.id : tensorType("F32").id) : tensorType("Q8_0").id;
      const expected = Array.from({ length: nTokens * rows }, (_, i) => {
        const t = Math.floor(i / rows);
        const input = roundInput(like, Float64Array.from(x.subarray(t * cols, (t + 1) * cols)));
        return input.reduce((sum, v, c) => sum + v * weights[(i % rows) * cols + c]!, 0);
      });
      assertClose(referenceMatmul(wasm, given), expected, 1e-12, type.name);
    });
});
