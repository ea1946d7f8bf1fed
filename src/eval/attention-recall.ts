/**
 * How much of the attention that a model wants to pay its selections let it pay (algorithms.md F.6-4): softmax
 * probabilities of sampled queries over all keys before them, in f64, summed over the keys that were listed.
 */

import type { LayerObservation } from "../attention/observer.ts";
import { blockCount, type QueryBlocks, type Selection } from "../attention/policy.ts";
import { PAGE_TOKENS, pageCount } from "../kv/page.ts";
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

/** The best that a layer's block of queries could have kept with as many whole pages as its heads read together. */
export interface AttainableAttention {
  readonly layer: number;
  /** Position of the block's first query. */
  readonly position: number;
  /** Mean over queries and heads, 0 to 1. */
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
    /** Is told of every block with a query at `from` or later. Takes the attention of all the block's queries. */
    private readonly attainable?: {
      readonly from: number;
      report(attainable: AttainableAttention): void;
    },
  ) {
    this.#keys = Array.from({ length: shape.nLayers }, () => new Float32Array(0));
  }

  /** An `AttentionObserver`. */
  readonly observe = ({ layer, q, k, blocks, selections }: LayerObservation): void => {
    const { nHeads } = this.shape;
    const keys = this.#append(layer, k, blocks.qStart);
    const nTokens = blocks.qStart + blocks.qLen;
    const listed = new Uint32Array(pageCount(nTokens));
    for (let b = 0; b < blockCount(blocks); b++) {
      const first = b * blocks.blockSize;
      const end = Math.min(first + blocks.blockSize, blocks.qLen);
      const masses = this.#massesOf(blocks.qStart + end - 1, nTokens);
      for (let token = first; token < end; token++) {
        const position = blocks.qStart + token;
        if (!masses && !this.isSampled(position)) continue;
        for (let head = 0; head < nHeads; head++) {
          const weights = this.#weights(q, token, keys, layer, head, position);
          masses?.add(weights, head);
          if (!this.isSampled(position)) continue;
          this.#listMasks(listed.fill(0), selections, blocks, token, head);
          let kept = 0;
          for (const [key, weight] of weights.entries())
            if ((listed[Math.floor(key / PAGE_TOKENS)]! >>> (key % PAGE_TOKENS)) & 1) kept += weight;
          this.report({ layer, head, position, kept });
        }
      }
      if (masses) {
        const kept = masses.best(this.#pagesRead(selections, b)) / ((end - first) * nHeads);
        this.attainable!.report({ layer, position: blocks.qStart + first, kept });
      }
    }
  };

  /** Where a block's attention is to be summed, if what is attainable is asked for. `last`: its last query's position. */
  #massesOf(last: number, nTokens: number): PageMasses | undefined {
    if (!this.attainable || last < this.attainable.from) return undefined;
    return new PageMasses(this.shape, pageCount(nTokens));
  }

  /** Pages that a block's KV heads read, all together. */
  #pagesRead(selections: readonly Selection[], b: number): number {
    const { nKvHeads } = this.shape;
    let pages = 0;
    for (const { headShared, nBlocks, rowPtr } of selections)
      for (let h = 0; h < nKvHeads; h++) {
        const row = (headShared ? 0 : h) * nBlocks + b;
        pages += rowPtr[row + 1]! - rowPtr[row]!;
      }
    return pages;
  }

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

  /** Softmax of a query's scores on keys [0, position], 0 before the window. */
  #weights(
    q: Float32Array,
    token: number,
    keys: Float32Array,
    layer: number,
    head: number,
    position: number,
  ): Float64Array {
    const { nHeads, nKvHeads, headDim, attentionScale, windows } = this.shape;
    const window = windows[layer];
    const oldest = window === undefined ? 0 : Math.max(0, position - window + 1);
    const qAt = (token * nHeads + head) * headDim;
    const offset = Math.floor((head * nKvHeads) / nHeads) * headDim;
    const weights = new Float64Array(position + 1);
    let top = -Infinity;
    for (let key = oldest; key <= position; key++) {
      const at = key * nKvHeads * headDim + offset;
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += q[qAt + d]! * keys[at + d]!;
      weights[key] = dot * attentionScale;
      top = Math.max(top, weights[key]!);
    }
    let total = 0;
    for (let key = oldest; key <= position; key++) total += weights[key] = Math.exp(weights[key]! - top);
    for (let key = oldest; key <= position; key++) weights[key]! /= total;
    return weights;
  }
}

/** A block's attention by KV head and page. */
class PageMasses {
  readonly #masses: Float64Array;

  constructor(
    private readonly shape: Pick<RecallShape, "nHeads" | "nKvHeads">,
    private readonly nPages: number,
  ) {
    this.#masses = new Float64Array(shape.nKvHeads * nPages);
  }

  /** Adds one query's attention on each key. */
  add(weights: Float64Array, head: number): void {
    const { nHeads, nKvHeads } = this.shape;
    const at = Math.floor((head * nKvHeads) / nHeads) * this.nPages;
    for (const [key, weight] of weights.entries())
      this.#masses[at + Math.floor(key / PAGE_TOKENS)]! += weight;
  }

  /** The sum of the `n` largest. */
  best(n: number): number {
    const sorted = this.#masses.sort();
    return sorted.subarray(Math.max(0, sorted.length - n)).reduce((a, b) => a + b, 0);
  }
}
