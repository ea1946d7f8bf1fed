/** What lives beside the cache of a pinned prompt that was clustered: its index, and the policy that reads it. */

import type { AttentionOps, DeviceClusters } from "../backend/backend.ts";
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

/** Shared by a pinned prompt's cache and all forks of it. What looks clusters up is made where it is first used. */
export class SharedIndex {
  #users = 0;
  #scorer: ClusterScorer | undefined;
  #onDevice: Promise<DeviceClusters> | undefined;

  constructor(
    /** Tokens of the prompt. */
    readonly nTokens: number,
    readonly policy: SqueezedPolicy,
    private readonly createScorer: () => ClusterScorer,
  ) {}

  /** For queries on the host. Throws `out-of-memory`. */
  get scorer(): ClusterScorer {
    this.#scorer ??= this.createScorer();
    return this.#scorer;
  }

  /** The clusters on the device of `attention`, whose pages the caches use. Rejects with `out-of-memory`; to be tried again then. */
  async onDevice(attention: AttentionOps): Promise<DeviceClusters | undefined> {
    this.#onDevice ??= attention.openClusters?.(this.policy);
    try {
      return await this.#onDevice;
    } catch (error) {
      this.#onDevice = undefined;
      throw error;
    }
  }

  retain(): void {
    this.#users++;
  }

  /** The last user's call frees what was made. */
  release(): void {
    if (--this.#users > 0) return;
    this.#scorer?.dispose();
    this.#scorer = undefined;
    const onDevice = this.#onDevice;
    this.#onDevice = undefined;
    // Where it could not be made there is nothing to free; whoever asked for it has the error.
    void onDevice?.then((clusters) => clusters[Symbol.dispose]()).catch(() => {});
  }
}

/**
 * The first tokens of the cache lie in the order of their clusters: all of them stay or none does.
 */
export class SqueezedPrefix implements CacheCompanion {
  #index: SharedIndex | undefined;

  /** undefined: of a prompt that was truncated away. */
  constructor(index: SharedIndex | undefined) {
    this.#index = index;
    index?.retain();
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

  /** The clusters on the device of `attention`; undefined where queries are on the host, or the prompt was truncated away. */
  async onDevice(attention: AttentionOps): Promise<DeviceClusters | undefined> {
    return this.#index?.onDevice(attention);
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
    index?.release();
  }
}
