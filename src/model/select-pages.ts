/**
 * Between a layer's queries and keys and the policy that selects what they read: has the backend pool them, keeps the
 * sequence's key features up to date, and asks the policy.
 */

import { estimateMasses, queryRunEnds } from "../attention/estimate.ts";
import { assertFinitePages, assertFiniteRows, assertSelection } from "../attention/invariants.ts";
import { type FeatureShape, KeyFeatures } from "../attention/key-features.ts";
import type { AttentionObserver } from "../attention/observer.ts";
import type { AttentionShape, Budget, LayerView, QueryBlocks, SelectionPolicy } from "../attention/policy.ts";
import { SQUEEZED_BUDGET, type SqueezedPolicy } from "../attention/squeezed.ts";
import { SqueezedPrefix } from "../attention/squeezed-prefix.ts";
import type { AttentionTally } from "../attention/tally.ts";
import type {
  AttentionOps,
  DeviceSelection,
  Ops,
  Selected,
  Tensor,
  UnselectedCall,
} from "../backend/backend.ts";
import { isDebug } from "../debug.ts";
import { PAGE_TOKENS, pageCount } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";

/**
 * Queries that are averaged where attention is not estimated on the device: their means must be read back, and plain
 * loops take them.
 */
export const ESTIMATED_QUERIES = 8;

/** How a call reads the cache. */
export interface AttentionPlan {
  readonly policy: SelectionPolicy;
  readonly budget: Budget;
  /**
   * What is remembered of keys, whichever policy reads them: the same in every call on a cache.
   * @default nothing
   */
  readonly features?: Pick<FeatureShape, "granule" | "boundaryLayer" | "boundaryScore"> | undefined;
  /** Queries at or after this position read everything. @default none */
  readonly denseFrom?: number | undefined;
  /** Counts what is read. */
  readonly tally?: AttentionTally | undefined;
  /** Is shown queries, keys and selections, which are copied to the host for it. */
  readonly observer?: AttentionObserver | undefined;
}

/**
 * One forward call's selections. What the backend pools is read when a policy needs it, else with the call's last
 * result: reading back from a GPU waits for it.
 */
export class PageSelector implements Disposable {
  readonly #features: KeyFeatures | undefined;
  /** Of a cache that begins with a clustered prompt, whatever the plan says. */
  readonly #prefix: SqueezedPrefix | undefined;
  /** Pooled on the device, and what becomes of it on the host. */
  #pending: { readonly tensor: Tensor; take(rows: Float32Array): void }[] = [];
  /** What the device selected last. */
  #onDevice: DeviceSelection | undefined;
  /** Where its selections count, and in how many layers it selected. */
  #counters: Tensor | undefined;
  #nOnDevice = 0;

  constructor(
    private readonly ops: Ops,
    private readonly attention: AttentionOps,
    private readonly shape: AttentionShape,
    private readonly plan: AttentionPlan,
    cache: PagedCache,
    private readonly blocks: QueryBlocks,
  ) {
    this.#features = plan.features && featuresOf(cache, shape, plan.features);
    this.#prefix = cache.companion(SqueezedPrefix);
  }

  /** Shows a layer's keys, (nTokens, nKvHeads * headDim), before they are rotated. */
  beforeRope(layer: number, k: Tensor): void {
    const features = this.#features;
    if (features?.shape.boundaryLayer !== layer) return;
    const each = Uint32Array.from({ length: k.nTokens }, (_, i) => i + 1);
    this.#pool(k, each, new Float32Array(k.width), (rows) => features.appendBoundaryKeys(rows));
  }

