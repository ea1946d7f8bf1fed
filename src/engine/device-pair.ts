/** A device: the pair of linear algebra and attention that `device` names (wasm, hybrid, webgpu). */

import type { AttentionOps, Ops } from "../backend/backend.ts";
import type { WasmModule } from "../backend/wasm/module.ts";
import { WasmAttention } from "../backend/wasm/wasm-attention.ts";
import { WasmOps } from "../backend/wasm/wasm-ops.ts";
import { InlayError } from "../errors.ts";
import type { TensorType } from "../gguf/tensor-types.ts";
import type { Host } from "../host/host.ts";
import { type CacheFormat, type KvShape, type PageFormat, pageBytes, pageCount } from "../kv/page.ts";
import { isQuantized } from "../kv/quantize.ts";
import type { ModelConfig } from "../model/config.ts";
import type { EngineOptions } from "../options.ts";
import { choosePlacement } from "../placement/placement.ts";
import { openGpu, RecoverableAttention } from "./gpu.ts";
import { RecoverablePair } from "./gpu-pair.ts";
import { SplitAttention } from "./split-attention.ts";

/** What runs the forward pass. */
export interface DevicePair {
  readonly kind: "wasm" | "hybrid" | "webgpu";
  readonly ops: Ops;
  readonly attention: AttentionOps;
  readonly kvFormat: CacheFormat;
  readonly gpuName: string | undefined;
  /** Why this device: what was asked for, or what was measured. */
  readonly reason: string;
  /**
   * Makes a lost GPU device anew, with `ops` and `attention` of its own; what was cached on it is gone. `reload` is called
   * where weights were on it too. Rejects with `device-lost` if the device or its weights cannot be had.
   */
  recover(reload: (ops: Ops) => Promise<void>): Promise<void>;
  gpuBytes(): number;
  /** Idempotent. */
  dispose(): void;
}

export interface DeviceRequest {
  readonly host: Host;
  readonly wasm: WasmModule;
  /** Another instance of the same build: its heap is gone when it is dropped. */
  readonly scratchWasm: () => Promise<WasmModule>;
  /** Of all weights. */
  readonly tensorTypes: ReadonlySet<TensorType>;
  readonly config: ModelConfig;
  readonly contextLength: number;
  readonly options: EngineOptions;
}

/** Opens the device that `options.device` asks for. Rejects with `device-unavailable` when it is not there. */
export async function openDevice(request: DeviceRequest): Promise<DevicePair> {
  checkHeadDim(request.config);
  const ops = new WasmOps(request.wasm);
  switch (request.options.device) {
    case "wasm":
      return wasmPair(request, ops, "asked for");
    case "hybrid":
      return hybridPair(request, ops, "asked for");
    case "webgpu":
      return webgpuPair(request, "asked for");
    case "auto": {
      const { cold: _, ...shape } = shapeOf(request, "f32");
      const { device, reason } = await choosePlacement(request, ops, shape);
      return device === "wasm" ? wasmPair(request, ops, reason) : hybridPair(request, ops, reason);
    }
  }
}

function wasmPair(request: DeviceRequest, ops: WasmOps, reason: string): DevicePair {
  // f32 needs no conversion, and one core computes slower than memory delivers.
  const shape = shapeOf(request, "f32");
  return {
    kind: "wasm",
    ops,
    attention: new WasmAttention(ops, shape),
    kvFormat: shape.cold ?? shape.format,
    gpuName: undefined,
    reason,
    recover: async () => {},
    gpuBytes: () => 0,
    dispose: () => {},
  };
}

async function hybridPair(request: DeviceRequest, ops: WasmOps, reason: string): Promise<DevicePair> {
  const shape = shapeOf(request, gpuPageFormat(request));
  const gpu = await openGpu(request.host);
  const far = await RecoverableAttention.open(gpu, ops.heap, shape);
  // Pages are quantized where they are: those of a quantized cache are on the GPU from the first token on.
  const attention = shape.cold
    ? far
    : new SplitAttention(new WasmAttention(ops, { ...shape, format: "f32" }), far);
  return {
    kind: "hybrid",
    ops,
    attention,
    kvFormat: shape.cold ?? shape.format,
    gpuName: gpu.adapterInfo,
    reason,
    recover: () => far.recover(),
    gpuBytes: () => {
      const { kv, scratch } = far.memory();
      return kv + scratch;
    },
    dispose: () => attention.dispose(),
  };
}

async function webgpuPair(request: DeviceRequest, reason: string): Promise<DevicePair> {
  const shape = shapeOf(request, gpuPageFormat(request));
  const gpu = await openGpu(request.host);
  const trusted = new WasmOps(await request.scratchWasm());
  const pair = await RecoverablePair.open(gpu, shape, trusted, request.tensorTypes);
  return {
    kind: "webgpu",
    get ops() {
      return pair.ops;
    },
    get attention() {
      return pair.attention;
    },
    kvFormat: shape.cold ?? shape.format,
    gpuName: gpu.adapterInfo,
    reason,
    recover: (reload) => pair.recover(reload),
    gpuBytes: () => pair.gpuBytes(),
    dispose: () => pair.dispose(),
  };
}

/** A cache this small is kept in f32, which agrees with llama.cpp to the last bits. */
const SMALL_CACHE_BYTES = 64 << 20;

/** f16 for long contexts: half the bytes, and attention on a GPU waits for memory. Few pages stay unquantized. */
function gpuPageFormat({ config, contextLength, options }: DeviceRequest): PageFormat {
  if (isQuantized(options.kvCache.format)) return "f32";
  const { nLayers, nKvHeads, headDim } = config;
  const bytes = pageCount(contextLength) * nLayers * nKvHeads * 2 * pageBytes("f32", headDim);
  return bytes <= SMALL_CACHE_BYTES ? "f32" : "f16";
}

/** The caller's page format, or `preferred` for "auto" and for the new pages of a quantized cache. */
function shapeOf({ config, options }: DeviceRequest, preferred: PageFormat): KvShape {
  const { nLayers, nHeads, nKvHeads, headDim } = config;
  const { format } = options.kvCache;
  const heads = { nLayers, nHeads, nKvHeads, headDim };
  if (isQuantized(format)) return { ...heads, format: preferred, cold: format };
  return { ...heads, format: format === "auto" ? preferred : format };
}

/** The kernels of all backends take whole vectors of 8. */
function checkHeadDim({ headDim }: ModelConfig): void {
  if (headDim % 8 === 0 && headDim <= 256) return;
  throw new InlayError(
    "unsupported-model",
    `the model's heads have ${headDim} dimensions; multiples of 8 up to 256 can be run`,
    { headDim },
  );
}
