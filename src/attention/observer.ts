/** Looking at attention from outside: for the quality report and the attention map, not for answering. */

import type { QueryBlocks, Selection } from "./policy.ts";

/** One layer of one forward call, after its selection was made. Numbers on the host, f32; valid during the call only. */
export interface LayerObservation {
  readonly layer: number;
  /** (qLen, nHeads, headDim), after RoPE. */
  readonly q: Float32Array;
  /** (qLen, nKvHeads, headDim), after RoPE: the keys of the call's own tokens. */
  readonly k: Float32Array;
  readonly blocks: QueryBlocks;
  /** What each block reads. */
  readonly selections: readonly Selection[];
}

/** Is shown every layer of every forward call, in order. */
export type AttentionObserver = (seen: LayerObservation) => void;
