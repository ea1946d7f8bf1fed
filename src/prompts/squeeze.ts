/**
 * Clustering a prefilled prompt (Squeezed Attention, arXiv:2411.09688; algorithms.md B.2 and B.7): per layer and KV head the
 * tokens between the sink page and the last 128 are sorted by the cluster of their key, in place, and thresholds are
 * calibrated with the queries of the prompt's own end. Legal because all later queries come after all of these tokens, and
 * softmax does not mind their order.
 *
 * Layers with a sliding window stay as they are: they read little as it is, and must tell positions apart.
 */

import { BestClusters } from "../attention/best-clusters.ts";
import { Calibration } from "../attention/calibration.ts";
import {
  type ClusterIndex,
  coarseEntries,
  entryCounts,
  type HeadClusters,
  type LayerClusters,
  SINK_ENTRIES,
} from "../attention/cluster-index.ts";
import type { AttentionShape, ClusterScores } from "../attention/policy.ts";
import { leastKeys, leastRead, SQUEEZED_BLOCK, SqueezedPolicy } from "../attention/squeezed.ts";
import { SharedIndex, SqueezedPrefix } from "../attention/squeezed-prefix.ts";
import { WasmClusterScorer } from "../backend/wasm/cluster-scorer.ts";
import { KeyClusters, type KeyClustersResult } from "../backend/wasm/key-clusters.ts";
import type { WasmModule } from "../backend/wasm/module.ts";
import type { PageConverter } from "../backend/wasm/page-converter.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { InlayError } from "../errors.ts";
import { headFormats } from "../kv/mixed-format.ts";
import { type CacheFormat, PAGE_TOKENS } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import { SINK_PAGES, settledPages } from "../kv/quantize.ts";
import { LayerPages } from "./layer-pages.ts";
import type { PromptManifest, PromptShape } from "./manifest.ts";
import { clusteredEnd, type HeadSizes, type SqueezedInfo } from "./squeezed-info.ts";
import { decodeClusters, encodeClusters } from "./squeezed-records.ts";
import { CALIBRATION_TOKENS, WindowQueries } from "./window-queries.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Keys of a cluster on average, and of a coarse one (algorithms.md B.2: p = 0.05, p1 = 0.01). */
const CLUSTER_KEYS = 20;
const COARSE_KEYS = 100;
/** Passes of K-means on each level; labels seldom change after as many. */
const PASSES = 6;
/** Keys of half of the coarse clusters go on to the fine level (algorithms.md B.2). */
const COARSE_SPARSITY = 0.5;
/** Shares that a stored prompt has thresholds for, beside the one that it was pinned with. */
const SPARSITIES = [0.5, 0.7, 0.8, 0.9];

/** Entries of a KV head from which on coarse clusters are looked up first: fewer are looked up as fast at once. */
const TWO_LEVEL_FROM = 4096;

/** Shorter prompts are not clustered: there is nothing to gain, and hybrid devices keep their beginning elsewhere. */
export const LEAST_SQUEEZED_TOKENS = 512;

/** How a prompt is to be squeezed. */
export interface SqueezeRequest {
  /** Share of the clustered keys to be left out, 0 < sparsity < 1. */
  readonly sparsity: number;
  readonly maxMissing: number;
}

/** Bytes of the clusters' records of a prompt, about. */
export function estimatedClusterBytes({ nLayers, nKvHeads, headDim }: PromptShape, nTokens: number): number {
  return nLayers * nKvHeads * (SINK_ENTRIES + nTokens / CLUSTER_KEYS) * (2 * headDim + 10);
}

/** What clustering made of a prompt. */
export interface Squeezed {
  readonly info: SqueezedInfo;
  /** One for each layer that is clustered. */
  readonly records: readonly Bytes[];
}

export class Squeezer {
  readonly #clusters: KeyClusters;

  constructor(
    private readonly shape: AttentionShape,
    /** Of attention scores. */
    private readonly scale: number,
    private readonly wasm: WasmModule,
    private readonly pages: PageConverter,
  ) {
    this.#clusters = new KeyClusters(wasm, shape.headDim);
  }

  /** Whether there is a layer to cluster. */
  get isOfUse(): boolean {
    return this.shape.window.some((window) => window === undefined);
  }

  /**
   * The tokens of a prompt before its observation window, and what is to watch the rest being prefilled. `nKnown`: first
   * tokens that are not prefilled.
   */
  watch(nTokens: number, nKnown = 0): { before: number; queries: WindowQueries } {
    const before = Math.max(nKnown, nTokens - CALIBRATION_TOKENS);
    return { before, queries: new WindowQueries(this.shape, before, nTokens - before) };
  }

