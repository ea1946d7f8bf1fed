/**
 * How much faster Squeezed Attention makes decoding on the webgpu pair. The prompt is made and clustered in WASM and its pages are
 * then written into the GPU's cache: a software adapter would take minutes to prefill it. Attention of some tokens is
 * recorded one after the other and waited for once, as a forward pass does it with its layers.
 */

import { DensePolicy } from "../attention/dense.ts";
import type { AttentionShape } from "../attention/policy.ts";
import type { AttentionOps, Tensor } from "../backend/backend.ts";
import { PageConverter } from "../backend/wasm/page-converter.ts";
import type { WasmOps } from "../backend/wasm/wasm-ops.ts";
import type { GpuOps } from "../backend/webgpu/gpu-ops.ts";
import type { GpuPairAttention } from "../backend/webgpu/gpu-pair-attention.ts";
import { headFormats } from "../kv/mixed-format.ts";
import { pageCount } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import { type AttentionPlan, PageSelector } from "../model/select-pages.ts";
import { MadeUpText } from "./made-up-text.ts";
import { clusteredPrompt, count, EVERYTHING, type SqueezedVariant } from "./measure-squeezed.ts";

/** What is measured where. */
export interface SqueezedGpuMeasurement {
  readonly ops: WasmOps;
  /** Of f32 pages, for one layer of `shape`. */
  readonly attention: AttentionOps;
  readonly gpuOps: GpuOps;
  /** For two layers of the same heads, of which only the first is used: a forward pass is not over after it. */
  readonly gpuAttention: GpuPairAttention;
  /** One layer without a sliding window. */
  readonly shape: AttentionShape;
  /** Tokens of the prompt. */
  readonly length: number;
  readonly variant: SqueezedVariant;
  /** Tokens decoded after it. */
  readonly nTokens: number;
  readonly rounds: number;
}

/** Milliseconds of one token's attention in the layer, lookup included; one entry a round. */
export interface SqueezedGpuTimes {
  readonly dense: readonly number[];
  readonly squeezed: readonly number[];
  /** Shares of the keys: that were selected, and that lie in pages of which something was. */
  readonly selected: number;
  readonly inPages: number;
}

/** Queries, keys and values of a token on the GPU. */
type Row = readonly [Tensor, Tensor, Tensor];

export async function measureSqueezedGpu(m: SqueezedGpuMeasurement): Promise<SqueezedGpuTimes> {
  const { ops, gpuOps, gpuAttention, shape, length, nTokens, rounds } = m;
  const text = new MadeUpText(shape);
  const near = m.attention.createCache();
  const rows: Row[] = [];
  const cache = gpuAttention.createCache();
  try {
    const { prefixOf } = await clusteredPrompt(m, near, text);
    await write(m, near, cache);
    for (let token = 0; token < nTokens; token++) {
      using row = text.next(ops, 1);
      const upload = ({ view, width }: { view: Float32Array; width: number }) =>
        gpuOps.upload(Float32Array.from(view), width);
      rows.push([upload(row.q), upload(row.k), upload(row.v)]);
    }
    const plan: AttentionPlan = { policy: new DensePolicy(shape), budget: EVERYTHING };
    const shared = prefixOf(m.variant);
    const dense: number[] = [];
    const squeezed: number[] = [];
    // The first round compiles, and makes buffers.
    for (let round = 0; round <= rounds; round++) {
      for (const times of [dense, squeezed]) {
        const read = cache.fork();
        if (times === squeezed) read.replaceCompanion(shared.fork());
        const ms = await timed(m, read, rows, plan);
        read.dispose();
        if (round > 0) times.push(ms);
      }
    }
    const counts = { selected: 0, inPages: 0, all: 0 };
    cache.replaceCompanion(shared);
    for (const row of rows) count(counts, await selectionOf(m, cache, row, plan), length);
    return { dense, squeezed, selected: counts.selected / counts.all, inPages: counts.inPages / counts.all };
  } finally {
    for (const row of rows) for (const tensor of row) tensor[Symbol.dispose]();
    for (const used of [near, cache]) used.dispose();
  }
}

/** Writes the pages of `near` into the empty `cache`, in its format. */
async function write(
  { ops, shape, length }: SqueezedGpuMeasurement,
  near: PagedCache,
  cache: PagedCache,
): Promise<void> {
  const pages = new PageConverter(ops.wasm, shape.headDim);
  const n = pageCount(length);
  cache.reserve(length);
  const bytes = await near.readPages(0, 0, n);
  const [from, to] = [near, cache].map((of) => headFormats(of.formatOf(0), 0, 1)[0]!);
  await cache.writePages(0, 0, n, pages.convert(bytes, from!, to!));
  cache.commit(length);
}

/** Milliseconds of a token's attention, when all are recorded one after the other, each as the next after the cache's. */
async function timed(
  { gpuOps, gpuAttention, shape }: SqueezedGpuMeasurement,
  cache: PagedCache,
  rows: readonly Row[],
  plan: AttentionPlan,
): Promise<number> {
  const blocks = { qStart: cache.nTokens, qLen: 1, blockSize: 1 };
  cache.reserve(1);
  await gpuOps.read(rows[0]![0]);
  const start = performance.now();
  let last: Tensor | undefined;
  for (const [q, k, v] of rows) {
    using selector = new PageSelector(gpuOps, gpuAttention, shape, plan, cache, blocks);
    const call = { layer: 0, q, k, v, cache, blocks, scale: shape.headDim ** -0.5 };
    const selected = await selector.select(call);
    last?.[Symbol.dispose]();
    last = await gpuAttention.attend({ ...call, ...selected });
  }
  await gpuOps.read(last!);
  const ms = (performance.now() - start) / rows.length;
  last![Symbol.dispose]();
  return ms;
}

/** What the host would select of the cache for a token. */
async function selectionOf(
  { gpuOps, gpuAttention, shape }: SqueezedGpuMeasurement,
  cache: PagedCache,
  [q, k, v]: Row,
  plan: AttentionPlan,
) {
  const blocks = { qStart: cache.nTokens, qLen: 1, blockSize: 1 };
  const watched = { ...plan, observer: () => {} };
  using selector = new PageSelector(gpuOps, gpuAttention, shape, watched, cache, blocks);
  const call = { layer: 0, q, k, v, cache, blocks, scale: shape.headDim ** -0.5 };
  return (await selector.select(call)).selections[0]!;
}
