import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesSource } from "../../src/gguf/local-sources.ts";
import { openModelFile } from "../../src/gguf/model-file.ts";
import { type ModelConfig, readModelConfig } from "../../src/model/config.ts";
import { expectedTensors, takeInventory } from "../../src/model/tensor-names.ts";
import type { KeyValue, ModelOptions, PlannedTensor, PresetName } from "../../tools/gguf/model.mjs";
import { TINY_MODELS, tinyGguf } from "../fixtures/make-tiny-gguf.ts";

async function open(model: PresetName, options: ModelOptions = {}) {
  const file = await openModelFile([bytesSource(tinyGguf(model, options), "test.gguf")]);
  await file.close();
  return file;
}

async function configOf(model: PresetName, options: ModelOptions = {}): Promise<ModelConfig> {
  const file = await open(model, options);
  return readModelConfig(file.metadata, file.tensors);
}

for (const model of TINY_MODELS) {
  test(`${model}: configured, every tensor used`, async () => {
    const file = await open(model);
    const config = readModelConfig(file.metadata, file.tensors);
    const { used, unused } = takeInventory(config, file.tensors);
    assert.equal(used.size, file.tensors.length);
    assert.deepEqual(
      [...used.keys()],
      expectedTensors(config).map((t) => t.name),
    );
    assert.deepEqual(unused, []);
    structuredClone(config);
  });
}

test("a Qwen3 model in full", async () => {
  const { chatTemplates, ...config } = await configOf("tiny-qwen3", { type: "Q4_K_M", name: "a name" });
  assert.deepEqual(config, {
    architecture: "qwen3",
    name: "a name",
    fileType: "Q4_K_M",
    nLayers: 2,
    dModel: 64,
    nHeads: 4,
    nKvHeads: 2,
    headDim: 32,
    dFfn: 160,
    vocabSize: 402,
    contextLength: 512,
    rmsEps: Math.fround(1e-6),
    attentionScale: 1 / Math.sqrt(32),
    windows: [undefined, undefined],
    rope: { nRot: 32, freqBase: 1_000_000, pairs: "halves", scaling: { type: "none" }, hasFactors: false },
    hasTiedEmbeddings: true,
    hasQkvBias: false,
    hasQkNorm: true,
  });
  assert.match(chatTemplates.default!, /<\|im_start\|>/);
});

/** What each of these keys changes, compared with tiny-llama as it is. */
const VARIANTS: {
  name: string;
  model?: PresetName;
  metadata?: KeyValue[];
  expected: Partial<ModelConfig>;
}[] = [
  { name: "untied", model: "tiny-llama-untied", expected: { hasTiedEmbeddings: false } },
  { name: "Llama with biases", model: "tiny-llama-bias", expected: { hasQkvBias: true } },
  { name: "Qwen2", model: "tiny-qwen2", expected: { hasQkvBias: true, nHeads: 8, nKvHeads: 1, headDim: 8 } },
  { name: "sliding window", model: "tiny-llama-window", expected: { windows: [40, 40] } },
  { name: "head dimension of its own", model: "tiny-llama-head256", expected: { headDim: 256, dModel: 64 } },
  {
    name: "window in every other layer",
    metadata: [
      ["llama.attention.sliding_window", "u32", 16],
      ["llama.attention.sliding_window_pattern", "u32", 2],
    ],
    expected: { windows: [16, undefined] },
  },
  {
    name: "window per layer",
    metadata: [
      ["llama.attention.sliding_window", "u32", 16],
      ["llama.attention.sliding_window_pattern", "bool[]", [false, true]],
    ],
    expected: { windows: [undefined, 16] },
  },
  {
    name: "head counts per layer",
    metadata: [
      ["llama.attention.head_count_kv", "u32[]", [2, 2]],
      ["llama.attention.head_count", "i32[]", [4, 4]],
    ],
    expected: { nKvHeads: 2, nHeads: 4 },
  },
  {
    name: "attention scale",
    metadata: [["llama.attention.scale", "f32", 0.5]],
    expected: { attentionScale: 0.5 },
  },
  {
    name: "several chat templates",
    metadata: [
      ["tokenizer.chat_template", "string", "A"],
      ["tokenizer.chat_template.tool_use", "string", "B"],
    ],
    expected: { chatTemplates: { default: "A", tool_use: "B" } },
  },
  {
    name: "unknown file type",
    metadata: [["general.file_type", "u32", 99]],
    expected: { fileType: "type 99" },
  },
  {
    name: "dimensions that are u64",
    metadata: [["llama.context_length", "u64", 4096]],
    expected: { contextLength: 4096 },
  },
];

for (const { name, model = "tiny-llama", metadata = [], expected } of VARIANTS) {
  test(`variant: ${name}`, async () => {
    const config = await configOf(model, { metadata });
    for (const [key, value] of Object.entries(expected))
      assert.deepEqual(config[key as keyof ModelConfig], value);
  });
}

