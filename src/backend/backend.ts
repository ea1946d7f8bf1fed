/**
 * What a compute backend must provide. The forward pass (src/model/forward.ts) sees only these interfaces.
 *
 * `Ops` is the linear algebra, `AttentionOps` the KV cache and attention. A device is a pair of them:
 *
 *     wasm     linear WASM    attention WASM
 *     hybrid   linear WASM    attention WASM up to 256 keys, then WebGPU (q, k, v go up, the attended rows come back,
 *              once per layer)
 *     webgpu   linear WebGPU  attention WebGPU   (only one row of logits comes back)
 *
 * Tensors are opaque handles that live on one side; crossing is explicit and counted (see `Crossings`).
 * Everything may be asynchronous because a GPU read-back is; WASM returns plain values, which `await` accepts.
 */

import type { KeyRuns, RunMasses } from "../attention/estimate.ts";
import type { AttentionShape, QueryBlocks, SampledMasses, Selection } from "../attention/policy.ts";
import type { SqueezedPolicy } from "../attention/squeezed.ts";
import type { TensorInfo } from "../gguf/reader.ts";
import type { PagedCache } from "../kv/paged-cache.ts";

/** Activations: (nTokens, width), f32, row-major. Created by an op, disposed by the caller (`using`). */
export interface Tensor extends Disposable {
  readonly nTokens: number;
  readonly width: number;
}

/** A weight matrix (rows, cols) or vector (1, cols) on the device, in the kernel's layout. Lives as long as the model. */
export interface Weight {
  readonly name: string;
  /** Outputs. GGUF dims[1]; 1 for vectors. */
  readonly rows: number;
  /** Inputs, the fastest axis. GGUF dims[0]. */
  readonly cols: number;
}

/** Receives the bytes of one tensor in file order and puts them where the kernels want them. */
export interface WeightWriter {
  /** Consumes all of `bytes`, which continue where the last call ended. Any split is allowed. */
  write(bytes: Uint8Array): void;
  /** Ends the tensor. Throws `invalid-model` if bytes are missing or a scale is not finite. */
  finish(): Weight | Promise<Weight>;
}

/** One linear map of a group that shares its input. */
export interface LinearMap {
  readonly weight: Weight;
  readonly bias?: Weight | undefined;
}

/** cos and sin of every (position, pair) of one forward call; shared by all layers with the same RoPE base. */
export interface RopeAngles extends Disposable {
  readonly nTokens: number;
}

/** cos and sin for the positions of one forward call; src/model/rope.ts makes it. */
export interface RopeTable {
  /** (nTokens, nRot / 2, 2): cos and sin of each pair, in turn. */
  readonly angles: Float32Array;
  readonly nTokens: number;
  /** Dimensions of a head that are rotated; even. */
  readonly nRot: number;
  /** "adjacent" rotates (2i, 2i+1): ggml NORM; "halves" rotates (i, i + nRot/2): ggml NEOX. */
  readonly pairs: "adjacent" | "halves";
}

/** Feed-forward gate. */
export type Activation = "silu" | "gelu";

/** Linear algebra on one device. All tensors f32; `x` is never changed unless the name says so. */
export interface Ops {
  readonly device: "wasm" | "webgpu";
  /** Starts a weight. `info` gives type and shape; bytes follow through the writer. */
  createWeight(info: TensorInfo): WeightWriter;
  /** Rows `ids` of `table`: (nTokens, cols). */
  embed(table: Weight, ids: Uint32Array): Tensor;
  /** x / sqrt(mean(x²) + eps) * weight, per row. */
  rmsNorm(x: Tensor, weight: Weight, eps: number): Tensor;
  /** The same per head of `headDim` columns, in place (q/k norm of Qwen3). */
  rmsNormHeadsInPlace(x: Tensor, weight: Weight, eps: number): void;
  /** weight_i · x + bias_i for every map, each (nTokens, weight_i.rows). One pass over x. */
  linear(x: Tensor, maps: readonly LinearMap[]): Tensor[];
  /** residual += weight · x + bias. */
  linearAdd(x: Tensor, map: LinearMap, residual: Tensor): void;
  /** act(gate · x) * (up · x): (nTokens, gate.rows). */
  gatedLinear(x: Tensor, gate: Weight, up: Weight, act: Activation): Tensor;
  /** Puts the table on the device. */
  ropeAngles(table: RopeTable): RopeAngles;
  /** Rotates each head of `headDim` columns in place. */
  ropeInPlace(x: Tensor, angles: RopeAngles, headDim: number): void;
  /** Copies row `i` out: (1, width). */
  row(x: Tensor, i: number): Tensor;
  /**
   * Sums of x over runs of tokens, for selection policies: (nRuns, width). Run i is tokens [ends[i-1], ends[i]); run 0 starts
   * from `first`, (width), which lies on the host, the others from zero.
   */
  pool(x: Tensor, ends: Uint32Array, first: Float32Array): Tensor;
  /**
   * Attention of each block's queries on runs of keys, estimated from their means (src/attention/estimate.ts), of every
   * query. Absent where the result would have to be read back.
   */
  estimateMasses?(
    q: Tensor,
    blocks: QueryBlocks,
    runs: KeyRuns,
    shape: Pick<AttentionShape, "nHeads" | "nKvHeads" | "headDim">,
    scale: number,
  ): RunMasses;
  /** Copies x to the host, (nTokens * width). This and `readAll` are where results leave the device. */
  read(x: Tensor): Promise<Float32Array> | Float32Array;
  /** Copies several tensors to the host in one crossing. */
  readAll(xs: readonly Tensor[]): Promise<Float32Array[]> | Float32Array[];
  /** Bytes held for weights and for scratch. */
  memory(): { weights: number; scratch: number };
  dispose(): void;
}

