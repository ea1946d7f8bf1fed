/**
 * Linear maps in WASM against f64: every weight type, sizes around every tile edge, one and many tokens.
 *
 * The reference rounds activations as the kernels do (int8 per 32 columns with an f16 scale for quantized weights, f16
 * for f16 weights), so what is left is the rounding of f32 sums: at most (terms * 2^-24) of the sum of magnitudes, in
 * practice far below; 1e-6 of it is allowed.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { wasmTensor } from "../../src/backend/wasm/wasm-tensor.ts";
import { InlayError } from "../../src/errors.ts";
import { TENSOR_TYPES, type TensorType, tensorType } from "../../src/gguf/tensor-types.ts";
import { quantize } from "../../tools/gguf/quantize.mjs";
import { assertClose } from "../fixtures/close.ts";
import { normals } from "../fixtures/random.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { dequantize } from "../reference/dequantize.ts";
import { roundInput } from "../reference/input-rounding.ts";

const RELATIVE = 1e-6;

interface Matrix {
  readonly type: TensorType;
  readonly rows: number;
  readonly cols: number;
  readonly bytes: Uint8Array;
}

function randomMatrix(type: TensorType, rows: number, cols: number, seed: number): Matrix {
  return { type, rows, cols, bytes: quantize(type.name, normals(rows * cols, seed, 0.05)) };
}

function upload(ops: WasmOps, { type, rows, cols, bytes }: Matrix, chunk = bytes.byteLength) {
  const dims = rows === 1 ? [cols] : [cols, rows];
  const info = { name: "w", dims, type, offset: 0, byteLength: bytes.byteLength, rows, cols, shard: 0 };
  const writer = ops.createWeight(info);
  for (let at = 0; at < bytes.byteLength; at += chunk) writer.write(bytes.subarray(at, at + chunk));
  return writer.finish() as ReturnType<typeof writer.finish> & { rows: number; cols: number; name: string };
}

/** x as it enters a product: the type that ggml would give it, except that K types are rounded per 32 like the rest. */
function rounded(type: TensorType, x: Float32Array): Float64Array {
  const isFloat = ["F32", "F16", "BF16"].includes(type.name);
  const like = isFloat ? (type.name === "F16" ? 1 : 0) : tensorType("Q8_0").id;
  return roundInput(like, Float64Array.from(x));
}

/** Products in f64, and the sizes of the sums that bound their rounding errors, each (nTokens, rows). */
function reference({ type, rows, cols, bytes }: Matrix, x: Float32Array, nTokens: number) {
  const weights = dequantize(type.id, bytes);
  const out = new Float64Array(nTokens * rows);
  const magnitude = new Float64Array(nTokens * rows);
  for (let t = 0; t < nTokens; t++) {
    const input = rounded(type, x.subarray(t * cols, (t + 1) * cols));
    for (let r = 0; r < rows; r++) {
      const row = weights.subarray(r * cols, (r + 1) * cols);
      // Formats with a minimum subtract two large sums, scale * (quants · x) and min * (sum of x), whose terms are
      // up to twice the row's largest weight.
      const largest = 2 * row.reduce((most, w) => Math.max(most, Math.abs(w)), 0);
      let sum = 0;
      let size = 0;
      for (let c = 0; c < cols; c++) {
        sum += row[c]! * input[c]!;
        size += largest * Math.abs(input[c]!);
      }
      out[t * rows + r] = sum;
      magnitude[t * rows + r] = size;
    }
  }
  return { out, magnitude };
}

function tensorOf(ops: WasmOps, x: Float32Array, nTokens: number, width: number) {
  const tensor = ops.heap.create(nTokens, width);
  tensor.view.set(x);
  return tensor;
}

const TOKENS = [1, 2, 3, 4, 5, 7, 8, 9, 33];
const ROWS = [1, 3, 4, 5, 8, 9, 31, 64, 131];

