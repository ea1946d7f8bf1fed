/**
 * Does this GPU do a model's linear algebra correctly? Run before its kernels are trusted, beside the attention's test
 * (self-test.ts): drivers do miscompile shaders. The kernels under test are the model's own, so that nothing is
 * compiled in vain.
 *
 * The same calls run on the GPU and in WASM, whose kernels share no code with these. Products of quantized weights round
 * their inputs to int8 there, per 32 columns; inputs here are multiples of 1/64 whose largest in every 32 columns is
 * 127/64, so that this rounding loses nothing and one tolerance serves all types.
 */

import type { TensorInfo } from "../../gguf/tensor-info.ts";
import { type TensorType, tensorType } from "../../gguf/tensor-types.ts";
import type { Ops, Tensor, Weight } from "../backend.ts";
import type { GpuDevice } from "./device.ts";
import { isFloatType } from "./file-floats.ts";
import { GpuOps } from "./gpu-ops.ts";
import { planeLayout } from "./planes.ts";

/** What {@link linearSelfTest} found. */
export interface LinearSelfTestResult {
  readonly ok: boolean;
  /** Largest error of an element relative to the largest of its result; infinite if a number was not finite. */
  readonly maxError: number;
  /** The call with that error: "Q4_K, 41 tokens". */
  readonly worst: string;
}

/** Linear algebra that is known to be right, and a way to give it inputs. */
export interface TrustedOps extends Ops {
  readonly heap: {
    create(nTokens: number, width: number): Tensor;
    view(tensor: Tensor): Float32Array;
  };
}

/** Rounding gives 1e-6; a wrong index or a lost barrier gives 0.1 and more. */
const TOLERANCE = 1e-4;

/** Not a multiple of any tile. */
const ROWS = 70;
/** Taken by the kernel for few tokens, and by the one for many. */
const FEW_TOKENS = 3;
const MANY_TOKENS = 41;
const HEAD_DIM = 24;
const EPS = 1e-5;

/** One side of the comparison. */
interface Side {
  readonly ops: Ops;
  /** A tensor of rows of `width`. */
  tensor(elements: Float32Array<ArrayBuffer>, width: number): Tensor;
}

/** Results of calls by what they are. */
type Results = Map<string, Float32Array>;

/** Every linear kernel, for weights of these types, on `gpu` and on `trusted`. */
export async function linearSelfTest(
  gpu: GpuDevice,
  trusted: TrustedOps,
  types: Iterable<TensorType>,
): Promise<LinearSelfTestResult> {
  const ops = await GpuOps.create(gpu);
  const host: Side = {
    ops: trusted,
    tensor(elements, width) {
      const tensor = trusted.heap.create(elements.length / width, width);
      trusted.heap.view(tensor).set(elements);
      return tensor;
    },
  };
  try {
    const under: Side = { ops, tensor: (elements, width) => ops.tensors.upload(elements, width) };
    const calls = [...types].map((type) => (side: Side) => products(side, type));
    let result: LinearSelfTestResult = { ok: true, maxError: 0, worst: "" };
    for (const call of [...calls, elementwise]) {
      const expected = await call(host);
      for (const [what, actual] of await call(under)) {
        const maxError = relativeError(actual, expected.get(what)!);
        if (maxError > result.maxError) result = { ok: maxError <= TOLERANCE, maxError, worst: what };
      }
    }
    return result;
  } finally {
    ops.dispose();
  }
}

/** Everything that reads a matrix of this type. */
async function products({ ops, tensor }: Side, type: TensorType): Promise<Results> {
  const random = seeded(type.id + 1);
  const cols = isFloatType(type) ? 72 : 3 * type.blockElements;
  const weight = await upload(ops, type, ROWS, cols, random);
  const gate = await upload(ops, type, ROWS, cols, random);
  const bias = await uploadVector(ops, ROWS, random);
  const results: Results = new Map();
  const keep = async (what: string, result: Tensor) => {
    using owned = result;
    results.set(`${type.name}, ${what}`, await ops.read(owned));
  };
  for (const nTokens of [FEW_TOKENS, MANY_TOKENS]) {
    using x = tensor(inputs(nTokens, cols, random), cols);
    await keep(`${nTokens} tokens`, ops.linear(x, [{ weight, bias }])[0]!);
    await keep(`${nTokens} tokens, gated`, ops.gatedLinear(x, gate, weight, "silu"));
    const residual = tensor(inputs(nTokens, ROWS, random), ROWS);
    ops.linearAdd(x, { weight }, residual);
    await keep(`${nTokens} tokens, added`, residual);
  }
  await keep("rows", ops.embed(weight, Uint32Array.of(ROWS - 1, 0, 33)));
  return results;
}

