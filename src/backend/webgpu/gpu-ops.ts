/**
 * Linear algebra on WebGPU: each method checks shapes and records dispatches; nothing runs until a result is read, or
 * the forward call is over (gpu-tensor.ts). Results leave the device in `read` only.
 */

import padRows from "../../../shaders/pad_rows.wgsl";
import poolRows from "../../../shaders/pool_rows.wgsl";
import rmsNorm from "../../../shaders/rms_norm.wgsl";
import rmsNormHeads from "../../../shaders/rms_norm_heads.wgsl";
import rope from "../../../shaders/rope.wgsl";
import { InlayError, internalError } from "../../errors.ts";
import type { TensorInfo } from "../../gguf/tensor-info.ts";
import type {
  Activation,
  Crossings,
  LinearMap,
  Ops,
  RopeAngles,
  RopeTable,
  Tensor,
  Weight,
  WeightWriter,
} from "../backend.ts";
import { BufferGroup } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import { GpuTensor, TensorPool } from "./gpu-tensor.ts";
import { createGpuWriter, type GpuMatrix, gpuMatrix, gpuVector } from "./gpu-weights.ts";
import { defaultTuning, Finish, MatmulKernels, type MatmulTuning } from "./matmul.ts";
import { BLOCK_COLUMNS } from "./planes.ts";
import { ReadBacks } from "./read-back.ts";
import { type Kernel, Recorder } from "./recorder.ts";

/** Options of {@link GpuOps}. */
export interface GpuOpsOptions {
  readonly tuning?: Partial<MatmulTuning>;
}

/** Threads of the kernels with an invocation per element or pair. */
const FLAT_THREADS = 64;
/** Threads that share a row of rms_norm. */
const NORM_THREADS = 128;
/** Heads of a workgroup of rms_norm_heads. */
const NORM_HEADS = 8;

interface ElementwiseKernels {
  readonly rmsNorm: Kernel;
  readonly rmsNormHeads: Kernel;
  readonly rope: Kernel;
  readonly padRows: Kernel;
  readonly poolRows: Kernel;
}

export class GpuOps implements Ops {
  readonly device = "webgpu";
  /** Counted since creation. */
  readonly crossings: Crossings = { uploads: 0, uploadedBytes: 0, readbacks: 0, readbackBytes: 0 };
  readonly tensors: TensorPool;
  readonly #weights: BufferGroup;
  readonly #readBacks: ReadBacks;
  readonly #matmul: MatmulKernels;

  private constructor(
    readonly recorder: Recorder,
    private readonly kernels: ElementwiseKernels,
    tuning: MatmulTuning,
  ) {
    this.tensors = new TensorPool(recorder);
    this.#weights = new BufferGroup(recorder.device, "weights");
    this.#readBacks = new ReadBacks(recorder.device);
    this.#matmul = new MatmulKernels(recorder, tuning);
  }

  /** Compiles what every model needs, on `gpu`, which stays the caller's; the kernels of a weight type follow it. */
  static async create(gpu: GpuDevice, options: GpuOpsOptions = {}): Promise<GpuOps> {
    const recorder = new Recorder(gpu);
    const flat = { wg_size: FLAT_THREADS };
    const [norm, normHeads, rotate, pad, pool] = await Promise.all([
      recorder.kernel({ name: "rms_norm", source: rmsNorm, constants: { wg_size: NORM_THREADS } }),
      recorder.kernel({ name: "rms_norm_heads", source: rmsNormHeads, constants: {} }),
      recorder.kernel({ name: "rope", source: rope, constants: flat }),
      recorder.kernel({ name: "pad_rows", source: padRows, constants: flat }),
      recorder.kernel({ name: "pool_rows", source: poolRows, constants: flat }),
    ]);
    const kernels = { rmsNorm: norm, rmsNormHeads: normHeads, rope: rotate, padRows: pad, poolRows: pool };
    return new GpuOps(recorder, kernels, { ...defaultTuning(gpu), ...options.tuning });
  }