  /**
   * In debug builds, looks for NaN and infinity in what is about to be cached. From a GPU only sums over pages are read,
   * with what is read next: before the call's tokens count as cached.
   */
  async checkRows(layer: number, k: Tensor, v: Tensor): Promise<void> {
    if (!isDebug) return;
    const position = this.blocks.qStart;
    const parts = [
      ["keys", k],
      ["values", v],
    ] as const;
    for (const [what, rows] of parts)
      if (this.ops.device === "wasm")
        assertFiniteRows(layer, what, await this.ops.read(rows), rows.width, position);
      else
        this.#pool(rows, pageEnds(position, rows.nTokens), new Float32Array(rows.width), (sums) =>
          assertFinitePages(layer, what, sums, rows.width, Math.floor(position / PAGE_TOKENS)),
        );
  }

  /**
   * What each block of a layer reads. Queries and keys are rotated, and the cache has room for them. Selections on the device
   * are this selector's, and hold until the next ones.
   */
  async select(call: UnselectedCall): Promise<Selected> {
    this.#onDevice?.[Symbol.dispose]();
    this.#onDevice = undefined;
    const { plan, blocks, shape } = this;
    const { layer } = call;
    this.#features?.append(layer, blocks.qLen, (ends, sums) =>
      this.#pool(call.k, ends, sums.subarray(0, call.k.width), (rows) => sums.set(rows)),
    );
    const squeezed = this.#prefix?.policy;
    if (squeezed) return (await this.#selectOnDevice(squeezed, call)) ?? this.#selectClusters(squeezed, call);
    const view = await this.#view(call);
    const selections = plan.policy.select(layer, blocks, plan.budget, view);
    if (isDebug) for (const selection of selections) assertSelection(selection, shape, blocks, plan.budget);
    plan.tally?.count(plan.policy.name, selections, blocks, shape);
    return { selections };
  }

  /** undefined where queries are on the host, and where they are copied there anyway, for an observer. */
  async #selectOnDevice(policy: SqueezedPolicy, call: UnselectedCall): Promise<Selected | undefined> {
    const { plan, blocks, shape } = this;
    if (plan.observer || !policy.index.layers[call.layer]) return undefined;
    const clusters = await this.#prefix?.onDevice(this.attention);
    if (!clusters) return undefined;
    if (!this.#counters) {
      const counters = clusters.counters(blocks);
      this.#counters = counters;
      const take = (rows: Float32Array) =>
        plan.tally?.countOnDevice(policy.name, rows, this.#nOnDevice, blocks, shape);
      if (plan.tally) this.#pending.push({ tensor: counters, take });
    }
    this.#onDevice = clusters.select(call, this.#counters);
    this.#nOnDevice++;
    return { selections: [], onDevice: this.#onDevice };
  }

  /** The end of a prompt is no exception here: its questions are what the clusters are looked up for. */
  async #selectClusters(
    policy: SqueezedPolicy,
    { layer, q, scale, softcap }: UnselectedCall,
  ): Promise<Selected> {
    const { shape, plan } = this;
    const blocks: QueryBlocks = { ...this.blocks, denseFrom: undefined };
    const isClustered = policy.index.layers[layer] !== undefined;
    const clusters = isClustered
      ? this.#prefix?.score(layer, { q: await this.ops.read(q), shape, blocks, scale, softcap })
      : undefined;
    const selections = policy.select(layer, blocks, SQUEEZED_BUDGET, { clusters });
    if (isDebug && clusters)
      for (const selection of selections) assertSelection(selection, shape, blocks, SQUEEZED_BUDGET);
    plan.tally?.count(policy.name, selections, blocks, shape);
    return { selections };
  }

  /** Reads what was pooled and not yet read, and in the same crossing `result`, which stays the caller's. */
  async collect(result?: Tensor): Promise<Float32Array | undefined> {
    const pending = this.#pending;
    const tensors = pending.map(({ tensor }) => tensor);
    const rows = await this.ops.readAll(result ? [...tensors, result] : tensors);
    this[Symbol.dispose]();
    for (const [i, { take }] of pending.entries()) take(rows[i]!);
    return rows[pending.length];
  }

  /** Gives up what was not collected. */
  [Symbol.dispose](): void {
    for (const { tensor } of this.#pending) tensor[Symbol.dispose]();
    this.#pending = [];
    this.#counters?.[Symbol.dispose]();
    this.#counters = undefined;
    this.#onDevice?.[Symbol.dispose]();
    this.#onDevice = undefined;
  }

  /** Shows the plan's observer, if it has one, what was selected. */
  async observe({ layer, q, k }: UnselectedCall, { selections }: Selected): Promise<void> {
    const { observer } = this.plan;
    if (!observer) return;
    const { blocks } = this;
    observer({ layer, q: await this.ops.read(q), k: await this.ops.read(k), blocks, selections });
  }

  async #view(call: UnselectedCall): Promise<LayerView> {
    const { needs } = this.plan.policy;
    if (!needs) return {};
    const { attention } = this;
    let querySums: Float32Array | undefined;
    let estimate: LayerView["estimate"];
    if (needs.pooled) {
      const canEstimate = this.ops.estimateMasses !== undefined;
      const runs = queryRunEnds(
        this.blocks,
        needs.estimates && !canEstimate ? ESTIMATED_QUERIES : this.blocks.blockSize,
      );
      let rows: Float32Array | undefined;
      this.#pool(call.q, runs.ends, new Float32Array(call.q.width), (sums) => {
        rows = sums;
      });
      await this.collect();
      querySums = sumRuns(rows!, runs.rowEnds, call.q.width);
      if (needs.estimates) estimate = this.#estimator(call, rows!, runs);
    }
    return {
      keys: this.#features,
      querySums,
      estimate,
      masses: needs.sampleRows && (await attention.sampleMasses(call, needs.sampleRows(this.blocks))),
    };
  }

  /** On the device from each query, else from means of a few. `rows`: sums of the runs of queries. */
  #estimator(
    { q, scale }: UnselectedCall,
    rows: Float32Array,
    { ends, rowEnds }: ReturnType<typeof queryRunEnds>,
  ): NonNullable<LayerView["estimate"]> {
    const { ops, shape, blocks } = this;
    if (ops.estimateMasses) return (runs) => ops.estimateMasses!(q, blocks, runs, shape, scale);
    const means = rows.slice();
    for (const [i, end] of ends.entries()) {
      const n = end - (i === 0 ? 0 : ends[i - 1]!);
      for (let at = i * q.width; at < (i + 1) * q.width; at++) means[at]! /= n;
    }
    return (runs) => estimateMasses({ rows: means, rowEnds }, runs, shape, scale);
  }

  /** `take` gets the sums, (nRuns, width), when they are collected. */
  #pool(x: Tensor, ends: Uint32Array, first: Float32Array, take: (rows: Float32Array) => void): void {
    this.#pending.push({ tensor: this.ops.pool(x, ends, first), take });
  }
}

