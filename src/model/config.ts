/**
 * What a GGUF file says about the model: shapes, norms, rotary embedding, attention window, chat templates.
 *
 * Keys are GGUF's own (`llama.block_count`); everything is checked here once, so that the layers, kernels and
 * caches behind can rely on it. RoPE has its own file, rope-config.ts; tensors are checked in tensor-names.ts.
 */

import { InlayError } from "../errors.ts";
import type { Metadata } from "../gguf/metadata.ts";
import type { TensorInfo } from "../gguf/tensor-info.ts";
import { bounded, invalid, real } from "./metadata-bounds.ts";
import { type RopeConfig, readRopeConfig } from "./rope-config.ts";

/** Architectures that the forward pass implements. */
export const ARCHITECTURES = ["llama", "qwen2", "qwen3"] as const;

export type Architecture = (typeof ARCHITECTURES)[number];

/** A model's shape and constants, as plain data. */
export interface ModelConfig {
  readonly architecture: Architecture;
  /** `general.name`, or "" when the file has none. */
  readonly name: string;
  /** llama.cpp's name for the mix of tensor types: "Q4_K_M". */
  readonly fileType: string;
  readonly nLayers: number;
  /** Width of the residual stream. */
  readonly dModel: number;
  readonly nHeads: number;
  /** Divides nHeads; smaller than nHeads means grouped-query attention. */
  readonly nKvHeads: number;
  readonly headDim: number;
  /** Width inside the feed-forward block. */
  readonly dFfn: number;
  /** Rows of the embedding table. */
  readonly vocabSize: number;
  /** Positions that the model was trained for. */
  readonly contextLength: number;
  readonly rmsEps: number;
  /** Score scale, 1 / sqrt(headDim) unless the file says otherwise. */
  readonly attentionScale: number;
  /** Sliding window of each layer in tokens; undefined = the layer sees everything before it. */
  readonly windows: readonly (number | undefined)[];
  readonly rope: RopeConfig;
  /** The output matrix is the embedding table: there is no `output.weight`. */
  readonly hasTiedEmbeddings: boolean;
  /** q, k and v have biases (Qwen2). */
  readonly hasQkvBias: boolean;
  /** Each head of q and k goes through an RMSNorm (Qwen3). */
  readonly hasQkNorm: boolean;
  /** Jinja sources by name; the main one is `default`. Empty when the file has none. */
  readonly chatTemplates: Readonly<Record<string, string>>;
}

/** Bounds of what makes sense; a file outside them is damaged, and allocations that follow it are refused here. */
const BOUNDS = {
  nLayers: 1024,
  dModel: 1 << 16,
  nHeads: 1024,
  headDim: 1024,
  dFfn: 1 << 18,
  vocabSize: 1 << 22,
  contextLength: 1 << 24,
} as const;

/** llama.cpp's `general.file_type`. */
const FILE_TYPES: Readonly<Record<number, string>> = {
  0: "F32",
  1: "F16",
  2: "Q4_0",
  3: "Q4_1",
  7: "Q8_0",
  8: "Q5_0",
  9: "Q5_1",
  10: "Q2_K",
  11: "Q3_K_S",
  12: "Q3_K_M",
  13: "Q3_K_L",
  14: "Q4_K_S",
  15: "Q4_K_M",
  16: "Q5_K_S",
  17: "Q5_K_M",
  18: "Q6_K",
  21: "Q2_K_S",
  25: "IQ4_NL",
  32: "BF16",
};

/**
 * Reads the configuration. `tensors` tell what metadata does not: vocabulary size, tied embeddings, biases.
 * Throws `unsupported-model` for a sound model that cannot be run and `invalid-model` for impossible values.
 */
