/**
 * The scalar C++ references beside the kernels (wasm/kernels/*_reference.cpp): the product builds against them over
 * sizes around every tile edge, and they against the f64 reference in TypeScript, so that the chain is closed.
 *
 * Both sides round activations alike (int8 levels and f16 scales, or f16), so matmuls differ by the rounding of f32
 * sums: 1e-6 of the sum of magnitudes, as in wasm-matmul.test.ts. Element-wise kernels round a handful of times: 1e-6 of
 * the largest operand. Attention: 1e-5, as in wasm-attention.test.ts.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Weight } from "../../src/backend/backend.ts";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { wasmTensor } from "../../src/backend/wasm/wasm-tensor.ts";
import { TENSOR_TYPES, type TensorType, tensorType } from "../../src/gguf/tensor-types.ts";
import { quantize } from "../../tools/gguf/quantize.mjs";
import { type AttentionCase, openWasm, relativeError, runKernels } from "../fixtures/attention-case.ts";
import { BASE } from "../fixtures/attention-table.ts";
import { assertClose } from "../fixtures/close.ts";
import { normals } from "../fixtures/random.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { dequantize } from "../reference/dequantize.ts";
import { roundInput } from "../reference/input-rounding.ts";
import { type PagedProblem, pagedAttention } from "../reference/paged-attention.ts";

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
            const [out] = ops.linear(input, [{ weight: writer.finish() as Weight }]);
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

/** Arrays on the heap of `wasm` for one call of a reference whose result is `n` f64. */
function callReference(
  wasm: WasmModule,
  name: string,
  arrays: readonly (Float32Array | Uint8Array)[],
  n: number,
  ...counts: readonly number[]
): Float64Array {
  const inputs = arrays.map((a) => copyIn(wasm, new Uint8Array(a.buffer, a.byteOffset, a.byteLength)));
  const out = wasm.alloc(n * 8, "results");
  wasm.call(name, ...inputs, out, ...counts);
  const results = f64(wasm, out, n);
  for (const ptr of [...inputs, out]) wasm.free(ptr);
  return results;
}

const largest = (values: ArrayLike<number>) =>
  Array.from(values).reduce((most, v) => Math.max(most, Math.abs(v)), 0);

