/**
 * The clusters of a pinned prompt's keys, per layer and KV head (Squeezed Attention, Hooper et al. 2024, arXiv:2411.09688).
 *
 * The prompt's slots are `[sink page | keys sorted by cluster | observation window]`; see algorithms.md B.7. What is looked up
 * are entries: each sink key by itself, then the clusters in the order of their slots. So entries are contiguous runs of
 * slots that cover everything before the window, and a probability estimated over them counts the sinks, which take a large
 * part of it in most heads.
 */

/** The entries of one KV head. */
export interface HeadClusters {
  /** (nEntries): entry e is slots [ends[e - 1], ends[e]). The first SINK_ENTRIES are single keys. */
  readonly ends: Uint32Array;
  /** (nEntries, headDim): means of the entries' keys. */
  readonly centroids: Float32Array;
  /** (nEntries): variance of the entries' keys, mean over channels; 0 of single keys. */
  readonly spreads: Float32Array;
  /** (nCoarse): coarse cluster i is clusters [coarseEnds[i - 1], coarseEnds[i]), counted from the first after the sinks. */
  readonly coarseEnds: Uint32Array;
}

/** The KV heads of one layer. */
export type LayerClusters = readonly HeadClusters[];

/** The sink page's keys. */
export const SINK_ENTRIES = 32;

/** Where keys that take part in selection end, and thresholds; the same for all layers. */
export interface ClusterIndex {
  readonly headDim: number;
  /** Slots before this one are sinks or clustered. */
  readonly clusteredEnd: number;
  /** Per layer; undefined: a layer with a sliding window, which is not clustered. */
  readonly layers: readonly (LayerClusters | undefined)[];
}

/** Keys of each entry. */
export function entryCounts({ ends }: HeadClusters): Float32Array {
  return Float32Array.from(ends, (end, e) => end - (e === 0 ? 0 : ends[e - 1]!));
}

/** Entries of the coarse level: the sinks, and each coarse cluster's mean of its clusters' centroids, its clusters counted alike. */
export function coarseEntries(
  { ends, centroids, spreads, coarseEnds }: HeadClusters,
  headDim: number,
): HeadClusters {
  const nEntries = SINK_ENTRIES + coarseEnds.length;
  const coarse = new Float32Array(nEntries * headDim);
  coarse.set(centroids.subarray(0, SINK_ENTRIES * headDim));
  const coarseSpreads = new Float32Array(nEntries);
  const slotEnds = new Uint32Array(nEntries);
  slotEnds.set(ends.subarray(0, SINK_ENTRIES));
  for (const [i, end] of coarseEnds.entries()) {
    const from = SINK_ENTRIES + (i === 0 ? 0 : coarseEnds[i - 1]!);
    const to = SINK_ENTRIES + end;
    const mean = coarse.subarray((SINK_ENTRIES + i) * headDim, (SINK_ENTRIES + i + 1) * headDim);
    for (let e = from; e < to; e++)
      for (let c = 0; c < headDim; c++) mean[c]! += centroids[e * headDim + c]! / (to - from);
    let square = 0;
    for (let at = from * headDim; at < to * headDim; at++)
      square += (centroids[at]! - mean[at % headDim]!) ** 2 / headDim;
    for (let e = from; e < to; e++) square += spreads[e]!;
    coarseSpreads[SINK_ENTRIES + i] = square / (to - from);
    slotEnds[SINK_ENTRIES + i] = ends[to - 1]!;
  }
  return { ends: slotEnds, centroids: coarse, spreads: coarseSpreads, coarseEnds: new Uint32Array(0) };
}

/** Share of the clustered keys that the largest cluster has, over all layers and heads. */
export function largestShare({ layers, clusteredEnd }: ClusterIndex): number {
  let most = 0;
  for (const layer of layers)
    for (const head of layer ?? [])
      for (const n of entryCounts(head).subarray(SINK_ENTRIES)) most = Math.max(most, n);
  return most / (clusteredEnd - SINK_ENTRIES);
}
