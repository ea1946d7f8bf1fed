/** What the kernel worker is asked to time, and what it answers. */

import type { TensorTypeName } from "../../src/gguf/tensor-types.ts";
import type { PageFormat } from "../../src/kv/page.ts";

/** The matrices of one layer of a model. */
export interface LayerShape {
  readonly dModel: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly dFfn: number;
}

interface Job {
  /** Address of the WASM build. */
  readonly wasm: string;
}

/** All matrix products of as many layers as have `minBytes` of weights, in the groups of the forward pass. */
export interface MatmulJob extends Job {
  readonly kind: "matmul";
  readonly type: TensorTypeName;
  readonly shape: LayerShape;
  readonly nTokens: number;
  readonly minBytes: number;
}

/** Attention of the last `nQueries` of `context` tokens in every one of `nLayers` layers. */
export interface AttentionJob extends Job {
  readonly kind: "attention";
  readonly shape: LayerShape;
  readonly format: PageFormat;
  readonly nLayers: number;
  readonly context: number;
  readonly nQueries: number;
}

/** Encoding of the text at an address with the vocabulary of a GGUF file at another. */
export interface TokenizerJob extends Job {
  readonly kind: "tokenizer";
  readonly vocabulary: string;
  readonly text: string;
}

export type KernelJob = MatmulJob | AttentionJob | TokenizerJob;

/** A message to the worker. */
export interface KernelRequest {
  readonly job: KernelJob;
  readonly rounds: number;
}

/** Times of the rounds, and what one round does. */
export interface KernelTimes {
  readonly seconds: number[];
  /** Multiply-adds; 0 for tokenizers. */
  readonly macs: number;
  /** Bytes read: weights, keys and values, UTF-8 text. */
  readonly bytes: number;
}