  /** Clusters and sorts the tokens of `cache`; yields the number of layers that are done. Throws `invalid-model`, `out-of-memory`. */
  async *squeeze(
    cache: PagedCache,
    { sparsity, maxMissing }: SqueezeRequest,
    queries: WindowQueries,
    checkpoint: Checkpoint,
  ): AsyncGenerator<number, Squeezed> {
    const { nTokens } = cache;
    const { headDim, nLayers } = this.shape;
    const records: Bytes[] = [];
    const sizes: HeadSizes[][] = [];
    for (let layer = 0; layer < nLayers; layer++) {
      await checkpoint.pass();
      const isClustered = this.shape.window[layer] === undefined;
      const made = isClustered ? await this.#sortLayer(cache, layer, checkpoint) : [];
      sizes.push(made.map(({ ends, coarseEnds }) => ({ entries: ends.length, coarse: coarseEnds.length })));
      if (isClustered) records.push(encodeClusters(made, headDim, this.pages));
      yield layer + 1;
    }
    // Calibrated as it will be read: with centroids as they are stored.
    const index = this.index(nTokens, sizes, records);
    const most = Math.max(...sizes.flat().map(({ entries }) => entries));
    const wanted = [...new Set([...SPARSITIES, sparsity])].sort((a, b) => a - b);
    const calibrated = this.calibrate(index, nTokens, queries, wanted, most >= TWO_LEVEL_FROM);
    return { info: { sparsity, maxMissing, ...calibrated, layers: sizes }, records };
  }

  /** Thresholds that leave out shares of the keys, for queries like those of the prompt's end. Throws `invalid-model`, `out-of-memory`. */
  calibrate(
    index: ClusterIndex,
    nTokens: number,
    { layers: queries }: WindowQueries,
    sparsities: readonly number[],
    isTwoLevel: boolean,
  ): Pick<SqueezedInfo, "thresholds" | "coarse"> {
    const { shape, scale } = this;
    const scorer = new WasmClusterScorer(this.wasm, index);
    try {
      /** Estimates of the calibration queries for each of `floors`, shares of the keys that are read anyway. */
      const collect = (
        blockSize: number,
        level: "fine" | "coarse",
        floors: readonly number[],
        coarse?: number,
      ): Calibration[] => {
        const calibrations = floors.map((floor) => ({ floor, calibration: new Calibration() }));
        const blocks = { qStart: nTokens - CALIBRATION_TOKENS, qLen: CALIBRATION_TOKENS, blockSize };
        for (const [layer, heads] of index.layers.entries()) {
          if (!heads) continue;
          const asked = { q: queries[layer]!, shape, blocks, scale };
          const entries = level === "fine" ? heads : heads.map((head) => coarseEntries(head, index.headDim));
          const scores =
            coarse === undefined ? scorer[level](layer, asked) : scorer.twoLevel(layer, asked, coarse);
          for (const { floor, calibration } of calibrations) addScores(calibration, scores!, entries, floor);
        }
        return calibrations.map(({ calibration }) => calibration);
      };
      const sizes = [1, SQUEEZED_BLOCK];
      const coarse = isTwoLevel
        ? sizes.map((blockSize) => finite(collect(blockSize, "coarse", [0])[0]!, COARSE_SPARSITY))
        : [];
      const floors = sparsities.map(leastRead);
      const [ofQuery, ofBlock] = sizes.map((blockSize, i) =>
        collect(blockSize, "fine", floors, coarse[i]).map((calibration, j) =>
          finite(calibration, sparsities[j]!),
        ),
      );
      return {
        thresholds: sparsities.map((sparsity, j) => ({ sparsity, query: ofQuery![j]!, block: ofBlock![j]! })),
        coarse: isTwoLevel ? { query: coarse[0]!, block: coarse[1]! } : null,
      };
    } finally {
      scorer.dispose();
    }
  }

  /** What a cache with the pages of such a prompt is to have beside it. `records`: of its clusters. */
  prefix(
    { nTokens }: Pick<PromptManifest, "nTokens">,
    squeezed: SqueezedInfo,
    records: readonly Bytes[],
  ): SqueezedPrefix {
    const index = this.index(nTokens, squeezed.layers, records);
    const { maxMissing, coarse } = squeezed;
    const thresholds = squeezed.thresholds.find(({ sparsity }) => sparsity === squeezed.sparsity)!;
    const policy = new SqueezedPolicy(this.shape, index, {
      thresholds,
      maxMissing,
      leastRead: leastRead(squeezed.sparsity),
      coarse: coarse ?? undefined,
    });
    return new SqueezedPrefix(
      new SharedIndex(nTokens, policy, () => new WasmClusterScorer(this.wasm, index)),
    );
  }

