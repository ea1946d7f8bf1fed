/**
 * Linear algebra on WebGPU against f64: every weight type, sizes around every tile edge, every kernel of GpuOps.
 *
 * Nothing is rounded but f32 sums: activations stay f32 for quantized weights too (WASM rounds them to int8). Of the sum
 * of magnitudes that bounds that rounding, 1e-6 is allowed, as for WASM; SwiftShader stays below 1e-7.
 */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { GpuOps, gpuTensor } from "../../src/backend/webgpu/gpu-ops.ts";
import { gpuMatrix } from "../../src/backend/webgpu/gpu-weights.ts";
import { linearSelfTest } from "../../src/backend/webgpu/linear-self-test.ts";
import { InlayError } from "../../src/errors.ts";
import { TENSOR_TYPES, type TensorTypeName, tensorType } from "../../src/gguf/tensor-types.ts";
import { quantize } from "../../tools/gguf/quantize.mjs";
import { assertClose } from "../fixtures/close.ts";
import {
  infoOf,
  type Matrix,
  product,
  randomMatrix,
  runProduct,
  tensorOf,
  upload,
  vectorOf,
  worstError,
} from "../fixtures/matmul-case.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";
import { normals } from "../fixtures/random.ts";
import { instantiate } from "../fixtures/wasm.ts";
import { dequantize } from "../reference/dequantize.ts";
import { gelu, rmsNorm, silu } from "../reference/math.ts";
import { pairFrequency, rotate } from "../reference/rope.ts";

const RELATIVE = 1e-6;

const found = await nodeDevice();
const { skip } = found;

/** Around 4 rows of a thread, 32 and 64 of a workgroup. */
const ROWS = [1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129];
/** Around 4 tokens of a gemv slot, the change to gemm at 9, tiles of 32. */
const TOKENS = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65];
/** Tokens that are tried with every number of rows, turning. */
const TURNS = 4;

const FLOAT_COLUMNS = [1, 3, 31, 32, 33, 64, 172];
/** In blocks: the number of threads that share a row changes at 8. */
const BLOCK_COLUMNS = [1, 2, 3, 7, 8, 9];
const GROUP_COLUMNS = [1, 2, 3];

function columnsOf(name: TensorTypeName): number[] {
  const unit = tensorType(name).blockElements;
  if (unit === 1) return FLOAT_COLUMNS;
  return (unit === 32 ? BLOCK_COLUMNS : GROUP_COLUMNS).map((n) => n * unit);
}

/** The values of a tensor. */
async function valuesOf(ops: GpuOps, tensor: Disposable & { nTokens: number; width: number }) {
  using owned = gpuTensor(tensor);
  return ops.read(owned);
}