const ROPE: { name: string; metadata: KeyValue[]; scaling: unknown }[] = [
  {
    name: "none",
    metadata: [
      ["llama.rope.scaling.type", "string", "none"],
      ["llama.rope.scaling.factor", "f32", 4],
    ],
    scaling: { type: "none" },
  },
  {
    name: "linear",
    metadata: [
      ["llama.rope.scaling.type", "string", "linear"],
      ["llama.rope.scaling.factor", "f32", 4],
    ],
    scaling: { type: "linear", factor: 4 },
  },
  {
    name: "linear by default",
    metadata: [["llama.rope.scaling.factor", "f32", 4]],
    scaling: { type: "linear", factor: 4 },
  },
  {
    name: "the old key",
    metadata: [["llama.rope.scale_linear", "f32", 2]],
    scaling: { type: "linear", factor: 2 },
  },
  { name: "factor 0", metadata: [["llama.rope.scale_linear", "f32", 0]], scaling: { type: "none" } },
  {
    name: "yarn",
    metadata: [
      ["llama.rope.scaling.type", "string", "yarn"],
      ["llama.rope.scaling.factor", "f32", 4],
    ],
    scaling: {
      type: "yarn",
      factor: 4,
      originalContextLength: 512,
      betaFast: 32,
      betaSlow: 1,
      extFactor: 1,
      attnFactor: 1,
    },
  },
  {
    name: "yarn in full",
    metadata: [
      ["llama.rope.scaling.type", "string", "yarn"],
      ["llama.rope.scaling.factor", "f32", 4],
      ["llama.rope.scaling.original_context_length", "u32", 128],
      ["llama.rope.scaling.attn_factor", "f32", 0.5],
      ["llama.rope.scaling.yarn_beta_fast", "f32", 16],
      ["llama.rope.scaling.yarn_beta_slow", "f32", 2],
      ["llama.rope.scaling.yarn_ext_factor", "f32", 0.25],
    ],
    scaling: {
      type: "yarn",
      factor: 4,
      originalContextLength: 128,
      betaFast: 16,
      betaSlow: 2,
      extFactor: 0.25,
      attnFactor: 0.5,
    },
  },
];

for (const { name, metadata, scaling } of ROPE) {
  test(`rope scaling: ${name}`, async () => {
    assert.deepEqual((await configOf("tiny-llama", { metadata })).rope.scaling, scaling);
  });
}

/** One key wrong each; every message names the key, the value and the bound. */
const WRONG: { key: KeyValue; message: RegExp; code?: string; model?: PresetName }[] = [
  {
    key: ["general.architecture", "string", "gemma2"],
    message: /test\.gguf: the architecture is "gemma2"; llama, qwen2, qwen3 can be run/,
    code: "unsupported-model",
  },
  {
    key: ["llama.expert_count", "u32", 8],
    message: /mixture of 8 experts \(llama\.expert_count\)/,
    code: "unsupported-model",
  },
  {
    key: ["llama.attention.causal", "bool", false],
    message: /attention is not causal/,
    code: "unsupported-model",
  },
  { key: ["llama.block_count", "u32", 0], message: /llama\.block_count is 0; it must be from 1 to 1024/ },
  { key: ["llama.block_count", "u32", 2 ** 31], message: /llama\.block_count is 2147483648/ },
  {
    key: ["llama.block_count", "string", "2"],
    message: /llama\.block_count is string "2"; it must be a whole number/,
  },
  {
    key: ["llama.embedding_length", "u32", 1 << 20],
    message: /llama\.embedding_length is 1048576; it must be from 1 to 65536/,
  },
  {
    key: ["llama.embedding_length", "u32", 66],
    message: /llama\.embedding_length 66 is not a multiple of 4 heads/,
  },
  { key: ["llama.attention.head_count", "u32", 0], message: /head_count is 0/ },
  {
    key: ["llama.attention.head_count_kv", "u32", 3],
    message: /4 query heads cannot be shared evenly by 3 KV heads/,
  },
  {
    key: ["llama.attention.head_count_kv", "u32[]", [2, 4]],
    message: /head_count_kv is 2 in layer 0 and 4 in layer 1/,
    code: "unsupported-model",
  },
  {
    key: ["llama.attention.head_count_kv", "u32[]", [2]],
    message: /head_count_kv lists \[2\] \(1 values\).*each of 2 layers/,
  },
  { key: ["llama.attention.key_length", "u32", 15], message: /the head dimension is 15; it must be even/ },
  {
    key: ["llama.attention.key_length", "u32", 2000],
    message: /key_length is 2000; it must be from 2 to 1024/,
  },
  {
    key: ["llama.attention.value_length", "u32", 32],
    message: /keys have 16 dimensions and values 32/,
    code: "unsupported-model",
  },
  { key: ["llama.feed_forward_length", "u32", 0], message: /feed_forward_length is 0/ },
  { key: ["llama.context_length", "u32", 0], message: /context_length is 0/ },
  {
    key: ["llama.attention.layer_norm_rms_epsilon", "f32", 0],
    message: /rms_epsilon is 0; it must be above 0 and at most 0\.1/,
  },
  {
    key: ["llama.attention.layer_norm_rms_epsilon", "f32", Number.NaN],
    message: /rms_epsilon is f32 NaN; it must be a finite number/,
  },
  {
    key: ["llama.rope.dimension_count", "u32", 18],
    message: /rope\.dimension_count is 18; it must be from 2 to 16/,
  },
  { key: ["llama.rope.dimension_count", "u32", 7], message: /rope\.dimension_count is 7; it must be even/ },
  { key: ["llama.rope.freq_base", "f32", 1], message: /rope\.freq_base is 1; it must be above 1/ },
  {
    key: ["llama.rope.scaling.type", "string", "longrope"],
    message: /is "longrope"; none, linear and yarn/,
    code: "unsupported-model",
  },
  { key: ["llama.rope.scaling.factor", "f32", -1], message: /rope\.scaling\.factor is -1/ },
  { key: ["llama.attention.scale", "f32", -1], message: /attention\.scale is -1/ },
  {
    key: ["tokenizer.ggml.tokens", "string[]", ["a", "b"]],
    message: /the vocabulary has 2 tokens, but token_embd\.weight has 331 rows/,
  },
];