for (const variant of SINGLE_THREAD_VARIANTS) {
  describe(`linear, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const type of TENSOR_TYPES) {
      const unit = type.blockElements;
      const columns = unit === 1 ? [1, 3, 4, 15, 16, 17, 172] : [unit, 2 * unit, 3 * unit, 5 * unit];
      test(`${type.name}: rows ${ROWS.join(" ")}, columns ${columns.join(" ")}, tokens ${TOKENS.join(" ")}`, async () => {
        const ops = new WasmOps(await instantiate(variant));
        let seed = type.id + 1;
        for (const rows of ROWS) {
          const cols = columns[rows % columns.length]!;
          for (const nTokens of TOKENS) {
            // A float "matrix" of one row is a vector, which no linear map uses.
            const matrix = randomMatrix(type, rows === 1 && unit === 1 ? 2 : rows, cols, seed++);
            const x = normals(nTokens * cols, seed++);
            const weight = upload(ops, matrix);
            using input = tensorOf(ops, x, nTokens, cols);
            const [out] = ops.linear(input, [{ weight }]);
            using product = wasmTensor(out!);
            const expected = reference(matrix, x, nTokens);
            assertClose(
              product.view,
              expected.out,
              (i) => RELATIVE * expected.magnitude[i]! + 1e-12,
              `${type.name} (${matrix.rows}, ${cols}), ${nTokens} tokens`,
            );
          }
        }
      });
    }

    test("several maps of different types, biases, and adding to a residual", async () => {
      const ops = new WasmOps(await instantiate(variant));
      const cols = 256;
      const nTokens = 6;
      const x = normals(nTokens * cols, 3);
      using input = tensorOf(ops, x, nTokens, cols);
      const matrices = (["Q4_K", "Q8_0", "F16"] as const).map((name, i) =>
        randomMatrix(tensorType(name), [40, 13, 10][i]!, cols, 20 + i),
      );
      const bias = normals(40, 9);
      const biasWeight = upload(ops, {
        type: tensorType("F32"),
        rows: 1,
        cols: 40,
        bytes: new Uint8Array(bias.buffer),
      });
      const outs = ops.linear(
        input,
        matrices.map((m, i) => ({ weight: upload(ops, m), bias: i === 0 ? biasWeight : undefined })),
      );
      for (const [i, matrix] of matrices.entries()) {
        const { out, magnitude } = reference(matrix, x, nTokens);
        const expected = out.map((v, at) => (i === 0 ? v + bias[at % 40]! : v));
        using result = wasmTensor(outs[i]!);
        assertClose(result.view, expected, (at) => RELATIVE * (magnitude[at]! + 3), `map ${i}`);
      }
      const residual = normals(nTokens * 13, 77);
      using sum = tensorOf(ops, residual, nTokens, 13);
      ops.linearAdd(input, { weight: upload(ops, matrices[1]!) }, sum);
      const { out, magnitude } = reference(matrices[1]!, x, nTokens);
      const expected = out.map((v, i) => v + residual[i]!);
      assertClose(sum.view, expected, (at) => RELATIVE * (magnitude[at]! + 60), "residual");
    });

    test("a weight arrives in pieces of any size", async () => {
      const wasm = await instantiate(variant);
      const ops = new WasmOps(wasm);
      const x = normals(3 * 64, 5);
      using input = tensorOf(ops, x, 3, 64);
      for (const name of ["Q4_0", "Q8_0", "F32", "F16"] as const) {
        const matrix = randomMatrix(tensorType(name), 37, 64, 8);
        const whole = ops.linear(input, [{ weight: upload(ops, matrix) }])[0]!;
        for (const chunk of [1, 17, 34, 1000]) {
          const pieces = ops.linear(input, [{ weight: upload(ops, matrix, chunk) }])[0]!;
          assert.deepEqual(
            wasmTensor(pieces).view.slice(),
            wasmTensor(whole).view.slice(),
            `${name} by ${chunk}`,
          );
        }
      }
    });

    test("embedding rows are dequantized exactly", async () => {
      const ops = new WasmOps(await instantiate(variant));
      for (const type of TENSOR_TYPES) {
        const cols = type.blockElements === 1 ? 20 : 2 * type.blockElements;
        const matrix = randomMatrix(type, 11, cols, 4);
        const values = dequantize(type.id, matrix.bytes);
        const ids = Uint32Array.of(10, 0, 3, 3, 7);
        using rows = wasmTensor(ops.embed(upload(ops, matrix), ids));
        const expected = Array.from(ids).flatMap((id) =>
          Array.from(values.subarray(id * cols, (id + 1) * cols)),
        );
        // One f32 rounding of scale * quant, one of adding the minimum.
        const most = Math.max(...expected.map(Math.abs));
        assertClose(rows.view, expected, 3e-7 * most, type.name);
      }
    });
  });
}

describe("weights that cannot be used", () => {
  const control = () => randomMatrix(tensorType("Q4_0"), 8, 64, 1);

  async function failure(matrix: Matrix): Promise<InlayError> {
    const ops = new WasmOps(await instantiate("simd"));
    try {
      upload(ops, matrix);
    } catch (error) {
      assert.ok(error instanceof InlayError, String(error));
      return error;
    }
    return assert.fail("no error");
  }

  test("the control loads", async () => {
    upload(new WasmOps(await instantiate("simd")), control());
  });

  test("a NaN scale is found and named with its rows and columns", async () => {
    const matrix = control();
    // Row 6, second block of 32 columns: an f16 NaN.
    matrix.bytes.set([0x01, 0x7e], 6 * 36 + 18);
    const error = await failure(matrix);
    assert.equal(error.code, "invalid-model");
    assert.match(error.message, /tensor w \(Q4_0\).*not finite.*rows 4–7, columns from 32/);
  });

  test("an infinite f32 weight is found and named", async () => {
    const matrix = randomMatrix(tensorType("F32"), 4, 8, 1);
    new Float32Array(matrix.bytes.buffer, matrix.bytes.byteOffset)[2 * 8 + 5] = Infinity;
    const error = await failure(matrix);
    assert.equal(error.code, "invalid-model");
    assert.match(error.message, /row 2, column 5/);
  });

  test("missing and surplus bytes are refused", async () => {
    const { bytes, ...shape } = control();
    const ops = new WasmOps(await instantiate("simd"));
    const info = { name: "w", dims: [64, 8], offset: 0, byteLength: bytes.byteLength, shard: 0, ...shape };
    const short = ops.createWeight(info);
    short.write(bytes.subarray(1));
    assert.throws(() => short.finish(), { code: "invalid-model", message: /287 bytes.*needs 288/ });
    const long = ops.createWeight(info);
    long.write(bytes);
    assert.throws(() => long.write(Uint8Array.of(0)), { code: "invalid-model" });
  });
});

test("tensors are freed and counted", async () => {
  const wasm: WasmModule = await instantiate("simd");
  const ops = new WasmOps(wasm);
  const weight = upload(ops, randomMatrix(tensorType("Q4_0"), 64, 64, 1));
  for (let i = 0; i < 3; i++) {
    using x = tensorOf(ops, normals(64, 2), 1, 64);
    const [out] = ops.linear(x, [{ weight }]);
    assert.equal(ops.memory().scratch, 2 * 64 * 4);
    out![Symbol.dispose]();
  }
  assert.equal(ops.memory().scratch, 0);
});