/** A GPU device that says it has smaller buffers than it has. */
function withBuffersOf(device: GpuDevice, byteLength: number): GpuDevice {
  const limits = new Proxy(device.limits, {
    get: (target, name) =>
      /Buffer.*Size$/.test(String(name)) ? byteLength : Reflect.get(target, name, target),
  });
  return new Proxy(device, {
    get(target, name) {
      if (name === "limits") return limits;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

describe("linear algebra on WebGPU", { skip }, () => {
  if (found.skip !== false) return;
  const { device, gpu } = found;
  const ops = GpuOps.create(device);
  after(async () => {
    (await ops).dispose();
    device.dispose();
  });

  describe("linear", () => {
    for (const { name, id } of TENSOR_TYPES) {
      const columns = columnsOf(name);
      test(`${name}: rows ${ROWS.join(" ")}, columns ${columns.join(" ")}, tokens ${TOKENS.join(" ")}`, async () => {
        const on = await ops;
        let seed = id + 1;
        let turn = id;
        for (const [i, wanted] of ROWS.entries()) {
          // A float "matrix" of one row is a vector, which no linear map uses.
          const rows = wanted === 1 && tensorType(name).blockElements === 1 ? 2 : wanted;
          const cols = columns[i % columns.length]!;
          const matrix = randomMatrix(name, rows, cols, seed++);
          for (let n = 0; n < TURNS; n++) {
            const nTokens = TOKENS[turn++ % TOKENS.length]!;
            const error = await runProduct(on, matrix, nTokens, seed++);
            assert.ok(error <= RELATIVE, `(${rows}, ${cols}), ${nTokens} tokens: ${error}`);
          }
        }
      });
    }

    test("every number of rows with every number of tokens", async () => {
      for (const [i, rows] of ROWS.entries()) {
        const matrix = randomMatrix("Q4_0", rows, 32 * (1 + (i % 4)), rows);
        for (const nTokens of TOKENS) {
          const error = await runProduct(await ops, matrix, nTokens, nTokens);
          assert.ok(error <= RELATIVE, `${rows} rows, ${nTokens} tokens: ${error}`);
        }
      }
    });

    test("long rows, which more threads share", async () => {
      for (const [name, cols] of [
        ["Q4_0", 32 * 67],
        ["F16", 2080],
        ["Q6_K", 256 * 9],
      ] as const)
        for (const rows of [2, 67])
          for (const nTokens of [1, 6]) {
            const error = await runProduct(await ops, randomMatrix(name, rows, cols, 7), nTokens, 8);
            assert.ok(error <= RELATIVE, `${name} (${rows}, ${cols}), ${nTokens} tokens: ${error}`);
          }
    });

    test("every tuning gives the same products", async () => {
      for (const tuning of [
        { gemvThreads: 128, targetGroups: 1, gemmFrom: Infinity },
        { gemvThreads: 256, targetGroups: 4096, gemmFrom: Infinity },
        { gemmFrom: 1, gemmTokens: 64 },
      ]) {
        const tuned = await GpuOps.create(device, { tuning });
        for (const name of ["F32", "Q4_K"] as const)
          for (const [rows, nTokens] of [
            [5, 1],
            [129, 33],
            [70, 65],
          ] as const) {
            const error = await runProduct(tuned, randomMatrix(name, rows, 768, 7), nTokens, 8);
            assert.ok(
              error <= RELATIVE,
              `${JSON.stringify(tuning)}, ${name}, ${rows} rows, ${nTokens} tokens: ${error}`,
            );
          }
        tuned.dispose();
      }
    });

    test("several maps of different types, some with a bias", async () => {
      const on = await ops;
      const cols = 256;
      const bias = normals(40, 9);
      const matrices = (["Q4_K", "Q8_0", "F16"] as const).map((name, i) =>
        randomMatrix(name, [40, 13, 10][i]!, cols, 20 + i),
      );
      for (const nTokens of [1, 6, 12]) {
        const x = normals(nTokens * cols, 3);
        using input = tensorOf(on, x, cols);
        const biasWeight = await upload(on, vectorOf(bias));
        const maps = await Promise.all(
          matrices.map(async (m, i) => ({
            weight: await upload(on, m),
            bias: i === 0 ? biasWeight : undefined,
          })),
        );
        for (const [i, out] of on.linear(input, maps).entries()) {
          const expected = product(matrices[i]!, x, nTokens);
          if (i === 0) for (const at of expected.out.keys()) expected.out[at]! += bias[at % 40]!;
          assert.ok(worstError(await valuesOf(on, out), expected) <= RELATIVE, `map ${i}, ${nTokens} tokens`);
        }
      }
    });

    test("adds to a residual, with a bias and padded columns", async () => {
      const on = await ops;
      for (const [name, cols] of [
        ["Q8_0", 64],
        ["F32", 50],
      ] as const)
        for (const nTokens of [1, 5, 40]) {
          const matrix = randomMatrix(name, 13, cols, 5);
          const bias = normals(13, 6);
          const residual = normals(nTokens * 13, 77);
          const x = normals(nTokens * cols, 8);
          using input = tensorOf(on, x, cols);
          const sum = tensorOf(on, residual, 13);
          on.linearAdd(
            input,
            { weight: await upload(on, matrix), bias: await upload(on, vectorOf(bias)) },
            sum,
          );
          const expected = product(matrix, x, nTokens);
          for (const i of expected.out.keys()) expected.out[i]! += residual[i]! + bias[i % 13]!;
          assert.ok(worstError(await valuesOf(on, sum), expected) <= RELATIVE, `${name}, ${nTokens} tokens`);
          assert.deepEqual(await on.read(input), x, "x is never changed");
        }
    });

    test("gates, also with values that exp cannot hold", async () => {
      const on = await ops;
      const cols = 96;
      for (const scale of [0.3, 100])
        for (const [act, f] of [
          ["silu", silu],
          ["gelu", gelu],
        ] as const)
          for (const nTokens of [1, 4, 37]) {
            const gate = randomMatrix("Q8_0", 21, cols, 1);
            const up = randomMatrix("Q4_1", 21, cols, 2);
            const x = normals(nTokens * cols, 3, scale);
            using input = tensorOf(on, x, cols);
            const out = on.gatedLinear(input, await upload(on, gate), await upload(on, up), act);
            const gates = product(gate, x, nTokens);
            const ups = product(up, x, nTokens);
            // f' of either is below 1.13, so the gate's error grows by no more; f(x) itself is good to 2e-6.
            const allowed = (i: number) => {
              const size = Math.abs(f(gates.out[i]!));
              return (
                1.13 * RELATIVE * gates.magnitude[i]! * Math.abs(ups.out[i]!) +
                size * (RELATIVE * ups.magnitude[i]! + 2e-6 * Math.abs(ups.out[i]!)) +
                1e-6 * Math.abs(ups.out[i]!)
              );
            };
            const expected = gates.out.map((v, i) => f(v) * ups.out[i]!);
            assertClose(
              await valuesOf(on, out),
              expected,
              allowed,
              `${act}, ${nTokens} tokens, inputs of ${scale}`,
            );
          }
    });
  });

  test("embedding rows are dequantized, in any order and repeated", async () => {
    const on = await ops;
    for (const type of TENSOR_TYPES) {
      const cols = type.blockElements === 1 ? 45 : 3 * type.blockElements;
      const matrix = randomMatrix(type.name, 11, cols, 4);
      const values = dequantize(type.id, matrix.bytes);
      const ids = [10, 0, 3, 3, 7];
      const expected = ids.flatMap((id) => Array.from(values.subarray(id * cols, (id + 1) * cols)));
      // One f32 rounding of scale * level, one of adding the offset, which is up to 4 times as large.
      const most = Math.max(...expected.map(Math.abs));
      const rows = on.embed(await upload(on, matrix), Uint32Array.from(ids));
      assertClose(await valuesOf(on, rows), expected, 1e-6 * most, type.name);
    }
  });

  test("f16 weights below 2^-14 may be flushed to zero, no others; scales are never flushed", async () => {
    const on = await ops;
    const tiny = normals(8 * 64, 3, 2e-5);
    for (const [name, flushed] of [
      ["F16", 2 ** -14],
      ["BF16", 0],
      ["Q8_0", 0],
    ] as const) {
      const matrix: Matrix = { ...randomMatrix(name, 8, 64, 3), bytes: quantize(name, tiny) };
      const expected = dequantize(matrix.type.id, matrix.bytes);
      const rows = on.embed(
        await upload(on, matrix),
        Uint32Array.from({ length: 8 }, (_, i) => i),
      );
      const allowed = (i: number) => (Math.abs(expected[i]!) < flushed ? Math.abs(expected[i]!) : 0) + 1e-10;
      assertClose(await valuesOf(on, rows), expected, allowed, name);
    }
  });

  test("rms_norm of rows, whole heads and rows out of a tensor", async () => {
    const on = await ops;
    for (const width of [1, 5, 64, 127, 128, 129, 576])
      for (const nRows of [1, 3, 17]) {
        const x = normals(nRows * width, width);
        const weight = normals(width, 2);
        const expected = rowsOf(x, width).flatMap((row) => [
          ...rmsNorm(row, Float64Array.from(weight), 1e-5),
        ]);
        const uploaded = await upload(on, vectorOf(weight));
        using input = tensorOf(on, x, width);
        const allowed = (i: number) => 2e-6 * Math.abs(expected[i]!) + 1e-12;
        const what = `${nRows} rows of ${width}`;
        assertClose(await valuesOf(on, on.rmsNorm(input, uploaded, 1e-5)), expected, allowed, what);
        const last = await valuesOf(on, on.row(input, nRows - 1));
        assert.deepEqual(last, x.slice((nRows - 1) * width), what);
        // The same rows as heads: nRows heads of one token.
        using heads = tensorOf(on, x, nRows * width);
        on.rmsNormHeadsInPlace(heads, uploaded, 1e-5);
        assertClose(await on.read(heads), expected, allowed, `${what}, as heads`);
      }
  });

  test("rope rotates neighbours or halves, and leaves what is not rotated", async () => {
    const on = await ops;
    for (const pairs of ["adjacent", "halves"] as const)
      for (const [nTokens, nHeads, headDim, nRot] of [
        [1, 1, 8, 8],
        [5, 3, 40, 40],
        [33, 2, 64, 24],
      ] as const) {
        const rope = { nRot, base: 10_000, pairs };
        const firstPos = 1000;
        const angles = new Float32Array(nTokens * nRot);
        for (let i = 0; i < angles.length / 2; i++) {
          const pos = firstPos + Math.floor((2 * i) / nRot);
          const angle = pos * pairFrequency(rope, i % (nRot / 2));
          angles.set([Math.cos(angle), Math.sin(angle)], 2 * i);
        }
        const width = nHeads * headDim;
        const x = normals(nTokens * width, nRot);
        const expected = rowsOf(x, width).flatMap((row, t) => [...rotate(row, headDim, firstPos + t, rope)]);
        using table = on.ropeAngles({ angles, nTokens, nRot, pairs });
        const rotated = tensorOf(on, x, width);
        on.ropeInPlace(rotated, table, headDim);
        const most = Math.max(...expected.map(Math.abs));
        assertClose(
          await valuesOf(on, rotated),
          expected,
          3e-7 * most,
          `${pairs}, ${nTokens} tokens, ${nRot}`,
        );
      }
  });

  describe("weights", () => {
    test("arrive in pieces of any size", async () => {
      const on = await ops;
      const x = normals(3 * 64, 5);
      using input = tensorOf(on, x, 64);
      for (const name of ["Q4_0", "Q8_0", "F32", "F16"] as const) {
        const matrix = randomMatrix(name, 37, 64, 8);
        const [whole] = on.linear(input, [{ weight: await upload(on, matrix) }]);
        const expected = await valuesOf(on, whole!);
        for (const chunk of [1, 17, 34, 1000]) {
          const [pieces] = on.linear(input, [{ weight: await upload(on, matrix, chunk) }]);
          assert.deepEqual(await valuesOf(on, pieces!), expected, `${name} by ${chunk}`);
        }
      }
    });

    test("a matrix that one buffer cannot hold is cut into parts", async () => {
      const small = await GpuDevice.create(gpu, { label: "small" });
      const parted = await GpuOps.create(withBuffersOf(small, 20_000));
      for (const [name, cols] of [
        ["F32", 50],
        ["Q4_0", 160],
        ["Q6_K", 512],
      ] as const) {
        const matrix = randomMatrix(name, 301, cols, 6);
        const weight = await upload(parted, matrix);
        assert.ok(gpuMatrix(weight).parts.length > 1, `${name}: ${gpuMatrix(weight).parts.length} parts`);
        for (const nTokens of [1, 9]) {
          // 9 rows of 512 take 18,432 bytes; sizes are rounded up to steps, but not past the limit.
          const x = normals(nTokens * cols, 7);
          using input = tensorOf(parted, x, cols);
          const [out] = parted.linear(input, [{ weight }]);
          const error = worstError(await valuesOf(parted, out!), product(matrix, x, nTokens));
          assert.ok(error <= RELATIVE, `${name}, ${nTokens} tokens: ${error}`);
        }
        const ids = Uint32Array.of(300, 0, 150, 299);
        const values = dequantize(matrix.type.id, matrix.bytes);
        const expected = Array.from(ids).flatMap((id) => [...values.subarray(id * cols, (id + 1) * cols)]);
        const most = Math.max(...expected.map(Math.abs));
        assertClose(await valuesOf(parted, parted.embed(weight, ids)), expected, 1e-6 * most, name);
      }
      parted.dispose();
      small.dispose();
    });

    test("a row or a result that one buffer cannot hold is out-of-memory, with the numbers", async () => {
      const small = await GpuDevice.create(gpu, { label: "small" });
      const narrow = await GpuOps.create(withBuffersOf(small, 20_000));
      await assert.rejects(
        upload(narrow, randomMatrix("F32", 2, 9600, 1)),
        isError("out-of-memory", /76800 bytes.*20000/),
      );
      assert.equal(narrow.memory().weights, 0);
      const weight = await upload(narrow, randomMatrix("Q8_0", 64, 32, 1));
      using x = tensorOf(narrow, normals(100 * 32, 1), 32);
      assert.throws(() => narrow.linear(x, [{ weight }]), isError("out-of-memory", /bytes.*20000/));
      narrow.dispose();
      small.dispose();
    });

    test("values that are not finite are found and named", async () => {
      const on = await ops;
      const bytesBefore = on.memory().weights;
      const nan = randomMatrix("Q4_0", 8, 64, 1);
      nan.bytes.set([0x01, 0x7e], 6 * 36 + 18); // row 6, second block of 32 columns: an f16 NaN
      await assert.rejects(
        upload(on, nan),
        isError("invalid-model", /tensor w \(Q4_0\).*not finite.*rows 4–7, columns from 32/),
      );
      const infinite = randomMatrix("F32", 4, 8, 1);
      new Float32Array(infinite.bytes.buffer, infinite.bytes.byteOffset)[2 * 8 + 5] = Infinity;
      await assert.rejects(upload(on, infinite), isError("invalid-model", /row 2, column 5/));
      const vector = vectorOf(Float32Array.of(1, 2, Number.NaN));
      await assert.rejects(upload(on, vector), isError("invalid-model", /element 2/));
      assert.equal(on.memory().weights, bytesBefore, "nothing of them is kept");
    });

    test("missing and surplus bytes are refused", async () => {
      const on = await ops;
      const bytesBefore = on.memory().weights;
      const matrix = randomMatrix("Q4_0", 8, 64, 1);
      const short = on.createWeight(infoOf(matrix));
      short.write(matrix.bytes.subarray(1));
      await assert.rejects(async () => short.finish(), isError("invalid-model", /287 bytes.*needs 288/));
      const long = on.createWeight(infoOf(matrix));
      long.write(matrix.bytes);
      assert.throws(() => long.write(Uint8Array.of(0)), isError("invalid-model"));
      assert.equal(on.memory().weights, bytesBefore);
    });

    test("take the bytes they have in the file", async () => {
      const on = await GpuOps.create(device);
      for (const { name } of TENSOR_TYPES) {
        const before = on.memory().weights;
        const matrix = randomMatrix(name, 64, 512, 1);
        await upload(on, matrix);
        const surplus = on.memory().weights - before - matrix.bytes.byteLength;
        assert.ok(surplus >= 0 && surplus < 1024, `${name}: ${surplus} bytes more`);
      }
      on.dispose();
      assert.deepEqual(on.memory(), { weights: 0, scratch: 0 });
    });
  });

  test("an id outside the vocabulary is refused", async () => {
    const table = await upload(await ops, randomMatrix("Q8_0", 11, 32, 1));
    const embed = (await ops).embed.bind(await ops);
    assert.throws(
      () => embed(table, Uint32Array.of(3, 11)),
      isError("invalid-option", /token id 11.*vocabulary of 11/),
    );
  });

  test("shapes that do not fit are internal errors that leave no tensor behind", async () => {
    const on = await ops;
    const weight = await upload(on, randomMatrix("Q8_0", 11, 32, 1));
    const vector = await upload(on, vectorOf(normals(7, 1)));
    {
      using x = tensorOf(on, normals(64, 1), 64);
      assert.throws(() => on.linear(x, [{ weight }]), isError("internal", /rows of 32, got \(1, 64\)/));
      assert.throws(() => on.rmsNorm(x, vector, 1e-5), isError("internal"));
      assert.throws(() => on.rmsNormHeadsInPlace(x, vector, 1e-5), isError("internal"));
      assert.throws(() => on.rmsNorm(x, weight, 1e-5), isError("internal", /no vector/));
      assert.equal(on.tensors.nLive, 1);
    }
    assert.equal(on.tensors.nLive, 0);
  });

  describe("self-test", () => {
    const trusted = async () => new WasmOps(await instantiate("simd"));

    test("finds the right GPU right, with every type", async () => {
      const result = await linearSelfTest(device, await trusted(), TENSOR_TYPES);
      assert.ok(result.ok && result.maxError < 1e-5, JSON.stringify(result));
      assert.ok(result.maxError > 0, "something was compared");
    });

    test("finds and names every kind of difference", async () => {
      const types = [tensorType("Q4_K")];
      const faults: [keyof WasmOps, RegExp][] = [
        ["linearAdd", /Q4_K, .* tokens, added/],
        ["ropeInPlace", /rope/],
        ["rmsNormHeadsInPlace", /rms_norm_heads|rope|row/],
      ];
      for (const [method, what] of faults) {
        const wrong = await trusted();
        Object.defineProperty(wrong, method, { value: () => {} });
        const result = await linearSelfTest(device, wrong, types);
        assert.ok(!result.ok && result.maxError > 0.01, `${method}: ${JSON.stringify(result)}`);
        assert.match(result.worst, what);
      }
      const poisoned = await trusted();
      const { rmsNorm } = poisoned;
      Object.defineProperty(poisoned, "rmsNorm", {
        value: (...args: Parameters<typeof rmsNorm>) => {
          const normed = rmsNorm.apply(poisoned, args);
          poisoned.heap.view(normed)[7] = Number.NaN;
          return normed;
        },
      });
      const { ok, maxError, worst } = await linearSelfTest(device, poisoned, types);
      assert.deepEqual({ ok, maxError, worst }, { ok: false, maxError: Infinity, worst: "rms_norm" });
    });
  });

  test("only what is read crosses back", async () => {
    const on = await GpuOps.create(device);
    const weight = await upload(on, randomMatrix("Q8_0", 512, 32, 1));
    using x = on.embed(weight, Uint32Array.of(1, 2, 3));
    using row = on.row(x, 2);
    const [logits] = on.linear(row, [{ weight }]);
    await valuesOf(on, logits!);
    assert.deepEqual(on.crossings, { uploads: 1, uploadedBytes: 12, readbacks: 1, readbackBytes: 512 * 4 });
    on.dispose();
  });

  test("after dispose every call is disposed, on a lost device device-lost", async () => {
    const gone = await GpuOps.create(device);
    gone.dispose();
    assert.throws(() => gone.createWeight(infoOf(randomMatrix("F32", 2, 2, 1))), isError("disposed"));
    const own = await GpuDevice.create(gpu, { label: "lost" });
    const lost = await GpuOps.create(own);
    const table = await upload(lost, randomMatrix("F32", 2, 32, 1));
    own.handle.destroy();
    await own.lost;
    assert.throws(() => lost.embed(table, Uint32Array.of(0)), isError("device-lost"));
    lost.dispose();
    own.dispose();
  });
});

function isError(code: string, message = /./): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof InlayError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };
}

function rowsOf(x: Float32Array, width: number): Float64Array[] {
  return Array.from({ length: x.length / width }, (_, i) =>
    Float64Array.from(x.subarray(i * width, (i + 1) * width)),
  );
}