  createWeight(info: TensorInfo): WeightWriter {
    this.recorder.assertLive();
    return createGpuWriter(this.#weights, info, (type) => this.#matmul.prepare(type));
  }

  embed(table: Weight, ids: Uint32Array): Tensor {
    this.recorder.assertLive();
    const matrix = gpuMatrix(table);
    const bad = ids.find((id) => id >= matrix.rows);
    if (bad !== undefined)
      throw new InlayError("invalid-option", `token id ${bad} is outside the vocabulary of ${matrix.rows}`, {
        id: bad,
        vocabSize: matrix.rows,
      });
    return this.#filled(ids.length, matrix.cols, (out) => {
      using idTensor = this.upload(Uint32Array.from(ids), 1);
      this.#matmul.embed(matrix, idTensor, out);
    });
  }

  rmsNorm(x: Tensor, weight: Weight, eps: number): Tensor {
    const input = gpuTensor(x);
    const vector = gpuVector(weight);
    expectWidth(input, vector.cols, weight.name);
    return this.#filled(input.nTokens, input.width, (out) => {
      const params = this.#params("rms_norm params", [input.nTokens, input.width], eps);
      const bindings = { 0: params, 1: input.buffer, 2: vector.buffer, 3: out.buffer };
      this.recorder.dispatch(this.kernels.rmsNorm, bindings, input.nTokens, 0);
    });
  }

  rmsNormHeadsInPlace(x: Tensor, weight: Weight, eps: number): void {
    const input = gpuTensor(x);
    const vector = gpuVector(weight);
    const nHeads = (input.nTokens * input.width) / vector.cols;
    if (!Number.isInteger(nHeads))
      throw internalError(`${weight.name} does not divide rows of ${input.width}`);
    const params = this.#params("rms_norm_heads params", [nHeads, vector.cols], eps);
    const bindings = { 0: params, 1: vector.buffer, 2: input.buffer };
    this.recorder.dispatch(this.kernels.rmsNormHeads, bindings, Math.ceil(nHeads / NORM_HEADS), 0);
  }

  linear(x: Tensor, maps: readonly LinearMap[]): Tensor[] {
    const input = gpuTensor(x);
    const outs: GpuTensor[] = [];
    try {
      for (const map of maps) {
        const { rows } = map.weight;
        outs.push(this.#filled(input.nTokens, rows, (out) => this.#multiply(input, map, out, Finish.store)));
      }
      return outs;
    } catch (error) {
      for (const out of outs) out[Symbol.dispose]();
      throw error;
    }
  }

  linearAdd(x: Tensor, map: LinearMap, residual: Tensor): void {
    const out = gpuTensor(residual);
    expectWidth(out, map.weight.rows, map.weight.name);
    this.#multiply(gpuTensor(x), map, out, Finish.add);
  }

  gatedLinear(x: Tensor, gate: Weight, up: Weight, act: Activation): Tensor {
    const input = gpuTensor(x);
    if (gate.rows !== up.rows) throw internalError(`${gate.name} and ${up.name} differ in rows`);
    return this.#filled(input.nTokens, gate.rows, (out) => {
      this.#multiply(input, { weight: gate }, out, Finish.store);
      this.#multiply(input, { weight: up }, out, act === "silu" ? Finish.siluGate : Finish.geluGate);
    });
  }

  ropeAngles({ angles, nTokens, nRot, pairs }: RopeTable): RopeAngles {
    this.recorder.assertLive();
    if (angles.length !== nTokens * nRot)
      throw internalError(`${angles.length} angles for ${nTokens} tokens of ${nRot} dimensions`);
    return new GpuRopeAngles(this.upload(Float32Array.from(angles), nRot), pairs === "halves");
  }

  ropeInPlace(x: Tensor, angles: RopeAngles, headDim: number): void {
    if (!(angles instanceof GpuRopeAngles)) throw internalError("RoPE angles of another device");
    const input = gpuTensor(x);
    const { table, halves } = angles;
    const nHeads = input.width / headDim;
    if (input.nTokens !== table.nTokens || !Number.isInteger(nHeads) || table.width > headDim)
      throw internalError(`angles of ${table.nTokens} tokens for (${input.nTokens}, ${input.width})`);
    const words = [input.nTokens, nHeads, headDim, table.width, halves ? 1 : 0, 0, 0, 0];
    const params = this.recorder.params("rope params", Uint32Array.from(words));
    const bindings = { 0: params, 1: table.buffer, 2: input.buffer };
    const nPairs = (input.nTokens * nHeads * table.width) / 2;
    this.recorder.dispatch(this.kernels.rope, bindings, Math.ceil(nPairs / FLAT_THREADS), 0);
  }

  row(x: Tensor, i: number): Tensor {
    const input = gpuTensor(x);
    return this.#filled(1, input.width, (out) =>
      this.recorder.copy(input.buffer, i * out.byteLength, out.buffer, out.byteLength),
    );
  }

  pool(x: Tensor, ends: Uint32Array, first: Float32Array): Tensor {
    const input = gpuTensor(x);
    const { width } = input;
    if (first.length !== width || (ends.at(-1) ?? 0) > x.nTokens)
      throw internalError(
        `pooling (${x.nTokens}, ${width}) in ${ends.length} runs from ${first.length} numbers`,
      );
    return this.#filled(ends.length, width, (out) => {
      using endsTensor = this.upload(Uint32Array.from(ends), 1);
      using firstTensor = this.upload(Float32Array.from(first), width);
      const params = this.recorder.params("pool_rows params", Uint32Array.of(ends.length, width, 0, 0));
      const bindings = {
        0: params,
        1: input.buffer,
        2: endsTensor.buffer,
        3: firstTensor.buffer,
        4: out.buffer,
      };
      const nGroups = Math.ceil((ends.length * width) / FLAT_THREADS);
      this.recorder.dispatch(this.kernels.poolRows, bindings, nGroups, 0);
    });
  }

  async read(x: Tensor): Promise<Float32Array> {
    const [rows] = await this.readAll([x]);
    return rows!;
  }

  async readAll(xs: readonly Tensor[]): Promise<Float32Array[]> {
    this.recorder.assertLive();
    if (xs.length === 0) return [];
    const tensors = xs.map(gpuTensor);
    const byteLength = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
    const shapes = tensors.slice(0, 2).map(({ nTokens, width }) => `(${nTokens}, ${width})`);
    let isDone = false;
    try {
      const result = await this.#readBacks.read(
        `reading ${shapes.join(", ")}${tensors.length > 2 ? ", …" : ""} results`,
        byteLength,
        (target) => {
          let at = 0;
          for (const tensor of tensors) {
            this.recorder.copy(tensor.buffer, 0, target, tensor.byteLength, at);
            at += tensor.byteLength;
          }
          this.recorder.submit();
        },
        (bytes) => {
          let at = 0;
          return tensors.map((tensor) => {
            at += tensor.byteLength;
            return new Float32Array(bytes.slice(at - tensor.byteLength, at));
          });
        },
      );
      isDone = true;
      this.crossings.readbacks++;
      this.crossings.readbackBytes += byteLength;
      return result;
    } finally {
      if (!isDone) this.recorder.discard();
    }
  }

  memory(): { weights: number; scratch: number } {
    const scratch = this.tensors.bytes + this.recorder.bytes + this.#readBacks.bytes;
    return { weights: this.#weights.bytes, scratch };
  }

  /** Destroys all buffers, weights included; a read under way rejects with `disposed`. The device stays. Idempotent. */
  dispose(): void {
    this.recorder.dispose();
    this.#readBacks.dispose();
    this.#weights.clear();
  }

  #multiply(x: GpuTensor, { weight, bias }: LinearMap, out: GpuTensor, finish: Finish): void {
    const matrix = gpuMatrix(weight);
    expectWidth(x, matrix.cols, matrix.name);
    const product = { weight: matrix, bias: bias && gpuVector(bias), out, finish };
    if (bias && bias.cols !== matrix.rows) throw internalError(`${bias.name} does not fit ${matrix.name}`);
    if (x.width % BLOCK_COLUMNS === 0) {
      this.#matmul.multiply({ x, ...product });
      return;
    }
    using padded = this.#pad(x, matrix);
    this.#matmul.multiply({ x: padded, ...product });
  }

  /** Rows of x, filled up with zeros to whole blocks. */
  #pad(x: GpuTensor, { blocks }: GpuMatrix): GpuTensor {
    const padded = blocks * BLOCK_COLUMNS;
    return this.#filled(x.nTokens, padded, (out) => {
      const params = this.recorder.params("pad_rows params", Uint32Array.of(x.nTokens, x.width, padded, 0));
      const nGroups = Math.ceil((x.nTokens * padded) / FLAT_THREADS);
      this.recorder.dispatch(this.kernels.padRows, { 0: params, 1: x.buffer, 2: out.buffer }, nGroups, 0);
    });
  }

  /** A tensor that holds `elements`, rows of `width`, of the host. */
  upload(elements: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>, width: number): GpuTensor {
    this.crossings.uploads++;
    this.crossings.uploadedBytes += elements.byteLength;
    return this.tensors.upload(elements, width);
  }

  /** Parameters of the norms: two counts and eps. */
  #params(label: string, counts: readonly [number, number], eps: number): GPUBuffer {
    const words = Uint32Array.of(...counts, 0, 0);
    new Float32Array(words.buffer)[2] = eps;
    return this.recorder.params(label, words);
  }

  /** A tensor that \`record\` fills; disposed if it throws. */
  #filled(nTokens: number, width: number, record: (out: GpuTensor) => void): GpuTensor {
    const out = this.tensors.create(nTokens, width);
    try {
      record(out);
      return out;
    } catch (error) {
      out[Symbol.dispose]();
      throw error;
    }
  }
}

/** cos and sin: (nTokens, nRot / 2, 2). */
class GpuRopeAngles implements RopeAngles {
  constructor(
    readonly table: GpuTensor,
    readonly halves: boolean,
  ) {}

  get nTokens(): number {
    return this.table.nTokens;
  }

  [Symbol.dispose](): void {
    this.table[Symbol.dispose]();
  }
}

/** The GPU tensor behind a handle. */
export function gpuTensor(tensor: Tensor): GpuTensor {
  if (tensor instanceof GpuTensor) return tensor;
  throw internalError("a tensor of another device was passed to the WebGPU backend");
}

function expectWidth(x: Tensor, cols: number, name: string): void {
  if (x.width !== cols) throw internalError(`${name} needs rows of ${cols}, got (${x.nTokens}, ${x.width})`);
}
