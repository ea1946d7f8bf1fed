/** Which kernel of shaders/matmul.wgsl multiplies how many tokens, and with how many workgroups. */

import matmul from "../../../shaders/matmul.wgsl";
import { internalError } from "../../errors.ts";
import type { TensorType } from "../../gguf/tensor-types.ts";
import type { GpuDevice } from "./device.ts";
import type { GpuTensor } from "./gpu-tensor.ts";
import type { GpuMatrix, GpuVector, MatrixPart } from "./gpu-weights.ts";
import type { Bindings, Kernel, Recorder } from "./recorder.ts";

/** What may be measured and set per device. */
export interface MatmulTuning {
  /** Threads of a gemv workgroup: 64, 128 or 256. */
  readonly gemvThreads: number;
  /** Workgroups that keep the device busy; gemv splits rows between more threads until there are so many. */
  readonly targetGroups: number;
  /** From this many tokens on, tiles are faster. */
  readonly gemmFrom: number;
  /** Tokens of a tile: 32 or 64. */
  readonly gemmTokens: number;
}

/** Where nothing was measured. */
export function defaultTuning(device: GpuDevice): MatmulTuning {
  return { gemvThreads: 64, targetGroups: device.isSoftware ? 16 : 256, gemmFrom: 9, gemmTokens: 32 };
}

/** What becomes of a sum; the numbers are those of `Params.finish`. */
export const Finish = { store: 0, add: 1, siluGate: 2, geluGate: 3 } as const;

export type Finish = (typeof Finish)[keyof typeof Finish];

/** Rows and tokens of a gemv slot. */
const SLOT_ROWS = 4;
const SLOT_TOKENS = 4;
/** Rows of a gemm tile. */
const TILE_ROWS = 64;
/** Threads of an embed workgroup; each takes a quad, of which a block has so many. */
const EMBED_THREADS = 64;
const QUADS = 8;

/** The kernels of one weight type. */
interface TypeKernels {
  readonly embed: Kernel;
  readonly gemv: Kernel;
  readonly gemm: Kernel;
}

/** One product. */
export interface Product {
  /** (nTokens, 32 * weight.blocks): rows filled up to whole blocks. */
  readonly x: GpuTensor;
  readonly weight: GpuMatrix;
  readonly bias: GpuVector | undefined;
  /** (nTokens, weight.rows). Not x. */
  readonly out: GpuTensor;
  readonly finish: Finish;
}

export class MatmulKernels {
  readonly #compiling = new Map<string, Promise<void>>();
  readonly #kernels = new Map<string, TypeKernels>();

  constructor(
    private readonly recorder: Recorder,
    private readonly tuning: MatmulTuning,
  ) {}

  /** Compiles the kernels of a type. To be awaited before weights of this type are used. */
  prepare(type: TensorType): Promise<void> {
    let compiling = this.#compiling.get(type.name);
    if (!compiling) {
      compiling = this.#compile(type);
      this.#compiling.set(type.name, compiling);
      compiling.catch(() => this.#compiling.delete(type.name));
    }
    return compiling;
  }

  /** Records out = finish(weight · x + bias). */
  multiply({ x, weight, bias, out, finish }: Product): void {
    const { gemv, gemm } = this.#kernelsOf(weight);
    const { nTokens } = x;
    const { gemvThreads, gemmFrom, gemmTokens } = this.tuning;
    for (const part of weight.parts) {
      const lanes = this.#lanes(part.nRows, weight.blocks);
      const words = Uint32Array.of(
        ...[weight.blocks, part.nRows, part.rowAt, out.width, nTokens, finish, bias ? 1 : 0, lanes],
      );
      const bindings = {
        0: this.recorder.params("matmul params", words),
        1: x.buffer,
        ...planesOf(part),
        5: bias?.buffer ?? part.scales, // not read without a bias
        7: out.buffer,
      };
      const cost = part.nRows * weight.cols * nTokens;
      if (nTokens < gemmFrom) {
        const rowGroups = Math.ceil((part.nRows * lanes) / (SLOT_ROWS * gemvThreads));
        this.recorder.dispatch(gemv, bindings, rowGroups * Math.ceil(nTokens / SLOT_TOKENS), cost);
      } else {
        const tiles = Math.ceil(part.nRows / TILE_ROWS) * Math.ceil(nTokens / gemmTokens);
        this.recorder.dispatch(gemm, bindings, tiles, cost);
      }
    }
  }

  /** Records out = rows `ids` of `table`. `ids` holds one u32 per token, all below table.rows. */
  embed(table: GpuMatrix, ids: GpuTensor, out: GpuTensor): void {
    const { embed } = this.#kernelsOf(table);
    const { blocks } = table;
    for (const part of table.parts) {
      const words = Uint32Array.of(blocks, part.nRows, part.rowAt, out.width, out.nTokens, 0, 0, 0);
      const params = this.recorder.params("embed params", words);
      const bindings = { 0: params, ...planesOf(part), 6: ids.buffer, 7: out.buffer };
      const nGroups = Math.ceil((out.nTokens * blocks * QUADS) / EMBED_THREADS);
      this.recorder.dispatch(embed, bindings, nGroups, 0);
    }
  }

  async #compile(type: TensorType): Promise<void> {
    const { gemvThreads, gemmTokens } = this.tuning;
    const kernel = (entryPoint: string, constants: Record<string, number> = {}) =>
      this.recorder.kernel({
        name: "matmul",
        source: matmul,
        entryPoint,
        constants: { quant_type: type.id, ...constants },
      });
    const [embed, gemv, gemm] = await Promise.all([
      kernel("embed"),
      kernel("matmul_gemv", { gemv_threads: gemvThreads }),
      kernel("matmul_gemm", { gemm_tokens: gemmTokens }),
    ]);
    this.#kernels.set(type.name, { embed, gemv, gemm });
  }

  #kernelsOf({ name, type }: GpuMatrix): TypeKernels {
    const kernels = this.#kernels.get(type.name);
    if (!kernels) throw internalError(`${name} is used before the kernels of ${type.name} are compiled`);
    return kernels;
  }

  /** Threads that share 4 rows: 8, so that they read whole cache lines; more where rows are few and long. */
  #lanes(nRows: number, blocks: number): number {
    const { gemvThreads, targetGroups } = this.tuning;
    const nGroups = (lanes: number) => (nRows * lanes) / (SLOT_ROWS * gemvThreads);
    let lanes = blocks < 8 ? 4 : 8;
    while (lanes < gemvThreads && 2 * lanes <= blocks && nGroups(lanes) < targetGroups) lanes *= 2;
    return lanes;
  }
}

function planesOf({ quants, highs, scales }: MatrixPart): Bindings {
  return { 2: quants, 3: highs, 4: scales };
}
