/**
 * From GGUF tensors to the weights of the forward pass: GGUF's names are translated here and nowhere else.
 */

import type { Ops, Weight } from "../backend/backend.ts";
import type { ModelFile } from "../gguf/model-file.ts";
import type { TensorInfo } from "../gguf/tensor-info.ts";
import type { ModelConfig } from "./config.ts";
import type { TensorInventory } from "./tensor-names.ts";

/** Weights of one decoder layer. */
export interface LayerWeights {
  readonly attnNorm: Weight;
  readonly q: Weight;
  readonly k: Weight;
  readonly v: Weight;
  readonly qBias: Weight | undefined;
  readonly kBias: Weight | undefined;
  readonly vBias: Weight | undefined;
  readonly qNorm: Weight | undefined;
  readonly kNorm: Weight | undefined;
  readonly attnOutput: Weight;
  readonly ffnNorm: Weight;
  readonly ffnGate: Weight;
  readonly ffnUp: Weight;
  readonly ffnDown: Weight;
}

/** All weights of a model. */
export interface ModelWeights {
  readonly tokenEmbedding: Weight;
  readonly layers: readonly LayerWeights[];
  readonly outputNorm: Weight;
  /** The embedding table when the model ties them. */
  readonly output: Weight;
}

/** Bytes of tensor data loaded so far. */
export type OnLoaded = (loaded: number) => void;

/**
 * Streams every used tensor into `ops`, in the file's order. `rope_freqs.weight` stays on the host; it is
 * returned apart. Rejects as the file does, or with `invalid-model` for values that are not finite.
 */
export async function loadWeights(
  file: ModelFile,
  inventory: TensorInventory,
  config: ModelConfig,
  ops: Ops,
  onLoaded: OnLoaded,
): Promise<{ weights: ModelWeights; ropeFactors: Float32Array | undefined }> {
  const loaded = new Map<string, Weight>();
  let ropeFactors: Float32Array | undefined;
  let bytes = 0;
  for await (const { tensor, chunks } of file.readTensors((t) => inventory.used.has(t.name))) {
    if (tensor.name === "rope_freqs.weight") {
      ropeFactors = await readFloats(tensor, chunks);
      continue;
    }
    const writer = ops.createWeight(tensor);
    for await (const chunk of chunks) {
      writer.write(chunk);
      bytes += chunk.byteLength;
      onLoaded(bytes);
    }
    loaded.set(tensor.name, await writer.finish());
  }
  return { weights: arrange(config, loaded), ropeFactors };
}

function arrange(config: ModelConfig, loaded: ReadonlyMap<string, Weight>): ModelWeights {
  const layers = Array.from({ length: config.nLayers }, (_, i): LayerWeights => {
    const get = (name: string) => loaded.get(`blk.${i}.${name}`);
    return {
      attnNorm: get("attn_norm.weight")!,
      q: get("attn_q.weight")!,
      k: get("attn_k.weight")!,
      v: get("attn_v.weight")!,
      qBias: get("attn_q.bias"),
      kBias: get("attn_k.bias"),
      vBias: get("attn_v.bias"),
      qNorm: get("attn_q_norm.weight"),
      kNorm: get("attn_k_norm.weight"),
      attnOutput: get("attn_output.weight")!,
      ffnNorm: get("ffn_norm.weight")!,
      ffnGate: get("ffn_gate.weight")!,
      ffnUp: get("ffn_up.weight")!,
      ffnDown: get("ffn_down.weight")!,
    };
  });
  const tokenEmbedding = loaded.get("token_embd.weight")!;
  return {
    tokenEmbedding,
    layers,
    outputNorm: loaded.get("output_norm.weight")!,
    output: config.hasTiedEmbeddings ? tokenEmbedding : loaded.get("output.weight")!,
  };
}

/** A small F32 tensor as numbers; `takeInventory` has checked type and shape. */
async function readFloats(tensor: TensorInfo, chunks: AsyncIterable<Uint8Array>): Promise<Float32Array> {
  const bytes = new Uint8Array(tensor.byteLength);
  let at = 0;
  for await (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.byteLength;
  }
  return new Float32Array(bytes.buffer);
}
