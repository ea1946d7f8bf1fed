/**
 * The forward pass of Llama, Qwen2 and Qwen3 in f64, token by token, from GGUF bytes to logits: slow, and meant to be
 * read. It is checked against llama.cpp's logits in test/unit/reference-model.test.ts and is what the engine is
 * checked against.
 */

import { attention } from "./attention.ts";
import { dequantize, tensorByteLength } from "./dequantize.ts";
import { parseGguf, type ReferenceFile } from "./gguf-file.ts";
import { roundInput } from "./input-rounding.ts";
import { add, matVec, multiply, rmsNorm, silu, type Vector } from "./math.ts";
import { type ReferenceRope, rotate } from "./rope.ts";

export interface ReferenceModel {
  readonly nLayers: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly rmsEps: number;
  readonly scale: number;
  readonly window: number | undefined;
  readonly rope: ReferenceRope;
  /** A tensor's values, (rows, cols); undefined when the model does not have it. */
  weight(name: string): Vector | undefined;
  /** An input of the matrix `name`, as it enters the product. */
  input(name: string, x: Vector): Vector;
}

/** Optional observation of what happens inside. */
export interface ReferenceTrace {
  /** Keys after RoPE and values of a layer, each (nTokens, nKvHeads, headDim). */
  onKeysValues?(layer: number, keys: Float64Array, values: Float64Array): void;
  /** The residual stream behind a layer, one vector per token. */
  onLayer?(layer: number, x: readonly Vector[]): void;
}

/**
 * `inputs`: "exact" multiplies what the file says; "ggml" rounds the inputs of products as llama.cpp does, which
 * reproduces its logits for quantized files.
 */
export function loadReferenceModel(file: Uint8Array, inputs: "exact" | "ggml" = "exact"): ReferenceModel {
  const gguf = parseGguf(file);
  const { metadata, tensors } = gguf;
  const architecture = String(metadata.get("general.architecture"));
  const number = (name: string, fallback?: number) => {
    const value = metadata.get(`${architecture}.${name}`) ?? fallback;
    if (typeof value !== "number") throw new Error(`${architecture}.${name} is ${value}`);
    return value;
  };
  const nHeads = number("attention.head_count");
  const headDim = number("attention.key_length", number("embedding_length") / nHeads);
  const loaded = new Map<string, Vector>();
  const weight = (name: string) => {
    const tensor = tensors.get(name);
    if (!tensor) return undefined;
    const known = loaded.get(name);
    if (known) return known;
    const bytes = tensor.bytes.subarray(0, tensorByteLength(tensor.typeId, tensor.dims));
    const values = dequantize(tensor.typeId, bytes);
    loaded.set(name, values);
    return values;
  };
  return {
    nLayers: number("block_count"),
    nHeads,
    nKvHeads: number("attention.head_count_kv", nHeads),
    headDim,
    rmsEps: number("attention.layer_norm_rms_epsilon"),
    scale: 1 / Math.sqrt(headDim),
    window: number("attention.sliding_window", 0) || undefined,
    rope: readRope(gguf, architecture, number, headDim, weight("rope_freqs.weight")),
    weight,
    input: (name, x) => (inputs === "exact" ? x : roundInput(tensors.get(name)!.typeId, x)),
  };
}

function readRope(
  { metadata }: ReferenceFile,
  architecture: string,
  number: (name: string, fallback?: number) => number,
  headDim: number,
  factors: Vector | undefined,
): ReferenceRope {
  const scaling = metadata.get(`${architecture}.rope.scaling.type`) ?? "none";
  return {
    nRot: number("rope.dimension_count", headDim),
    base: number("rope.freq_base", 10_000),
    pairs: architecture === "llama" ? "adjacent" : "halves",
    factors,
    linearFactor: scaling === "linear" ? number("rope.scaling.factor") : undefined,
    yarn:
      scaling === "yarn"
        ? {
            factor: number("rope.scaling.factor"),
            originalContext: number("rope.scaling.original_context_length", number("context_length")),
          }
        : undefined,
  };
}

/** Logits of every position: what the model expects after tokens[0..i]. */
export function forward(
  model: ReferenceModel,
  tokens: readonly number[],
  trace: ReferenceTrace = {},
): Vector[] {
  const must = (name: string) => {
    const weight = model.weight(name);
    if (!weight) throw new Error(`the model has no ${name}`);
    return weight;
  };
  const embeddings = must("token_embd.weight");
  const outputNorm = must("output_norm.weight");
  const outputName = model.weight("output.weight") ? "output.weight" : "token_embd.weight";
  const product = (name: string, row: Vector) => matVec(must(name), model.input(name, row));
  const dModel = outputNorm.length;

  let x: Vector[] = tokens.map((id) => embeddings.slice(id * dModel, (id + 1) * dModel));
  for (let layer = 0; layer < model.nLayers; layer++) {
    const blk = (name: string) => `blk.${layer}.${name}`;
    const optional = (name: string) => model.weight(blk(name));

    const normed = x.map((row) => rmsNorm(row, must(blk("attn_norm.weight")), model.rmsEps));
    const project = (name: string) =>
      normed.map((row) => {
        const bias = optional(`${name}.bias`);
        const projected = product(blk(`${name}.weight`), row);
        return bias ? add(projected, bias) : projected;
      });
    const turn = (rows: Vector[], norm: Vector | undefined) =>
      rows.map((row, pos) =>
        rotate(norm ? normHeads(row, norm, model) : row, model.headDim, pos, model.rope),
      );
    const q = concat(turn(project("attn_q"), optional("attn_q_norm.weight")));
    const k = concat(turn(project("attn_k"), optional("attn_k_norm.weight")));
    const v = concat(project("attn_v"));
    trace.onKeysValues?.(layer, k, v);
    const { nHeads, nKvHeads, headDim, scale, window } = model;
    const { out: attended } = attention({ q, k, v, nHeads, nKvHeads, headDim, scale, window });
    const width = nHeads * headDim;
    x = x.map((row, i) =>
      add(row, product(blk("attn_output.weight"), attended.slice(i * width, (i + 1) * width))),
    );

    x = x.map((row) => {
      const normed = rmsNorm(row, must(blk("ffn_norm.weight")), model.rmsEps);
      const gate = product(blk("ffn_gate.weight"), normed).map(silu);
      const up = product(blk("ffn_up.weight"), normed);
      return add(row, product(blk("ffn_down.weight"), multiply(gate, up)));
    });
    trace.onLayer?.(layer, x);
  }
  return x.map((row) => product(outputName, rmsNorm(row, outputNorm, model.rmsEps)));
}

/** Qwen3: every head of q and k has its own RMSNorm with shared weights. */
function normHeads(row: Vector, weight: Vector, model: ReferenceModel): Vector {
  const heads: Vector[] = [];
  for (let at = 0; at < row.length; at += model.headDim) {
    heads.push(rmsNorm(row.slice(at, at + model.headDim), weight, model.rmsEps));
  }
  return concat(heads);
}

function concat(rows: readonly Vector[]): Float64Array {
  const width = rows[0]?.length ?? 0;
  const out = new Float64Array(rows.length * width);
  for (const [i, row] of rows.entries()) out.set(row, i * width);
  return out;
}