export function readModelConfig(metadata: Metadata, tensors: readonly TensorInfo[]): ModelConfig {
  const architecture = readArchitecture(metadata);
  const key = (name: string) => `${architecture}.${name}`;
  const has = new Map(tensors.map((t) => [t.name, t]));
  refuseVariants(metadata, key);

  const nLayers = bounded(metadata, key("block_count"), 1, BOUNDS.nLayers);
  const dModel = bounded(metadata, key("embedding_length"), 1, BOUNDS.dModel);
  const nHeads = sameInAllLayers(metadata, key("attention.head_count"), nLayers, BOUNDS.nHeads);
  const nKvHeads = sameInAllLayers(metadata, key("attention.head_count_kv"), nLayers, nHeads, nHeads);
  if (nHeads % nKvHeads !== 0) {
    throw invalid(metadata, `${nHeads} query heads cannot be shared evenly by ${nKvHeads} KV heads`);
  }
  const headDim = readHeadDim(metadata, key, dModel, nHeads);
  const contextLength = bounded(metadata, key("context_length"), 1, BOUNDS.contextLength);
  return {
    architecture,
    name: metadata.string("general.name", ""),
    fileType: readFileType(metadata),
    nLayers,
    dModel,
    nHeads,
    nKvHeads,
    headDim,
    dFfn: sameInAllLayers(metadata, key("feed_forward_length"), nLayers, BOUNDS.dFfn),
    vocabSize: readVocabSize(metadata, has.get("token_embd.weight")),
    contextLength,
    rmsEps: real(metadata, key("attention.layer_norm_rms_epsilon"), 0, 0.1),
    attentionScale: readAttentionScale(metadata, key("attention.scale"), headDim),
    windows: readWindows(metadata, key, nLayers),
    rope: readRopeConfig(metadata, architecture, {
      headDim,
      contextLength,
      hasFactors: has.has("rope_freqs.weight"),
    }),
    hasTiedEmbeddings: !has.has("output.weight"),
    hasQkvBias: architecture === "qwen2" || has.has("blk.0.attn_q.bias"),
    hasQkNorm: architecture === "qwen3",
    chatTemplates: readChatTemplates(metadata),
  };
}

function readArchitecture(metadata: Metadata): Architecture {
  const found = metadata.string("general.architecture");
  const known = ARCHITECTURES.find((a) => a === found);
  if (known) return known;
  throw new InlayError(
    "unsupported-model",
    `${metadata.fileName}: the architecture is ${JSON.stringify(found.slice(0, 64))}; ${ARCHITECTURES.join(", ")} can be run`,
    { architecture: found, supported: ARCHITECTURES },
  );
}

/** Variants of the known architectures whose arithmetic differs. */
function refuseVariants(metadata: Metadata, key: (name: string) => string): void {
  const refuse = (name: string, what: string) => {
    throw new InlayError(
      "unsupported-model",
      `${metadata.fileName}: ${what} (${key(name)}), which Inlay cannot run`,
      {
        key: key(name),
      },
    );
  };
  const nExperts = metadata.uint(key("expert_count"), 0);
  if (nExperts > 0) refuse("expert_count", `this is a mixture of ${nExperts} experts`);
  if (!metadata.bool(key("attention.causal"), true)) refuse("attention.causal", "attention is not causal");
}

/** A count that a file may give once or per layer; layers that differ cannot be run. */
function sameInAllLayers(
  metadata: Metadata,
  key: string,
  nLayers: number,
  high: number,
  fallback?: number,
): number {
  if (metadata.get(key)?.type !== "array") return bounded(metadata, key, 1, high, fallback);
  const perLayer = Array.from(metadata.numbers(key), Number);
  const [first] = perLayer;
  if (first === undefined || perLayer.length !== nLayers || !(first >= 1 && first <= high)) {
    throw invalid(
      metadata,
      `${key} lists [${perLayer.slice(0, 8)}${perLayer.length > 8 ? ", …" : ""}] (${perLayer.length} values); ` +
        `it needs one value from 1 to ${high} for each of ${nLayers} layers`,
      { key },
    );
  }
  const odd = perLayer.findIndex((n) => n !== first);
  if (odd < 0) return first;
  throw new InlayError(
    "unsupported-model",
    `${metadata.fileName}: ${key} is ${first} in layer 0 and ${perLayer[odd]} in layer ${odd}; ` +
      "models whose layers differ cannot be run",
    { key },
  );
}