/** What the queries of a call read: lists of the host, or those that `DeviceClusters.select` made. */
export interface Selected {
  readonly selections: readonly Selection[];
  /** `selections` are none then. */
  readonly onDevice?: DeviceSelection | undefined;
}

/** Page lists that lie on the device that made them, and which it alone can read; for one attention call. */
export interface DeviceSelection extends Disposable {
  readonly layer: number;
}

/** Queries of one layer that look clusters up; the fields are those of an AttendCall. */
export type LookupCall = Pick<AttendCall, "layer" | "q" | "blocks" | "scale" | "softcap">;

/** The clusters of a pinned prompt's keys on a device, which looks them up itself: no query leaves it. */
export interface DeviceClusters extends Disposable {
  /**
   * Where the selections of a call count: zeros, (nKvHeads * nBlocks, 2), for each KV head's blocks the keys that are read (the
   * page of the last query counts whole), and the estimated attention probability of those that are not.
   */
  counters(blocks: QueryBlocks): Tensor;
  /**
   * Of a clustered layer, what SqueezedPolicy.select would return, up to the rounding of estimates at the threshold; adds
   * to `counters`.
   */
  select(call: LookupCall, counters: Tensor): DeviceSelection;
}

/** One attention call: the keys and values of these tokens are appended, then the queries attend. */
export interface AttendCall extends Selected {
  readonly layer: number;
  /** (nTokens, nHeads * headDim), after RoPE. */
  readonly q: Tensor;
  /** (nTokens, nKvHeads * headDim), after RoPE. */
  readonly k: Tensor;
  /** (nTokens, nKvHeads * headDim). */
  readonly v: Tensor;
  /** Has room for the tokens: `cache.reserve` was called. */
  readonly cache: PagedCache;
  /** Where the queries stand; qStart is the number of tokens already cached. */
  readonly blocks: QueryBlocks;
  /** Score scale, usually 1 / sqrt(headDim). */
  readonly scale: number;
  /** x <- cap * tanh(x / cap) before masking; undefined = none. */
  readonly softcap?: number | undefined;
  /** Sliding window in tokens; undefined = none. */
  readonly window?: number | undefined;
}

/** A call whose selection is not yet made. */
export type UnselectedCall = Omit<AttendCall, keyof Selected>;

/** The KV cache and attention on one device. */
export interface AttentionOps {
  readonly device: "wasm" | "webgpu";
  /** An empty cache that shares this backend's page pool. */
  createCache(): PagedCache;
  /** Appends k and v, attends, and returns (nTokens, nHeads * headDim) on the side of `Ops`. */
  attend(call: AttendCall): Promise<Tensor> | Tensor;
  /** No call may cross this position: keys before and after it are attended to in different places. */
  readonly boundary?: number;
  /**
   * Appends k and v, and computes the attention probabilities of sampled rows (indices of the call's tokens) exactly.
   * From a GPU each row's share of every page is read back.
   */
  sampleMasses(call: UnselectedCall, rows: Uint32Array): Promise<SampledMasses> | SampledMasses;
  /**
   * Puts the clusters that `policy` reads on the device. Absent where queries are on the host: there a ClusterScorer looks
   * them up. Rejects with `out-of-memory`.
   */
  openClusters?(policy: SqueezedPolicy): Promise<DeviceClusters>;
  /** Bytes held for pages in use and for scratch. */
  memory(): { kv: number; scratch: number };
  dispose(): void;
}

/** Bytes and calls that crossed between WASM and the GPU, for `model.memory()` and `usage.extra`. */
export interface Crossings {
  uploads: number;
  uploadedBytes: number;
  readbacks: number;
  readbackBytes: number;
}
