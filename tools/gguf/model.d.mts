/** Types of the model generator, for the TypeScript that uses model.mjs and for the JSDoc of the files beside it. */

export type TypeName =
  | "F32"
  | "F16"
  | "BF16"
  | "Q4_0"
  | "Q4_1"
  | "Q5_0"
  | "Q5_1"
  | "Q8_0"
  | "Q2_K"
  | "Q3_K"
  | "Q4_K"
  | "Q5_K"
  | "Q6_K"
  | "IQ4_NL";

/** Of the matrices of a file: one type for all, or llama.cpp's mixtures. Rows that do not fit get smaller blocks. */
export type FileType = TypeName | "Q3_K_M" | "Q4_K_M" | "Q5_K_M";

export type TokenizerKind = "smollm" | "qwen2" | "llama-bpe" | "spm";

/** The shape of a model. */
export interface ModelSpec {
  architecture: "llama" | "qwen2" | "qwen3";
  nLayers: number;
  dModel: number;
  nHeads: number;
  nKvHeads: number;
  /** Written as attention.key_length when it is not dModel / nHeads. @default dModel / nHeads */
  headDim?: number;
  dFfn: number;
  contextLength: number;
  ropeBase: number;
  rmsEps: number;
  tokenizer: TokenizerKind;
  vocabSize: number;
  /** No output.weight. @default true */
  isTied?: boolean;
  /** For the Llama models that have biases; Qwen2 always has them. */
  hasQkvBias?: boolean;
  slidingWindow?: number;
  /** Writes rope_freqs.weight by Llama 3.1's formula with this factor. */
  ropeFactor?: number;
  ropeScaling?: { type: "linear" | "yarn"; factor: number; originalContextLength?: number };
}

export type ScalarType =
  | "u8"
  | "i8"
  | "u16"
  | "i16"
  | "u32"
  | "i32"
  | "f32"
  | "bool"
  | "string"
  | "u64"
  | "i64"
  | "f64";

export type Scalar = number | bigint | boolean | string;

/** One metadata entry; the type ends in [] for arrays. */
export type KeyValue = readonly [
  key: string,
  type: ScalarType | `${ScalarType}[]`,
  value: Scalar | ArrayLike<Scalar>,
];

export interface PlannedTensor {
  name: string;
  /** Fastest axis first. */
  dims: readonly number[];
  type: TypeName;
}

export interface ModelOptions {
  /** @default "F32" */
  type?: FileType;
  /** @default 1 */
  seed?: number;
  /** general.name. */
  name?: string;
  /** @default 32 */
  alignment?: number;
  /** @default 3 */
  version?: number;
  /** Replaces keys of the same name, or adds new ones. */
  metadata?: KeyValue[];
  /** Changes the tensor table before it is written. */
  editTensors?(tensors: PlannedTensor[]): PlannedTensor[];
}

export interface TensorEntry {
  name: string;
  /** Fastest axis first. */
  dims: readonly number[];
  typeId: number;
  byteLength: number;
}

/** A written header. */
export interface Header {
  /** Padded to the alignment: tensor data follows directly. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Where each tensor's bytes must begin, counted from the end of `bytes`. */
  offsets: number[];
  /** Bytes of all tensors with the padding between them. */
  dataBytes: number;
  /**
   * Where each field stands: "version", "tensorCount", "keyCount", "key:K", "type:K", "value:K", "name:T", "nDims:T",
   * "dim0:T", "tensorType:T", "offset:T". The value of an array begins with its element type.
   */
  fields: Map<string, number>;
}

export interface PlannedFile {
  header: Header;
  tensors: PlannedTensor[];
  byteLength: number;
  /** The file from its first byte to its last; weights are made here. */
  pieces(): Generator<Uint8Array>;
}

/** Encodes `x[from .. from + blockElements)` at `out[at .. at + blockBytes)`, which must be zero before. */
export type BlockEncoder = (x: Float32Array, from: number, out: Uint8Array, at: number) => void;

export interface Quantizer {
  id: number;
  blockElements: number;
  blockBytes: number;
  encode: BlockEncoder;
}

export interface Random {
  /** 0 to 2^32 - 1. */
  uint32(): number;
  /** [0, 1). */
  uniform(): number;
  /** Normal, mean 0, deviation 1. */
  gauss(): number;
}

export interface Vocabulary {
  /** All tokenizer.* keys. */
  metadata: KeyValue[];
  /** Tokens that a generated model should not prefer: control tokens, and bytes that are not printable ASCII. */
  isQuiet(id: number): boolean;
}

export type PresetName =
  | "smollm2-135m"
  | "qwen2.5-0.5b"
  | "qwen3-0.6b"
  | "llama3.2-1b"
  | "tiny-llama"
  | "tiny-llama-untied"
  | "tiny-llama-spm"
  | "tiny-llama-bias"
  | "tiny-llama-window"
  | "tiny-llama-factors"
  | "tiny-llama-yarn"
  | "tiny-llama-linear"
  | "tiny-llama-head40"
  | "tiny-llama-head256"
  | "tiny-llama-k"
  | "tiny-qwen2"
  | "tiny-qwen2-untied"
  | "tiny-qwen3"
  | "tiny-qwen3-untied";

export const PRESETS: Readonly<Record<PresetName, ModelSpec>>;
export const FILE_TYPE_NAMES: readonly FileType[];
export const QUANTIZERS: Readonly<Record<TypeName, Quantizer>>;

/** Lays out a model file; weights are made when `pieces` is run. */
export function planGguf(model: PresetName | ModelSpec, options?: ModelOptions): PlannedFile;

/** A whole model file. The same arguments give the same bytes. */
export function makeGguf(model: PresetName | ModelSpec, options?: ModelOptions): Uint8Array<ArrayBuffer>;

/** A model split into `nShards` files, in order, with the same weights as the whole. */
export function makeGgufShards(
  model: PresetName | ModelSpec,
  nShards: number,
  options?: ModelOptions,
): Uint8Array<ArrayBuffer>[];

/** The header of a file whose tensors follow each other in the given order, each padded to the alignment. Checks nothing. */
export function writeHeader(
  metadata: readonly KeyValue[],
  tensors: readonly TensorEntry[],
  options?: { alignment?: number; version?: number },
): Header;

/** Encodes all of `x`, whose length must be a multiple of the type's block. */
export function quantize(type: TypeName, x: Float32Array): Uint8Array<ArrayBuffer>;

/** A vocabulary with exactly `size` tokens. */
export function makeVocabulary(kind: TokenizerKind, size: number): Vocabulary;

/** The same numbers for the same seed. */
export function seededRandom(seed: number): Random;
