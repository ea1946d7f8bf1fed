/**
 * Squeezed Attention (Hooper et al. 2024, arXiv:2411.09688; algorithms.md B): queries after a pinned prompt read those
 * clusters of its keys whose estimated probability per key is above a threshold, the best of each head in any case
 * (best-clusters.ts), and all of its sinks, of its observation window, and of what follows it.
 *
 * One threshold serves all layers and heads: where attention is peaked few keys are read, where it is flat many. It was
 * calibrated so that a given share of the keys is left out; see calibration.ts.
 */

import { WINDOW_TOKENS } from "../kv/quantize.ts";
import { BestClusters } from "./best-clusters.ts";
import { type ClusterIndex, entryCounts, SINK_ENTRIES } from "./cluster-index.ts";
import { DensePolicy } from "./dense.ts";
import { PageRows } from "./page-rows.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  type ClusterScores,
  type LayerView,
  lastQuery,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "./policy.ts";

/** Least estimated probability of a key that is read. `query`: for one query; `block`: for the mean of a block of them. */
export interface Thresholds {
  readonly query: number;
  readonly block: number;
}

/** The threshold for blocks of so many queries. */
export function thresholdOf({ query, block }: Thresholds, blockQueries: number): number {
  return blockQueries === 1 ? query : block;
}

/** How a pinned prompt is read. */
export interface SqueezedOptions {
  readonly thresholds: Thresholds;
  /** Of coarse clusters, whose clusters are looked up only where they are above it; undefined: all are. */
  readonly coarse?: Thresholds | undefined;
  /**
   * A block of a KV head whose estimated probability that is left out is above this reads everything. 1 = never.
   * 0 < maxMissing <= 1.
   */
  readonly maxMissing: number;
  /** Share of the clustered keys that a KV head reads for a block at least: its best clusters. 0 <= leastRead < 1. */
  readonly leastRead: number;
}

/** See SqueezedOptions.leastRead: half of what is read on average. More would take too much from heads whose attention is flat. */
export function leastRead(sparsity: number): number {
  return (1 - sparsity) / 2;
}

/** Queries of a block when several are read at once: the mean over more would hide what one of them is looking for. */
export const SQUEEZED_BLOCK = 8;

/** What every selection keeps to, for the invariants. */
export const SQUEEZED_BUDGET: Budget = {
  tokens: 0,
  sinks: SINK_ENTRIES,
  local: WINDOW_TOKENS,
  denseBelow: 0,
};

/** Keys that a head reads at least, of a prompt whose sinks and clusters end at `clusteredEnd`. */
export function leastKeys(leastRead: number, clusteredEnd: number): number {
  return Math.round(leastRead * (clusteredEnd - SINK_ENTRIES));
}

export class SqueezedPolicy implements SelectionPolicy {
  readonly name = "squeezed";
  readonly phases = ["prefill", "decode"] as const;
  readonly lookahead = false;
  readonly #dense: DensePolicy;
  readonly #best = new BestClusters();
  /** (layer, KV head): keys of each entry. */
  readonly #counts: readonly (readonly Float32Array[] | undefined)[];

  constructor(
    private readonly shape: AttentionShape,
    readonly index: ClusterIndex,
    readonly options: SqueezedOptions,
  ) {
    this.#dense = new DensePolicy(shape);
    this.#counts = index.layers.map((layer) => layer?.map(entryCounts));
  }

  select(layer: number, blocks: QueryBlocks, budget: Budget, { clusters }: LayerView = {}): Selection[] {
    const heads = this.index.layers[layer];
    const counts = this.#counts[layer];
    if (!heads || !counts || !clusters) return this.#dense.select(layer, blocks, budget);
    const { clusteredEnd } = this.index;
    const rows = new PageRows(blocks.qStart + blocks.qLen);
    const nBlocks = blockCount(blocks);
    let missing = 0;
    for (const [h, { ends }] of heads.entries())
      for (let b = 0; b < nBlocks; b++) {
        const end = lastQuery(blocks, b) + 1;
        rows.add(0, SINK_ENTRIES);
        const kept = this.#addClusters(rows, clusters, h, b, ends, counts[h]!);
        const isDense = 1 - kept > this.options.maxMissing;
        rows.add(isDense ? 0 : clusteredEnd, end);
        missing += isDense ? 0 : Math.max(0, 1 - kept);
        rows.close(end);
      }
    const selection = rows.finish(layer, this.shape, blocks, false);
    return [{ ...selection, missing: missing / (heads.length * nBlocks) }];
  }

  /** Adds the clusters above the threshold and the head's best, neighbouring ones as one run; returns the estimated probability of all that is kept. */
  #addClusters(
    rows: PageRows,
    { sigma, stride, starts, blockQueries }: ClusterScores,
    h: number,
    b: number,
    ends: Uint32Array,
    counts: Float32Array,
  ): number {
    const { thresholds, leastRead } = this.options;
    const threshold = thresholdOf(thresholds, blockQueries);
    const at = b * stride + starts[h]!;
    const n = ends.length;
    const floor = leastKeys(leastRead, this.index.clusteredEnd);
    const least = this.#best.least(sigma, at, counts, [SINK_ENTRIES, n], floor);
    const isRead = (e: number) => sigma[at + e]! > threshold || sigma[at + e]! >= least;
    let kept = 0;
    for (let e = 0; e < SINK_ENTRIES; e++) kept += sigma[at + e]!;
    for (let e = SINK_ENTRIES; e < n; e++) {
      if (!isRead(e)) continue;
      const from = ends[e - 1]!;
      for (; e < n && isRead(e); e++) kept += counts[e]! * sigma[at + e]!;
      rows.add(from, ends[e - 1]!);
    }
    return kept;
  }
}
