/** A model opened for measurements: in this thread, with as many KV caches of different formats beside it as are wanted. */

import type { AttentionOps } from "../backend/backend.ts";
import { WasmModule } from "../backend/wasm/module.ts";
import { ThreadPool } from "../backend/wasm/threads.ts";
import { chooseWasm } from "../backend/wasm/variant.ts";
import { WasmAttention } from "../backend/wasm/wasm-attention.ts";
import { WasmOps } from "../backend/wasm/wasm-ops.ts";
import { HybridAttention } from "../backend/webgpu/hybrid-attention.ts";
import { openGpu } from "../engine/gpu.ts";
import { openModelFile } from "../gguf/model-file.ts";
import type { ByteSource } from "../gguf/source.ts";
import type { Host } from "../host/host.ts";
import type { CacheFormat, KvShape } from "../kv/page.ts";
import { isQuantized } from "../kv/quantize.ts";
import { readModelConfig } from "../model/config.ts";
import type { Transformer } from "../model/forward.ts";
import { ropeSpec } from "../model/rope.ts";
import { takeInventory } from "../model/tensor-names.ts";
import { loadWeights } from "../model/weights.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../tokenizer/vocabulary.ts";

export interface EvalSetup {
  readonly host: Host;
  readonly sources: readonly ByteSource[];
  /** Where attention runs; matrices are WASM's in both. */
  readonly device: "wasm" | "hybrid";
  readonly threads: number | "auto";
  readonly onProgress?: ((loadedBytes: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Everything but the cache and attention. */
export interface EvalModel extends Omit<Transformer, "attention"> {
  readonly tokenizer: Tokenizer;
  readonly device: "wasm" | "hybrid";
  /** Attention over caches of a format; whoever opens it disposes it. */
  openAttention(format: CacheFormat): Promise<AttentionOps>;
  /** Idempotent. */
  dispose(): void;
}

/** Opens a model. Rejects as `loadModel` does. */
export async function openEvalModel(setup: EvalSetup): Promise<EvalModel> {
  const { host, signal } = setup;
  const file = await openModelFile(setup.sources, signal);
  const cleanups: (() => void)[] = [];
  const dispose = () => {
    for (const cleanup of cleanups.splice(0).reverse()) cleanup();
  };
  try {
    const config = readModelConfig(file.metadata, file.tensors);
    const inventory = takeInventory(config, file.tensors);
    const choice = await chooseWasm(setup.threads, host);
    const module = await host.compileWasm(choice.variant);
    const wasm = await WasmModule.instantiate({ module, shared: choice.nThreads > 1 });
    if (choice.nThreads > 1) {
      const pool = await ThreadPool.start(host, wasm, module, choice.nThreads);
      cleanups.push(() => pool.dispose());
    }
    const tokenizer = Tokenizer.create(
      wasm,
      vocabularyFromMetadata({ get: (key) => file.metadata.get(key)?.value }),
    );
    cleanups.push(() => tokenizer.dispose());
    const gpu = setup.device === "hybrid" ? await openGpu(host) : undefined;
    if (gpu) cleanups.push(() => gpu.dispose());
    const ops = new WasmOps(wasm);
    const { weights, ropeFactors } = await loadWeights(file, inventory, config, ops, (bytes) => {
      signal?.throwIfAborted();
      setup.onProgress?.(bytes);
    });
    const { nLayers, nHeads, nKvHeads, headDim } = config;
    return {
      config,
      weights,
      rope: ropeSpec(config.rope, ropeFactors),
      ops,
      tokenizer,
      device: setup.device,
      async openAttention(format) {
        const pages = isQuantized(format) ? ({ format: "f32", cold: format } as const) : { format };
        const shape: KvShape = { nLayers, nHeads, nKvHeads, headDim, ...pages };
        return gpu ? HybridAttention.create(gpu, ops.heap, shape) : new WasmAttention(ops, shape);
      },
      dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  } finally {
    await file.close();
  }
}
