/**
 * How much of the attention that a model wants to pay its selections let it pay (algorithms.md F.6-4): softmax
 * probabilities of sampled queries over all keys before them, in f64, summed over the keys that were listed.
 */

import type { LayerObservation } from "../attention/observer.ts";
import type { QueryBlocks, Selection } from "../attention/policy.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import type { ModelConfig } from "../model/config.ts";

export type RecallShape = Pick<
  ModelConfig,
  "nLayers" | "nHeads" | "nKvHeads" | "headDim" | "attentionScale" | "windows"
>;

/** What one query of one head kept. */
export interface KeptAttention {
  readonly layer: number;
  readonly head: number;
  readonly position: number;
  /** Share of the query's attention on keys that were read, 0 to 1. */
  readonly kept: number;
}

/** Watches the forward calls of one sequence from its first token on; `report` is told of every sampled query. */
export class AttentionRecall {
  /** (nTokens so far, nKvHeads * headDim) of each layer, in an array that may be longer. */
  readonly #keys: Float32Array[];

  constructor(
    private readonly shape: RecallShape,
    /** Whether the query at a position is measured. */
    private readonly isSampled: (position: number) => boolean,
    private readonly report: (kept: KeptAttention) => void,
  ) {
    this.#keys = Array.from({ length: shape.nLayers }, () => new Float32Array(0));
  }

  /** An `AttentionObserver`. */
  readonly observe = ({ layer, q, k, blocks, selections }: LayerObservation): void => {
    const { nHeads } = this.shape;
    const keys = this.#append(layer, k, blocks.qStart);
    const nTokens = blocks.qStart + blocks.qLen;
    const listed = new Uint32Array(Math.ceil(nTokens / PAGE_TOKENS));
    for (let token = 0; token < blocks.qLen; token++) {
      const position = blocks.qStart + token;
      if (!this.isSampled(position)) continue;
      for (let head = 0; head < nHeads; head++) {
        this.#listMasks(listed.fill(0), selections, blocks, token, head);
        const kept = this.#kept(
          q,
          (token * nHeads + head) * this.shape.headDim,
          keys,
          layer,
          head,
          position,
          listed,
        );
        this.report({ layer, head, position, kept });
      }
    }
  };

  #append(layer: number, k: Float32Array, qStart: number): Float32Array {
    const { nKvHeads, headDim } = this.shape;
    const at = qStart * nKvHeads * headDim;
    let keys = this.#keys[layer]!;
    if (at + k.length > keys.length) {
      const grown = new Float32Array(Math.max(at + k.length, 2 * keys.length));
      grown.set(keys.subarray(0, at));
      keys = grown;
      this.#keys[layer] = keys;
    }
    keys.set(k, at);
    return keys;
  }

  /** The tokens that a query's block reads, one mask a page. */
  #listMasks(
    masks: Uint32Array,
    selections: readonly Selection[],
    { blockSize }: QueryBlocks,
    token: number,
    head: number,
  ): void {
    const { nHeads, nKvHeads } = this.shape;
    for (const { headShared, nBlocks, rowPtr, page, mask } of selections) {
      const kvHead = headShared ? 0 : Math.floor((head * nKvHeads) / nHeads);
      const row = kvHead * nBlocks + Math.floor(token / blockSize);
      for (let i = rowPtr[row]!; i < rowPtr[row + 1]!; i++) masks[page[i]!]! |= mask ? mask[i]! : 0xffffffff;
    }
  }

  #kept(
    q: Float32Array,
    qAt: number,
    keys: Float32Array,
    layer: number,
    head: number,
    position: number,
    listed: Uint32Array,
  ): number {
    const { nHeads, nKvHeads, headDim, attentionScale, windows } = this.shape;
    const window = windows[layer];
    const oldest = window === undefined ? 0 : Math.max(0, position - window + 1);
    const offset = Math.floor((head * nKvHeads) / nHeads) * headDim;
    const scores = new Float64Array(position + 1 - oldest);
    let top = -Infinity;
    for (let key = oldest; key <= position; key++) {
      const at = key * nKvHeads * headDim + offset;
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += q[qAt + d]! * keys[at + d]!;
      const score = dot * attentionScale;
      scores[key - oldest] = score;
      if (score > top) top = score;
    }
    let kept = 0;
    let total = 0;
    for (let key = oldest; key <= position; key++) {
      const weight = Math.exp(scores[key - oldest]! - top);
      total += weight;
      if ((listed[Math.floor(key / PAGE_TOKENS)]! >>> (key % PAGE_TOKENS)) & 1) kept += weight;
    }
    return kept / total;
  }
}