/** Norms, RoPE and copies of rows. */
async function elementwise({ ops, tensor }: Side): Promise<Results> {
  const random = seeded(99);
  const nHeads = 3;
  const width = nHeads * HEAD_DIM;
  const results: Results = new Map();
  const weight = await uploadVector(ops, width, random);
  const headWeight = await uploadVector(ops, HEAD_DIM, random);
  using x = tensor(inputs(FEW_TOKENS, width, random), width);
  using normed = ops.rmsNorm(x, weight, EPS);
  results.set("rms_norm", await ops.read(normed));
  ops.rmsNormHeadsInPlace(x, headWeight, EPS);
  results.set("rms_norm_heads", await ops.read(x));
  for (const pairs of ["adjacent", "halves"] as const) {
    const nRot = HEAD_DIM - 8;
    const angles = inputs(FEW_TOKENS, nRot, random);
    using table = ops.ropeAngles({ angles, nTokens: FEW_TOKENS, nRot, pairs });
    ops.ropeInPlace(x, table, HEAD_DIM);
    results.set(`rope, ${pairs}`, await ops.read(x));
  }
  using row = ops.row(x, 1);
  results.set("row", await ops.read(row));
  return results;
}

async function upload(
  ops: Ops,
  type: TensorType,
  rows: number,
  cols: number,
  random: () => number,
): Promise<Weight> {
  const byteLength = (rows * cols * type.blockBytes) / type.blockElements;
  const dims = rows === 1 ? [cols] : [cols, rows];
  const info: TensorInfo = { name: "self-test", dims, type, offset: 0, byteLength, rows, cols, shard: 0 };
  const writer = ops.createWeight(info);
  writer.write(anyWeights(type, byteLength, random));
  return writer.finish();
}

function uploadVector(ops: Ops, n: number, random: () => number): Promise<Weight> {
  return upload(ops, tensorType("F32"), 1, n, random);
}

/** Blocks of random bits, but for their floats, which are between 1/16 and 1. */
function anyWeights(type: TensorType, byteLength: number, random: () => number): Uint8Array<ArrayBuffer> {
  const halves = new Uint16Array(byteLength / 2).map(random);
  const stride = type.blockBytes / 2;
  const isWide = type.name === "F32" || type.name === "BF16";
  // The half with the exponent: the last of a float, or the scales of a block.
  const places = isFloatType(type) ? [stride - 1] : planeLayout(type).halves;
  for (let at = 0; at < halves.length; at += stride)
    for (const place of places) {
      const bits = halves[at + place]!;
      const exponent = isWide ? (123 + (bits & 3)) << 7 : (11 + (bits & 3)) << 10;
      halves[at + place] = (bits & 0x8000) | exponent | ((bits >> 2) & (isWide ? 0x7f : 0x3ff));
    }
  return new Uint8Array(halves.buffer);
}

/** Rows of multiples of 1/64 up to 127/64, which each 32 columns contain. */
function inputs(nTokens: number, width: number, random: () => number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: nTokens * width }, (_, i) => {
    const sign = random() & 1 ? 1 : -1;
    return (sign * ((i % width) % 32 === 5 ? 127 : random() % 127)) / 64;
  });
}

/** 16 random bits at a time. */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    return state >>> 16;
  };
}

/** Largest error of an element relative to the largest expected one. */
function relativeError(actual: Float32Array, expected: Float32Array): number {
  let error = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    const e = Math.abs((actual[i] ?? Number.NaN) - expected[i]!);
    error = Math.max(error, Number.isFinite(e) ? e : Number.POSITIVE_INFINITY);
    size = Math.max(size, Math.abs(expected[i]!));
  }
  if (error === 0) return 0;
  return Number.isFinite(error) ? error / size : error;
}