for (const { key, message, code = "invalid-model", model = "tiny-llama" } of WRONG) {
  test(`wrong: ${key[0]} = ${String(key[2]).slice(0, 20)}`, async () => {
    await assert.rejects(configOf(model, { metadata: [key] }), { name: "InlayError", code, message });
  });
}

test("a vocabulary-only file says so", async () => {
  await assert.rejects(configOf("tiny-llama", { editTensors: () => [] }), {
    code: "invalid-model",
    message: /the tensor token_embd\.weight is missing; it may be a vocabulary-only file/,
  });
});

/** Changes to the tensor table. */
const TABLES: {
  name: string;
  model?: PresetName;
  edit: (t: PlannedTensor[]) => PlannedTensor[];
  message: RegExp;
  code?: string;
}[] = [
  {
    name: "a missing matrix",
    edit: (t) => t.filter((x) => x.name !== "blk.1.ffn_up.weight"),
    message: /the tensor blk\.1\.ffn_up\.weight is missing; it must have the shape \[64,160\]/,
  },
  {
    name: "a missing bias",
    model: "tiny-qwen2",
    edit: (t) => t.filter((x) => x.name !== "blk.0.attn_q.bias"),
    message: /blk\.0\.attn_q\.bias is missing; it must have the shape \[64\]/,
  },
  {
    name: "a wrong shape",
    edit: (t) => t.map((x) => (x.name === "blk.0.attn_k.weight" ? { ...x, dims: [64, 64] } : x)),
    message: /blk\.0\.attn_k\.weight has the shape \[64,64\]; it must be \[64,32\]/,
  },
  {
    name: "a wrong vector",
    edit: (t) => t.map((x) => (x.name === "output_norm.weight" ? { ...x, dims: [32] } : x)),
    message: /output_norm\.weight has the shape \[32\]; it must be \[64\]/,
  },
  {
    name: "a quantized norm",
    edit: (t) => t.map((x) => (x.name === "output_norm.weight" ? { ...x, type: "Q8_0" } : x)),
    message: /output_norm\.weight is a vector of type Q8_0; vectors can be F32, F16, BF16/,
    code: "unsupported-model",
  },
  {
    name: "a bias that is not computed",
    edit: (t) => [...t, { name: "blk.0.ffn_up.bias", dims: [160], type: "F32" }],
    message: /has the tensor blk\.0\.ffn_up\.bias, which the llama forward pass does not compute/,
    code: "unsupported-model",
  },
  {
    name: "q/k norms in a Llama",
    edit: (t) => [...t, { name: "blk.0.attn_q_norm.weight", dims: [16], type: "F32" }],
    message: /has the tensor blk\.0\.attn_q_norm\.weight/,
    code: "unsupported-model",
  },
];

for (const { name, model = "tiny-llama", edit, message, code = "invalid-model" } of TABLES) {
  test(`tensors: ${name}`, async () => {
    const file = await open(model, { editTensors: edit });
    const config = readModelConfig(file.metadata, file.tensors);
    assert.throws(() => takeInventory(config, file.tensors), { name: "InlayError", code, message });
  });
}

test("tensors: trailing ones in a vector's shape are accepted, harmless extras reported", async () => {
  const file = await open("tiny-llama", {
    editTensors: (t) => [
      ...t.map((x) => (x.name === "output_norm.weight" ? { ...x, dims: [64, 1] } : x)),
      { name: "blk.0.attn_rot_embd", dims: [8], type: "F32" },
      { name: "blk.2.nextn.eh_proj.weight", dims: [64, 64], type: "F32" },
    ],
  });
  const config = readModelConfig(file.metadata, file.tensors);
  assert.deepEqual(takeInventory(config, file.tensors).unused, [
    "blk.0.attn_rot_embd",
    "blk.2.nextn.eh_proj.weight",
  ]);
});
