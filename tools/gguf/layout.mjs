// @ts-check
/** Which metadata and tensors a model of a given shape and file type has, in file order. */

import { QUANTIZERS } from "./quantize.mjs";
import { makeVocabulary } from "./vocabulary.mjs";

/** @typedef {import("./model.mjs").ModelSpec} ModelSpec */
/** @typedef {import("./model.mjs").TypeName} TypeName */
/** @typedef {import("./model.mjs").KeyValue} KeyValue */
/** @typedef {import("./model.mjs").FileType} FileType */
/** @typedef {import("./model.mjs").PlannedTensor} PlannedTensor */

/**
 * @typedef {object} ModelLayout
 * @property {KeyValue[]} metadata
 * @property {PlannedTensor[]} tensors
 * @property {(id: number) => boolean} isQuiet
 */

/** llama.cpp's general.file_type. Q2_K to Q6_K without a letter are pure here: every matrix has that type. */
const FILE_TYPES = /** @type {const} */ ({
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 7,
  Q5_0: 8,
  Q5_1: 9,
  Q2_K: 10,
  Q3_K: 11,
  Q3_K_M: 12,
  Q4_K: 14,
  Q4_K_M: 15,
  Q5_K: 16,
  Q5_K_M: 17,
  Q6_K: 18,
  IQ4_NL: 25,
  BF16: 32,
});

/** @type {readonly FileType[]} */
export const FILE_TYPE_NAMES = /** @type {FileType[]} */ (Object.keys(FILE_TYPES));

/** Types of the larger share of the matrices, and of those that suffer most from few bits. */
const MIXTURES = /** @type {const} */ ({
  Q3_K_M: ["Q3_K", "Q5_K"],
  Q4_K_M: ["Q4_K", "Q6_K"],
  Q5_K_M: ["Q5_K", "Q6_K"],
});

/** What a matrix becomes whose rows are no multiple of 256, as llama.cpp's converter does. */
const SMALLER_BLOCKS = /** @type {Partial<Record<TypeName, TypeName>>} */ ({
  Q2_K: "IQ4_NL",
  Q3_K: "IQ4_NL",
  Q4_K: "Q5_0",
  Q5_K: "Q5_1",
  Q6_K: "Q8_0",
});

/**
 * @param {ModelSpec} spec
 * @param {FileType} fileType
 * @param {string} name
 * @returns {ModelLayout}
 */
export function layoutModel(spec, fileType, name) {
  const vocabulary = makeVocabulary(spec.tokenizer, spec.vocabSize);
  return {
    metadata: [...modelMetadata(spec, fileType, name), ...vocabulary.metadata],
    tensors: planTensors(spec, fileType),
    isQuiet: vocabulary.isQuiet,
  };
}

/**
 * @param {ModelSpec} spec
 * @param {FileType} fileType
 * @param {string} name
 * @returns {KeyValue[]}
 */
function modelMetadata(spec, fileType, name) {
  const a = spec.architecture;
  const evenHeadDim = spec.dModel / spec.nHeads;
  const headDim = spec.headDim ?? evenHeadDim;
  /** @type {KeyValue[]} */
  const metadata = [
    ["general.architecture", "string", a],
    ["general.name", "string", name],
    ["general.file_type", "u32", FILE_TYPES[fileType]],
    ["general.quantization_version", "u32", 2],
    [`${a}.vocab_size`, "u32", spec.vocabSize],
    [`${a}.context_length`, "u32", spec.contextLength],
    [`${a}.embedding_length`, "u32", spec.dModel],
    [`${a}.block_count`, "u32", spec.nLayers],
    [`${a}.feed_forward_length`, "u32", spec.dFfn],
    [`${a}.attention.head_count`, "u32", spec.nHeads],
    [`${a}.attention.head_count_kv`, "u32", spec.nKvHeads],
    [`${a}.attention.layer_norm_rms_epsilon`, "f32", spec.rmsEps],
    [`${a}.rope.dimension_count`, "u32", headDim],
    [`${a}.rope.freq_base`, "f32", spec.ropeBase],
  ];
  if (headDim !== evenHeadDim) {
    metadata.push(
      [`${a}.attention.key_length`, "u32", headDim],
      [`${a}.attention.value_length`, "u32", headDim],
    );
  }
  if (spec.slidingWindow) metadata.push([`${a}.attention.sliding_window`, "u32", spec.slidingWindow]);
  if (spec.ropeScaling) {
    const { type, factor, originalContextLength } = spec.ropeScaling;
    metadata.push([`${a}.rope.scaling.type`, "string", type], [`${a}.rope.scaling.factor`, "f32", factor]);
    if (originalContextLength) {
      metadata.push([`${a}.rope.scaling.original_context_length`, "u32", originalContextLength]);
    }
  }
  return metadata;
}

