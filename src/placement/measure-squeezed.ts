/**
 * How much faster Squeezed Attention makes decoding after a long pinned prompt: one layer, made-up text with structure. The
 * prompt is clustered as `model.pin` does it; then each token's lookup and attention are timed beside dense attention of the
 * same query over the same pages, one after the other.
 */

import { DensePolicy } from "../attention/dense.ts";
import { bitCount } from "../attention/page-rows.ts";
import type { AttentionShape, Selection } from "../attention/policy.ts";
import { SqueezedPrefix } from "../attention/squeezed-prefix.ts";
import { WindowPolicy } from "../attention/window.ts";
import type { AttentionOps } from "../backend/backend.ts";
import { PageConverter } from "../backend/wasm/page-converter.ts";
import type { WasmOps } from "../backend/wasm/wasm-ops.ts";
import { Checkpoint } from "../engine/yielding.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import type { QuantizedFormat } from "../kv/quantize.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import { type Squeezed, Squeezer } from "../prompts/squeeze.ts";
import { CALIBRATION_TOKENS, type WindowQueries } from "../prompts/window-queries.ts";
import { MadeUpText } from "./made-up-text.ts";
import { timedCall, zeros } from "./timed-call.ts";

/** What is measured where. */
export interface SqueezedMeasurement {
  readonly ops: WasmOps;
  /** Made for one layer of `shape`. */
  readonly attention: AttentionOps;
  /** One layer without a sliding window. */
  readonly shape: AttentionShape;
  /** What the prompt's pages are stored in; undefined: as the cache has them. */
  readonly cold: QuantizedFormat | undefined;
  /** Tokens of the prompt. */
  readonly length: number;
  readonly variants: readonly SqueezedVariant[];
  /** Tokens decoded after it. @default 24 */
  readonly nTokens?: number | undefined;
  /** @default 3 */
  readonly rounds?: number | undefined;
}

/** How a prompt is read. */
export interface SqueezedVariant {
  readonly sparsity: number;
  readonly isTwoLevel: boolean;
}

/** Milliseconds of one token's attention in the layer, means over the tokens; one entry a round. */
export interface SqueezedTimes {
  readonly variant: SqueezedVariant;
  readonly dense: number[];
  readonly selection: number[];
  readonly attention: number[];
  /** Shares of the keys: that were selected, and that lie in pages of which something was. */
  readonly selected: number;
  readonly inPages: number;
}

export interface SqueezedResult {
  readonly variants: readonly SqueezedTimes[];
  /** Of clustering the layer. */
  readonly clusterSeconds: number;
  /** Of the dense attention of the whole prompt in the layer: the call in its middle stands for all. */
  readonly prefillSeconds: number;
}

const CHUNK = 512;
const BLOCK = 32;
export const EVERYTHING = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };
const LITTLE = { tokens: 1, sinks: 0, local: 0, denseBelow: 0 };

export async function measureSqueezed(m: SqueezedMeasurement): Promise<SqueezedResult> {
  const { ops, attention, shape, length, cold, nTokens = 24, rounds = 3 } = m;
  const cache = attention.createCache();
  const text = new MadeUpText(shape);
  try {
    const { prefixOf, clusterSeconds, prefillSeconds } = await clusteredPrompt(m, cache, text);
    if (cold) cache.quantize(cold);

    const dense: AttentionPlan = { policy: new DensePolicy(shape), budget: EVERYTHING };
    const times = m.variants.map((variant) => ({
      variant,
      ...{ dense: zeros(rounds), selection: zeros(rounds), attention: zeros(rounds) },
      prefix: prefixOf(variant),
      counts: { selected: 0, inPages: 0, all: 0 },
    }));
    const none = new SqueezedPrefix(undefined);
    for (let token = 0; token < nTokens; token++) {
      using rows = text.next(ops, 1);
      for (let round = 0; round < rounds; round++)
        for (const time of times) {
          cache.replaceCompanion(none);
          const whole = await timedCall(m, cache, dense, rows);
          cache.replaceCompanion(time.prefix);
          const part = await timedCall(m, cache, dense, rows);
          time.dense[round]! += (whole.selection + whole.attention) / nTokens;
          time.selection[round]! += part.selection / nTokens;
          time.attention[round]! += part.attention / nTokens;
          if (round === 0) count(time.counts, part.selections[0]!, length);
        }
    }
    cache.replaceCompanion(none);
    for (const { prefix } of times) prefix.dispose();
    const variants = times.map(({ prefix: _, counts, ...rest }) => ({
      ...rest,
      selected: counts.selected / counts.all,
      inPages: counts.inPages / counts.all,
    }));
    return { variants, clusterSeconds, prefillSeconds };
  } finally {
    cache.dispose();
  }
}