/** Where the pages of the tokens from `position` on end, counted from the first of them. */
function pageEnds(position: number, nTokens: number): Uint32Array {
  const first = Math.floor(position / PAGE_TOKENS);
  return Uint32Array.from({ length: pageCount(position + nTokens) - first }, (_, i) =>
    Math.min((first + i + 1) * PAGE_TOKENS - position, nTokens),
  );
}

/** Rows of `width` summed: (nBlocks, width) of (nRows, width), block b has rows [rowEnds[b-1], rowEnds[b]). */
function sumRuns(rows: Float32Array, rowEnds: Uint32Array, width: number): Float32Array {
  if (rowEnds.length * width === rows.length) return rows;
  const sums = new Float32Array(rowEnds.length * width);
  let row = 0;
  for (const [b, end] of rowEnds.entries())
    for (; row < end; row++) for (let c = 0; c < width; c++) sums[b * width + c]! += rows[row * width + c]!;
  return sums;
}

/** The cache's features; an empty cache gets its own. */
function featuresOf(
  cache: PagedCache,
  { nLayers, nKvHeads, headDim }: AttentionShape,
  features: NonNullable<AttentionPlan["features"]>,
): KeyFeatures {
  const existing = cache.companion(KeyFeatures);
  if (existing) return existing;
  const made = new KeyFeatures({ nLayers, nKvHeads, headDim, ...features });
  cache.attach(made);
  return made;
}
