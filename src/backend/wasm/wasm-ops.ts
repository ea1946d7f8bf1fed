/** Linear algebra in WASM SIMD: each method checks shapes, then makes one call into wasm/bridge.cpp. */

import type { KeyRuns, RunMasses } from "../../attention/estimate.ts";
import { type AttentionShape, blockCount, type QueryBlocks } from "../../attention/policy.ts";
import { InlayError, internalError } from "../../errors.ts";
import type { TensorInfo } from "../../gguf/tensor-info.ts";
import type {
  Activation,
  LinearMap,
  Ops,
  RopeAngles,
  RopeTable,
  Tensor,
  Weight,
  WeightWriter,
} from "../backend.ts";
import type { WasmModule } from "./module.ts";
import { TensorHeap, type WasmTensor, wasmTensor } from "./wasm-tensor.ts";
import { createWasmWriter, WasmWeight } from "./wasm-weights.ts";

/** Most maps of one `linear` call: q, k, v. */
const MAX_MAPS = 4;
/** 32-bit fields of a LinearMap in wasm/kernels/matmul.h. */
const MAP_FIELDS = 6;

export class WasmOps implements Ops {
  readonly device = "wasm";
  readonly heap: TensorHeap;
  readonly #maps: number;
  #weightBytes = 0;

  constructor(readonly wasm: WasmModule) {
    this.heap = new TensorHeap(wasm);
    this.#maps = wasm.alloc(MAX_MAPS * MAP_FIELDS * 4, "call arguments");
  }

  createWeight(info: TensorInfo): WeightWriter {
    return createWasmWriter(this.wasm, info, (byteLength) => {
      this.#weightBytes += byteLength;
    });
  }

  embed(table: Weight, ids: Uint32Array): Tensor {
    const weight = wasmWeight(table);
    const bad = ids.find((id) => id >= weight.rows);
    if (bad !== undefined)
      throw new InlayError("invalid-option", `token id ${bad} is outside the vocabulary of ${weight.rows}`, {
        id: bad,
        vocabSize: weight.rows,
      });
    const out = this.heap.create(ids.length, weight.cols);
    const idsPtr = this.wasm.alloc(ids.byteLength, "token ids");
    this.wasm.u32(idsPtr, ids.length).set(ids);
    this.wasm.call("embed_rows", weight.typeId, weight.ptr, weight.cols, idsPtr, ids.length, out.ptr);
    this.wasm.free(idsPtr);
    return out;
  }

  rmsNorm(x: Tensor, weight: Weight, eps: number): Tensor {
    const input = wasmTensor(x);
    this.#expectWidth(input, weight.cols, weight.name);
    const out = this.heap.create(x.nTokens, x.width);
    const w = wasmWeight(weight);
    this.wasm.call("rms_norm_rows", input.ptr, w.ptr, out.ptr, x.nTokens, x.width, eps);
    return out;
  }

  rmsNormHeadsInPlace(x: Tensor, weight: Weight, eps: number): void {
    const { ptr, nTokens, width } = wasmTensor(x);
    const rows = (nTokens * width) / weight.cols;
    this.wasm.call("rms_norm_rows", ptr, wasmWeight(weight).ptr, ptr, rows, weight.cols, eps);
  }

  linear(x: Tensor, maps: readonly LinearMap[]): Tensor[] {
    const outs = maps.map((map) => this.heap.create(x.nTokens, map.weight.rows));
    this.#run(x, maps, outs, false);
    return outs;
  }

  linearAdd(x: Tensor, map: LinearMap, residual: Tensor): void {
    const out = wasmTensor(residual);
    this.#expectWidth(out, map.weight.rows, map.weight.name);
    this.#run(x, [map], [out], true);
  }

  gatedLinear(x: Tensor, gate: Weight, up: Weight, act: Activation): Tensor {
    const out = this.heap.create(x.nTokens, gate.rows);
    using scratch = this.heap.create(x.nTokens, up.rows);
    this.#writeMaps(x, [{ weight: gate }, { weight: up }], [out, scratch], false);
    const input = wasmTensor(x);
    const actId = act === "silu" ? 0 : 1;
    this.#check(this.wasm.call("gated_linear_maps", input.ptr, x.nTokens, x.width, this.#maps, actId), gate);
    return out;
  }

  ropeAngles(table: RopeTable): RopeAngles {
    const { angles, nTokens, nRot, pairs } = table;
    const tensor = this.heap.create(nTokens, nRot);
    tensor.view.set(angles);
    return new WasmRopeAngles(tensor, nRot, pairs === "halves");
  }

  ropeInPlace(x: Tensor, angles: RopeAngles, headDim: number): void {
    if (!(angles instanceof WasmRopeAngles)) throw internalError("RoPE angles of another device");
    const { ptr, nTokens, width } = wasmTensor(x);
    const { table, nRot, halves } = angles;
    this.wasm.call("rope_rows", ptr, table.ptr, nTokens, width / headDim, headDim, nRot, halves ? 1 : 0);
  }

  row(x: Tensor, i: number): Tensor {
    const out = this.heap.create(1, x.width);
    const from = wasmTensor(x).ptr + i * x.width * 4;
    this.wasm.u8.copyWithin(out.ptr, from, from + x.width * 4);
    return out;
  }