function readHeadDim(
  metadata: Metadata,
  key: (name: string) => string,
  dModel: number,
  nHeads: number,
): number {
  const shared = metadata.has(key("attention.key_length")) ? undefined : dModel / nHeads;
  if (shared !== undefined && !Number.isInteger(shared)) {
    throw invalid(
      metadata,
      `${key("embedding_length")} ${dModel} is not a multiple of ${nHeads} heads, and there is no ${key("attention.key_length")}`,
    );
  }
  const headDim = bounded(metadata, key("attention.key_length"), 2, BOUNDS.headDim, shared);
  if (headDim % 2 !== 0)
    throw invalid(metadata, `the head dimension is ${headDim}; it must be even`, { headDim });
  const valueDim = metadata.uint(key("attention.value_length"), headDim);
  if (valueDim === headDim) return headDim;
  throw new InlayError(
    "unsupported-model",
    `${metadata.fileName}: keys have ${headDim} dimensions and values ${valueDim}; they must be equal`,
    { headDim, valueDim },
  );
}

function readVocabSize(metadata: Metadata, embedding: TensorInfo | undefined): number {
  if (!embedding) {
    const what = metadata.has("tokenizer.ggml.tokens")
      ? "it may be a vocabulary-only file"
      : "it may be incomplete";
    throw invalid(metadata, `the tensor token_embd.weight is missing; ${what}`);
  }
  const { rows } = embedding;
  if (rows > BOUNDS.vocabSize) {
    throw invalid(metadata, `token_embd.weight has ${rows} rows; the limit is ${BOUNDS.vocabSize}`);
  }
  const nTokens = metadata.strings("tokenizer.ggml.tokens", undefined)?.count;
  if (nTokens !== undefined && nTokens !== rows) {
    throw invalid(metadata, `the vocabulary has ${nTokens} tokens, but token_embd.weight has ${rows} rows`, {
      nTokens,
      rows,
    });
  }
  return rows;
}

function readAttentionScale(metadata: Metadata, key: string, headDim: number): number {
  const stored = metadata.number(key, 0);
  if (stored < 0 || stored > 1e3)
    throw invalid(metadata, `${key} is ${stored}; it must be from 0 to 1000`, { key });
  return stored === 0 ? 1 / Math.sqrt(headDim) : stored;
}

/**
 * Windows per layer. A pattern may exempt layers: a number n makes every n-th layer see everything (Gemma's
 * convention, n = 1: all do), an array says for each layer whether it has the window.
 */
function readWindows(
  metadata: Metadata,
  key: (name: string) => string,
  nLayers: number,
): (number | undefined)[] {
  const window = bounded(metadata, key("attention.sliding_window"), 0, 2 ** 31, 0);
  if (window === 0) return Array.from({ length: nLayers }, () => undefined);
  const patternKey = key("attention.sliding_window_pattern");
  if (metadata.get(patternKey)?.type !== "array") {
    const every = bounded(metadata, patternKey, 0, nLayers, 0);
    return Array.from({ length: nLayers }, (_, i) =>
      every > 0 && (i + 1) % every === 0 ? undefined : window,
    );
  }
  const isWindowed = metadata.numbers(patternKey);
  if (isWindowed.length !== nLayers) {
    throw invalid(metadata, `${patternKey} has ${isWindowed.length} entries for ${nLayers} layers`);
  }
  return Array.from<number | bigint, number | undefined>(isWindowed, (flag) => (flag ? window : undefined));
}

function readFileType(metadata: Metadata): string {
  const id = metadata.uint("general.file_type", undefined);
  if (id === undefined) return "unnamed";
  return FILE_TYPES[id] ?? `type ${id}`;
}

function readChatTemplates(metadata: Metadata): Record<string, string> {
  const prefix = "tokenizer.chat_template";
  const found: [string, string][] = [];
  for (const key of metadata.keys()) {
    if (key === prefix) found.push(["default", metadata.string(key)]);
    else if (key.startsWith(`${prefix}.`)) found.push([key.slice(prefix.length + 1), metadata.string(key)]);
  }
  return Object.fromEntries(found);
}