  /** The clusters in the records of a prompt. Throws `storage-failed`. */
  index(nTokens: number, layers: SqueezedInfo["layers"], records: readonly Bytes[]): ClusterIndex {
    const { headDim } = this.shape;
    let next = 0;
    return {
      headDim,
      clusteredEnd: clusteredEnd(nTokens),
      layers: layers.map((sizes) =>
        sizes.length === 0
          ? undefined
          : decodeClusters(records[next++]!, sizes, { nTokens, headDim }, this.pages),
      ),
    };
  }

  /** Sorts one layer's tokens by cluster, each KV head's by its own. */
  async #sortLayer(cache: PagedCache, layer: number, checkpoint: Checkpoint): Promise<LayerClusters> {
    const { nKvHeads, headDim } = this.shape;
    const settled = settledPages(cache.nTokens);
    const sinkFormats = headFormats(cache.formatOf(0), layer, nKvHeads);
    const formats = headFormats(cache.formatOf(SINK_PAGES), layer, nKvHeads);
    const sinks = new LayerPages(await cache.readPages(layer, 0, SINK_PAGES), sinkFormats, headDim);
    const pages = await cache.readPages(layer, SINK_PAGES, settled);
    const rows = new LayerPages(pages, formats, headDim);
    const heads: HeadClusters[] = [];
    for (let head = 0; head < nKvHeads; head++) {
      await checkpoint.pass();
      const f32 = this.pages.convert(rows.gather(head), formats[head]!, "f32").slice();
      const nKeys = (settled - SINK_PAGES) * PAGE_TOKENS;
      const made = this.#clusters.sort(f32, {
        nFine: Math.max(1, Math.round(nKeys / CLUSTER_KEYS)),
        nCoarse: Math.max(1, Math.round(nKeys / COARSE_KEYS)),
        passes: PASSES,
      });
      rows.scatter(head, this.pages.convert(f32, "f32", formats[head]!));
      heads.push(withSinks(made, this.#keysOf(sinks.gather(head), sinkFormats[head]!)));
    }
    await cache.writePages(layer, SINK_PAGES, settled, pages);
    return heads;
  }

  /** Keys of the tokens of pages of one KV head: (nTokens, headDim). */
  #keysOf(pages: Bytes, format: CacheFormat): Float32Array {
    const { headDim } = this.shape;
    return this.pages.withKeys(pages, format, (keys) => {
      const rows = new Float32Array(keys.length);
      for (let t = 0; t < keys.length / headDim; t++) {
        const page = Math.floor(t / PAGE_TOKENS) * headDim * PAGE_TOKENS;
        for (let c = 0; c < headDim; c++)
          rows[t * headDim + c] = keys[page + c * PAGE_TOKENS + (t % PAGE_TOKENS)]!;
      }
      return rows;
    });
  }
}

/** Counts the clusters' estimates of every block, the sinks' not: they are read whatever theirs are, as is a share `floor`. */
function addScores(
  calibration: Calibration,
  { sigma, stride, starts }: ClusterScores,
  heads: LayerClusters,
  floor: number,
): void {
  const best = new BestClusters();
  for (const [h, head] of heads.entries()) {
    const counts = entryCounts(head);
    const n = counts.length;
    const nForced = leastKeys(floor, head.ends[n - 1]!);
    for (let at = starts[h]!; at < sigma.length; at += stride) {
      const least = best.least(sigma, at, counts, [SINK_ENTRIES, n], nForced);
      for (let e = SINK_ENTRIES; e < n; e++) {
        if (sigma[at + e]! >= least) calibration.addForced(counts[e]!);
        else calibration.add(sigma[at + e]!, counts[e]!);
      }
    }
  }
}

/** The entries of a KV head: the sink page's keys, then its clusters. */
function withSinks(
  { ends, coarseEnds, means, spreads }: KeyClustersResult,
  sinkKeys: Float32Array,
): HeadClusters {
  const all = new Uint32Array(SINK_ENTRIES + ends.length);
  for (let e = 0; e < SINK_ENTRIES; e++) all[e] = e + 1;
  for (const [c, end] of ends.entries()) all[SINK_ENTRIES + c] = SINK_ENTRIES + end;
  const centroids = new Float32Array(sinkKeys.length + means.length);
  centroids.set(sinkKeys);
  centroids.set(means, sinkKeys.length);
  const allSpreads = new Float32Array(all.length);
  allSpreads.set(spreads, SINK_ENTRIES);
  return { ends: all, coarseEnds, centroids, spreads: allSpreads };
}

function finite(calibration: Calibration, sparsity: number): number {
  const threshold = calibration.threshold(sparsity);
  if (Number.isFinite(threshold)) return threshold;
  throw new InlayError(
    "invalid-model",
    `the threshold for a sparsity of ${sparsity} is ${threshold}: attention scores of this prompt are not finite; pin it ` +
      "with sparsity: 0, or use another file of the model",
    { sparsity, threshold },
  );
}