/**
 * @param {ModelSpec} spec
 * @param {FileType} fileType
 * @returns {PlannedTensor[]}
 */
function planTensors(spec, fileType) {
  const { dModel, dFfn, nLayers } = spec;
  const headDim = spec.headDim ?? dModel / spec.nHeads;
  const dQuery = spec.nHeads * headDim;
  const dKv = spec.nKvHeads * headDim;
  const [main, fine] =
    fileType in MIXTURES ? MIXTURES[/** @type {keyof typeof MIXTURES} */ (fileType)] : [fileType, fileType];
  /** @type {PlannedTensor[]} */
  const tensors = [];
  const vector = (/** @type {string} */ name, /** @type {number} */ size) =>
    tensors.push({ name, dims: [size], type: "F32" });
  const matrix = (
    /** @type {string} */ name,
    /** @type {number} */ cols,
    /** @type {number} */ rows,
    isFine = false,
  ) =>
    tensors.push({
      name,
      dims: [cols, rows],
      type: typeForRow(/** @type {TypeName} */ (isFine ? fine : main), cols),
    });

  const isTied = spec.isTied ?? true;
  matrix("token_embd.weight", dModel, spec.vocabSize, isTied);
  if (spec.ropeFactor) vector("rope_freqs.weight", headDim / 2);
  vector("output_norm.weight", dModel);
  if (!isTied) matrix("output.weight", dModel, spec.vocabSize, true);
  for (let layer = 0; layer < nLayers; layer++) {
    const blk = (/** @type {string} */ name) => `blk.${layer}.${name}`;
    const isFine = layer < nLayers / 8 || layer >= (7 * nLayers) / 8 || layer % 3 === 2;
    vector(blk("attn_norm.weight"), dModel);
    matrix(blk("attn_q.weight"), dModel, dQuery);
    matrix(blk("attn_k.weight"), dModel, dKv);
    matrix(blk("attn_v.weight"), dModel, dKv, isFine);
    if (spec.hasQkvBias || spec.architecture === "qwen2") {
      vector(blk("attn_q.bias"), dQuery);
      vector(blk("attn_k.bias"), dKv);
      vector(blk("attn_v.bias"), dKv);
    }
    if (spec.architecture === "qwen3") {
      vector(blk("attn_q_norm.weight"), headDim);
      vector(blk("attn_k_norm.weight"), headDim);
    }
    matrix(blk("attn_output.weight"), dQuery, dModel);
    vector(blk("ffn_norm.weight"), dModel);
    matrix(blk("ffn_gate.weight"), dModel, dFfn);
    matrix(blk("ffn_up.weight"), dModel, dFfn);
    matrix(blk("ffn_down.weight"), dFfn, dModel, isFine);
  }
  return tensors;
}

/**
 * The type that rows of `cols` numbers can have: blocks must fit, and f16 always does.
 * @param {TypeName} wanted
 * @param {number} cols
 * @returns {TypeName}
 */
function typeForRow(wanted, cols) {
  if (cols % QUANTIZERS[wanted].blockElements === 0) return wanted;
  const smaller = SMALLER_BLOCKS[wanted];
  return smaller ? typeForRow(smaller, cols) : "F16";
}

/** @param {PlannedTensor} tensor */
export function tensorBytes({ dims, type }) {
  const { blockElements, blockBytes } = QUANTIZERS[type];
  return (dims.reduce((product, dim) => product * dim, 1) / blockElements) * blockBytes;
}