  pool(x: Tensor, ends: Uint32Array, first: Float32Array): Tensor {
    const { ptr, width } = wasmTensor(x);
    if (first.length !== width || (ends.at(-1) ?? 0) > x.nTokens)
      throw internalError(
        `pooling (${x.nTokens}, ${width}) in ${ends.length} runs from ${first.length} numbers`,
      );
    const out = this.heap.create(ends.length, width);
    const endsPtr = this.wasm.alloc(ends.byteLength, "pooled rows");
    this.wasm.u32(endsPtr, ends.length).set(ends);
    out.view.set(first);
    this.wasm.call("pool_run_rows", ptr, width, endsPtr, ends.length, out.ptr);
    this.wasm.free(endsPtr);
    return out;
  }

  estimateMasses(
    q: Tensor,
    blocks: QueryBlocks,
    { nRuns, features, lengths, visible }: KeyRuns,
    { nHeads, nKvHeads, headDim }: Pick<AttentionShape, "nHeads" | "nKvHeads" | "headDim">,
    scale: number,
  ): RunMasses {
    const { wasm } = this;
    const { ptr, nTokens, width } = wasmTensor(q);
    const nMasses = blockCount(blocks) * nKvHeads * nRuns;
    if (
      width !== nHeads * headDim ||
      nTokens !== blocks.qLen ||
      features.length !== nRuns * nKvHeads * headDim ||
      lengths.length !== nRuns ||
      visible.length !== 4 * blockCount(blocks)
    )
      throw internalError(
        `attention of (${nTokens}, ${width}) on ${nRuns} runs of ${features.length} numbers`,
      );
    if (nRuns === 0) return new Float32Array(0);
    const arrays = [features, lengths, visible];
    const inputs = wasm.alloc(
      arrays.reduce((n, { byteLength }) => n + byteLength, 0) + 4 * nMasses,
      "runs of keys",
    );
    try {
      let at = inputs;
      const [featuresPtr, lengthsPtr, visiblePtr] = arrays.map((array) => {
        wasm
          .bytes(at, array.byteLength)
          .set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
        at += array.byteLength;
        return at - array.byteLength;
      });
      const status = wasm.call(
        "estimate_run_masses",
        ...[ptr, nTokens, nHeads, nKvHeads, headDim, blocks.blockSize],
        ...[featuresPtr!, lengthsPtr!, visiblePtr!, nRuns, scale, at],
      );
      if (status === -1) throw new InlayError("out-of-memory", "no scratch memory for estimating attention");
      if (status !== 0) throw internalError(`estimating attention returned ${status}`);
      return wasm.f32(at, nMasses).slice();
    } finally {
      wasm.free(inputs);
    }
  }

  read(x: Tensor): Float32Array {
    return wasmTensor(x).view.slice();
  }

  readAll(xs: readonly Tensor[]): Float32Array[] {
    return xs.map((x) => this.read(x));
  }

  memory(): { weights: number; scratch: number } {
    return { weights: this.#weightBytes, scratch: this.heap.bytes };
  }

  /** Nothing to do: the heap goes with the module. */
  dispose(): void {}

  #run(x: Tensor, maps: readonly LinearMap[], outs: readonly WasmTensor[], accumulate: boolean): void {
    this.#writeMaps(x, maps, outs, accumulate);
    const status = this.wasm.call(
      "linear_maps",
      wasmTensor(x).ptr,
      x.nTokens,
      x.width,
      this.#maps,
      maps.length,
    );
    this.#check(status, maps[0]!.weight);
  }

  #writeMaps(x: Tensor, maps: readonly LinearMap[], outs: readonly WasmTensor[], accumulate: boolean): void {
    if (maps.length > MAX_MAPS) throw internalError(`${maps.length} maps in one call`);
    const fields = this.wasm.u32(this.#maps, maps.length * MAP_FIELDS);
    maps.forEach(({ weight, bias }, i) => {
      this.#expectWidth(x, weight.cols, weight.name);
      const w = wasmWeight(weight);
      const biasPtr = bias ? wasmWeight(bias).ptr : 0;
      fields.set([w.typeId, w.rows, w.ptr, biasPtr, outs[i]!.ptr, accumulate ? 1 : 0], i * MAP_FIELDS);
    });
  }

  #expectWidth(x: Tensor, cols: number, name: string): void {
    if (x.width !== cols)
      throw internalError(`${name} needs rows of ${cols}, got (${x.nTokens}, ${x.width})`);
  }

  #check(status: number, weight: Weight): void {
    if (status === 0) return;
    if (status === -1)
      throw new InlayError("out-of-memory", `no scratch memory for multiplying ${weight.name}`, {
        heapBytes: this.wasm.memory.buffer.byteLength,
      });
    throw internalError(`matmul of ${weight.name} returned ${status}`);
  }
}

/** cos and sin: (nTokens, nRot / 2, 2). */
class WasmRopeAngles implements RopeAngles {
  constructor(
    readonly table: WasmTensor,
    readonly nRot: number,
    readonly halves: boolean,
  ) {}

  get nTokens(): number {
    return this.table.nTokens;
  }

  [Symbol.dispose](): void {
    this.table[Symbol.dispose]();
  }
}

function wasmWeight(weight: Weight): WasmWeight {
  if (weight instanceof WasmWeight) return weight;
  throw internalError(`${weight.name} lives on another device`);
}