/** A prompt that was filled into a cache and clustered there. */
export interface ClusteredPrompt {
  /** What a cache with its pages is to have beside it to be read so. */
  prefixOf(variant: SqueezedVariant): SqueezedPrefix;
  /** As in SqueezedResult. */
  readonly clusterSeconds: number;
  readonly prefillSeconds: number;
}

/** Fills the empty `cache` of `m` with `m.length` tokens of `text` and clusters them. */
export async function clusteredPrompt(
  m: Pick<SqueezedMeasurement, "ops" | "attention" | "shape" | "length">,
  cache: PagedCache,
  text: MadeUpText,
): Promise<ClusteredPrompt> {
  const { ops, shape, length } = m;
  const pages = new PageConverter(ops.wasm, shape.headDim);
  const squeezer = new Squeezer(shape, shape.headDim ** -0.5, ops.wasm, pages);
  const { before, queries } = squeezer.watch(length);
  const prefillSeconds = await fill(m, cache, text, before, queries);
  const start = performance.now();
  const { info, records } = await squeeze(squeezer, cache, queries);
  const clusterSeconds = (performance.now() - start) / 1000;
  const prefixOf = ({ sparsity, isTwoLevel }: SqueezedVariant) => {
    const index = squeezer.index(length, info.layers, records);
    const calibrated = squeezer.calibrate(index, length, queries, [sparsity], isTwoLevel);
    return squeezer.prefix({ nTokens: length }, { ...info, ...calibrated, sparsity }, records);
  };
  return { prefixOf, clusterSeconds, prefillSeconds };
}

/**
 * Fills the cache with `m.length` tokens, whose last CALIBRATION_TOKENS begin at `before` and have their queries kept. Returns
 * SqueezedResult.prefillSeconds.
 */
async function fill(
  m: Pick<SqueezedMeasurement, "ops" | "attention" | "shape" | "length">,
  cache: PagedCache,
  text: MadeUpText,
  before: number,
  queries: WindowQueries,
): Promise<number> {
  const little: AttentionPlan = { policy: new WindowPolicy(m.shape), budget: LITTLE };
  const dense: AttentionPlan = { policy: new DensePolicy(m.shape), budget: EVERYTHING };
  let prefillSeconds: number | undefined;
  while (cache.nTokens < m.length) {
    const n = cache.nTokens < before ? Math.min(CHUNK, before - cache.nTokens) : CALIBRATION_TOKENS;
    using rows = text.next(m.ops, n);
    const blocks = { qStart: cache.nTokens, qLen: n, blockSize: BLOCK };
    queries.observe({ layer: 0, q: rows.q.view, k: rows.k.view, blocks, selections: [] });
    if (prefillSeconds === undefined && cache.nTokens + n / 2 >= m.length / 2) {
      const { attention } = await timedCall(m, cache, dense, rows, BLOCK);
      prefillSeconds = ((attention / 1000) * m.length) / n;
    }
    await timedCall(m, cache, little, rows, BLOCK, true);
  }
  return prefillSeconds ?? 0;
}

async function squeeze(squeezer: Squeezer, cache: PagedCache, queries: WindowQueries): Promise<Squeezed> {
  const steps = squeezer.squeeze(cache, { sparsity: 0.9, maxMissing: 1 }, queries, new Checkpoint(undefined));
  for (;;) {
    const step = await steps.next();
    if (step.done) return step.value;
  }
}

/** Adds what a selection of one token reads of a prompt of `length` tokens. */
export function count(
  counts: { selected: number; inPages: number; all: number },
  { nKvHeads, page, mask }: Selection,
  length: number,
): void {
  counts.all += nKvHeads * length;
  counts.inPages += page.length * PAGE_TOKENS;
  for (const bits of mask ?? new Uint32Array(page.length).fill(0xffffffff)) counts.selected += bitCount(bits);
}
