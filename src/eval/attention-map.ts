/** Which pages each block of a prompt reads, and how much of the model's attention lies on them. */

import { KeyFeatures } from "../attention/key-features.ts";
import type { PolicyName } from "../attention/names.ts";
import type { LayerObservation } from "../attention/observer.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { type CacheFormat, PAGE_TOKENS, pageCount } from "../kv/page.ts";
import { isQuantized, settledPages, wholePageBytes } from "../kv/quantize.ts";
import { callEnd } from "../model/call-end.ts";
import { type AttentionPlan, forward, type Transformer } from "../model/forward.ts";
import { AttentionRecall } from "./attention-recall.ts";

/** What `model.attentionMap` finds. Arrays are row-major. */
export interface AttentionMap {
  /** The prompt as the model reads it. */
  readonly tokenIds: Uint32Array;
  /** Tokens of a page, and of a block of queries: block b and page b are the same tokens. */
  readonly pageTokens: number;
  readonly nPages: number;
  readonly nLayers: number;
  /** Each has its own pages; the query heads of its group share them. */
  readonly nKvHeads: number;
  /** (nLayers, nKvHeads, nPages, nPages): 1 where a block (third axis) reads a page (fourth). */
  readonly isRead: Uint8Array;
  /**
   * (nLayers, nKvHeads, nPages): share of the attention of two of the block's queries (of the last page, of those that
   * there are) on the keys that it reads, 0 to 1, mean over the heads of the group.
   */
  readonly kept: Float32Array;
  /** Positions where a chunk ends that the policy chose among; none for policies without chunks. */
  readonly chunkEnds: readonly number[];
  /** Bytes of all keys and values of the prompt, by format. */
  readonly kvBytes: Readonly<Record<CacheFormat, number>>;
}

/** What to map. */
export interface AttentionMapOptions {
  /** @default "dhsa" */
  policy?: PolicyName | undefined;
  /** Share of the keys before a block that it reads. 0 < budget <= 1. @default 0.25 */
  budget?: number | undefined;
}

/** Longer prompts give pictures that nobody can read, and exact attention over them takes long. */
export const MAP_MAX_TOKENS = 4096;

/** Of every so many queries one has its attention computed: two of a block. */
const SAMPLE_EVERY = PAGE_TOKENS / 2;

const FORMATS: readonly CacheFormat[] = ["f32", "f16", "q8", "q4", "q2"];

/** Reads `ids` into a cache of its own with `plan`, in calls of `chunk` tokens. */
export async function mapAttention(
  model: Transformer,
  ids: Uint32Array,
  plan: AttentionPlan,
  chunk: number,
  checkpoint: Checkpoint,
): Promise<AttentionMap> {
  const { config } = model;
  const { nLayers, nHeads, nKvHeads } = config;
  const nPages = pageCount(ids.length);
  const isRead = new Uint8Array(nLayers * nKvHeads * nPages * nPages);
  const kept = new Float32Array(nLayers * nKvHeads * nPages);
  const counts = new Uint32Array(kept.length);
  const isSampled = (position: number) =>
    position % SAMPLE_EVERY === SAMPLE_EVERY - 1 || position === ids.length - 1;
  const recall = new AttentionRecall(config, isSampled, ({ layer, head, position, kept: share }) => {
    const kvHead = Math.floor((head * nKvHeads) / nHeads);
    const at = (layer * nKvHeads + kvHead) * nPages + Math.floor(position / PAGE_TOKENS);
    kept[at]! += share;
    counts[at]!++;
  });
  const observer = (seen: LayerObservation) => {
    markPages(isRead, seen, nKvHeads, nPages);
    recall.observe(seen);
  };
  const cache = model.attention.createCache();
  try {
    // Blocks are counted from a call's start, pages from the prompt's: calls end at pages.
    const step = Math.max(PAGE_TOKENS, chunk - (chunk % PAGE_TOKENS));
    for (let at = 0; at < ids.length; ) {
      const end = callEnd(model.attention, at, step, ids.length);
      await forward(model, cache, ids.subarray(at, end), { ...plan, observer }, "none", checkpoint);
      at = end;
    }
    const features = cache.companion(KeyFeatures);
    const chunkEnds =
      plan.policy.needs?.pooled?.boundaryLayer !== undefined && features
        ? [...features.chunks(nLayers - 1).ends]
        : [];
    return {
      ...{ tokenIds: ids, pageTokens: PAGE_TOKENS, nPages, nLayers, nKvHeads, isRead, chunkEnds },
      kept: kept.map((sum, i) => sum / counts[i]!),
      kvBytes: kvBytes(model, ids.length),
    };
  } finally {
    cache.dispose();
  }
}

function markPages(
  isRead: Uint8Array,
  { layer, blocks, selections }: LayerObservation,
  nKvHeads: number,
  nPages: number,
): void {
  const firstBlock = blocks.qStart / PAGE_TOKENS;
  for (const { headShared, nBlocks, rowPtr, page } of selections)
    for (let kvHead = 0; kvHead < nKvHeads; kvHead++)
      for (let b = 0; b < nBlocks; b++) {
        const row = headShared ? b : kvHead * nBlocks + b;
        // A single token is a block of one: its page is the block's.
        const at = ((layer * nKvHeads + kvHead) * nPages + firstBlock + b) * nPages;
        for (let i = rowPtr[row]!; i < rowPtr[row + 1]!; i++) isRead[at + page[i]!] = 1;
      }
}

/** Bytes of `nTokens` tokens' pages. Quantized formats keep the first page and the newest tokens in f32. */
function kvBytes({ config }: Transformer, nTokens: number): Record<CacheFormat, number> {
  const { nLayers, nKvHeads, headDim } = config;
  const perPage = nLayers * nKvHeads;
  const nPages = pageCount(nTokens);
  const bytes = (format: CacheFormat) => {
    const nCold = isQuantized(format) ? Math.max(0, settledPages(nTokens) - 1) : 0;
    const hot = isQuantized(format) ? "f32" : format;
    return (
      perPage * ((nPages - nCold) * wholePageBytes(hot, headDim) + nCold * wholePageBytes(format, headDim))
    );
  };
  return Object.fromEntries(FORMATS.map((format) => [format, bytes(format)])) as Record<CacheFormat, number>;
}
