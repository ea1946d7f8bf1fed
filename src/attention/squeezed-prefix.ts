/** What lives beside the cache of a pinned prompt that was clustered: its index, and the policy that reads it. */

import type { CacheCompanion } from "../kv/paged-cache.ts";
import type { AttentionShape, ClusterScores, QueryBlocks } from "./policy.ts";
import { type SqueezedPolicy, thresholdOf } from "./squeezed.ts";

/** Queries of one layer and call. */
export interface ScoreQueries {
  /** (qLen, nHeads, headDim), after RoPE. */
  readonly q: Float32Array;
  readonly shape: Pick<AttentionShape, "nHeads" | "nKvHeads" | "headDim">;
  readonly blocks: QueryBlocks;
  readonly scale: number;
  readonly softcap?: number | undefined;
}

/** Estimates the probabilities of an index's entries. undefined: the layer is not clustered. */
export interface ClusterScorer {
  fine(layer: number, queries: ScoreQueries): ClusterScores | undefined;
  coarse(layer: number, queries: ScoreQueries): ClusterScores | undefined;
  /** Of clusters whose coarse cluster has more than `threshold`; the others do not count. */
  twoLevel(layer: number, queries: ScoreQueries, threshold: number): ClusterScores | undefined;
  dispose(): void;
}

/** Shared by a pinned prompt's cache and all forks of it. */
export interface SharedIndex {
  /** Tokens of the prompt. */
  readonly nTokens: number;
  readonly policy: SqueezedPolicy;
  /** Disposed by its last user. */
  readonly scorer: ClusterScorer;
  /** Caches that have it. */
  users: number;
}

/**
 * The first tokens of the cache lie in the order of their clusters: all of them stay or none does.
 */
export class SqueezedPrefix implements CacheCompanion {
  #index: SharedIndex | undefined;

  /** undefined: of a prompt that was truncated away. */
  constructor(index: SharedIndex | undefined) {
    this.#index = index;
    if (index) index.users++;
  }

  /** How queries after the prompt are to be selected for; undefined once it was truncated away. */
  get policy(): SqueezedPolicy | undefined {
    return this.#index?.policy;
  }

  /** Estimated probabilities of a layer's clusters. */
  score(layer: number, queries: ScoreQueries): ClusterScores | undefined {
    if (!this.#index) return undefined;
    const { scorer, policy } = this.#index;
    const { coarse } = policy.options;
    if (!coarse) return scorer.fine(layer, queries);
    return scorer.twoLevel(layer, queries, thresholdOf(coarse, queries.blocks.blockSize));
  }

  commit(): void {}

  restorable(nTokens: number): number {
    return this.#index && nTokens < this.#index.nTokens ? 0 : nTokens;
  }

  truncate(nTokens: number): void {
    if (this.#index && nTokens < this.#index.nTokens) this.dispose();
  }

  fork(): SqueezedPrefix {
    return new SqueezedPrefix(this.#index);
  }

  dispose(): void {
    const index = this.#index;
    this.#index = undefined;
    if (index && --index.users === 0) index.scorer.dispose();
  }
}