/** Weights of a layer that leaves its input as it is. */
function identity(ops: WasmOps, width: number): Weight {
  const values = Float32Array.from({ length: width * width }, (_, i) => (i % (width + 1) === 0 ? 1 : 0));
  const type = tensorType("F32");
  const info = { name: "identity", type, dims: [width, width], offset: 0, byteLength: values.byteLength };
  const writer = ops.createWeight({ ...info, rows: width, cols: width, shard: 0 });
  writer.write(new Uint8Array(values.buffer));
  return writer.finish() as Weight;
}

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`row kernels beside their references, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const cols of [1, 3, 4, 5, 64, 577])
      test(`rms_norm of ${cols} columns`, async () => {
        const ops = new WasmOps(await instantiate(variant));
        const x = normals(3 * cols, cols);
        const w = normals(cols, cols + 1);
        const info = {
          name: "norm",
          type: tensorType("F32"),
          dims: [cols],
          offset: 0,
          rows: 1,
          cols,
          shard: 0,
        };
        const writer = ops.createWeight({ ...info, byteLength: w.byteLength });
        writer.write(new Uint8Array(w.buffer));
        using input = ops.heap.create(3, cols);
        input.view.set(x);
        using out = wasmTensor(ops.rmsNorm(input, writer.finish() as Weight, 1e-5));
        const reference = await instantiate("reference");
        const expected = callReference(reference, "reference_rms_norm", [x, w], 3 * cols, 3, cols, 1e-5);
        assertClose(out.view, expected, 1e-6 * largest(expected), `${cols} columns`);
      });

    for (const [headDim, nRot] of [
      [8, 8],
      [16, 6],
      [64, 64],
    ] as const)
      for (const pairs of ["adjacent", "halves"] as const)
        test(`rope of ${nRot} in ${headDim} dimensions, ${pairs}`, async () => {
          const ops = new WasmOps(await instantiate(variant));
          const [nTokens, nHeads] = [5, 3];
          const x = normals(nTokens * nHeads * headDim, headDim);
          const angles = Float32Array.from({ length: nTokens * nRot }, (_, i) =>
            i % 2 === 0 ? Math.cos(i) : Math.sin(i - 1),
          );
          using input = ops.heap.create(nTokens, nHeads * headDim);
          input.view.set(x);
          using table = ops.ropeAngles({ angles, nTokens, nRot, pairs });
          ops.ropeInPlace(input, table, headDim);
          const counts = [nTokens, nHeads, headDim, nRot, pairs === "halves" ? 1 : 0];
          const reference = await instantiate("reference");
          const expected = callReference(reference, "reference_rope", [x, angles], x.length, ...counts);
          assertClose(input.view, expected, 1e-6 * largest(x), pairs);
        });

    for (const act of ["silu", "gelu"] as const)
      test(`${act} gate`, async () => {
        const ops = new WasmOps(await instantiate(variant));
        const width = 37;
        const x = normals(2 * width, 5, 2);
        const one = identity(ops, width);
        using input = ops.heap.create(2, width);
        input.view.set(x);
        using out = wasmTensor(ops.gatedLinear(input, one, one, act));
        const reference = await instantiate("reference");
        const expected = callReference(
          reference,
          "reference_gate",
          [x, x],
          x.length,
          x.length,
          act === "gelu" ? 1 : 0,
        );
        assertClose(out.view, expected, (i) => 1e-6 * (x[i]! * x[i]! + 1), act);
      });
  });

/** What each query of a case sees: (nTokens, nKeys) of 0 and 1. Page lists shared by the heads. */
function seenKeys(problem: PagedProblem, nTokens: number): Uint8Array {
  const seen = new Uint8Array(nTokens * nTokens);
  for (const { blocks, lists } of problem.calls)
    for (let t = 0; t < blocks.qLen; t++) {
      const query = blocks.qStart + t;
      const row = Math.floor(t / blocks.blockSize);
      for (let i = lists.rowPtr[row]!; i < lists.rowPtr[row + 1]!; i++)
        for (let bit = 0; bit < 32; bit++) {
          const key = lists.page[i]! * 32 + bit;
          const isKept = lists.mask === undefined || ((lists.mask[i]! >>> bit) & 1) === 1;
          const isInWindow = problem.window === undefined || query - key < problem.window;
          if (key <= query && isKept && isInWindow) seen[query * nTokens + key] = 1;
        }
    }
  return seen;
}

async function referenceAttention(problem: PagedProblem): Promise<Float64Array> {
  const { nHeads, nKvHeads, headDim, q, k, v, scale, softcap } = problem;
  const nTokens = q.length / (nHeads * headDim);
  const arrays = [
    Float32Array.from(q),
    Float32Array.from(k),
    Float32Array.from(v),
    seenKeys(problem, nTokens),
  ];
  const counts = [nTokens, nTokens, nHeads, nKvHeads, headDim, scale, softcap ?? 0];
  return callReference(await instantiate("reference"), "reference_attend", arrays, q.length, ...counts);
}

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`attention beside its reference, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const [what, changes] of Object.entries({
      "one token": { chunks: [1] },
      "a page less one, a page, a page and one": { chunks: [31, 1, 1] },
      "heads of 8, one KV head": { headDim: 8, nKvHeads: 1, chunks: [70] },
      "a window and a soft cap": { window: 40, softcap: 20, chunks: [90, 1] },
      "masked lists": { lists: "masked", chunks: [100, 1, 5] },
      "past 256 keys": { chunks: [270, 1] },
    } satisfies Record<string, Partial<AttentionCase>>))
      test(what, async () => {
        const ops = new WasmOps(await instantiate(variant));
        const c: AttentionCase = { ...BASE, format: "f32", name: what, ...changes };
        const { actual, problem } = await runKernels((shape) => openWasm(ops, shape), c);
        const error = relativeError(actual, await referenceAttention(problem), c.headDim);
        assert.ok(error <= 1e-5, `relative error ${error}`);
      });
  });

describe("C++ references against TypeScript's", () => {
  test("attention", async () => {
    const ops = new WasmOps(await instantiate("simd"));
    const c: AttentionCase = {
      ...BASE,
      name: "chain",
      chunks: [40, 3],
      lists: "masked",
      window: 30,
      softcap: 10,
    };
    const { problem } = await runKernels((shape) => openWasm(ops, shape), c);
    assertClose(await referenceAttention(problem), pagedAttention(problem), 1e-12, "attention");
  });

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
