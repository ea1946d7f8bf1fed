/**
 * Between a layer's queries and keys and the policy that selects what they read: has the backend pool them, keeps the
 * sequence's key features up to date, and asks the policy.
 */

import { assertFiniteRows, assertSelection } from "../attention/invariants.ts";
import { KeyFeatures } from "../attention/key-features.ts";
import type { AttentionObserver } from "../attention/observer.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  type LayerView,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "../attention/policy.ts";
import { SQUEEZED_BUDGET } from "../attention/squeezed.ts";
import { SqueezedPrefix } from "../attention/squeezed-prefix.ts";
import type { AttentionTally } from "../attention/tally.ts";
import type { AttentionOps, Ops, Tensor, UnselectedCall } from "../backend/backend.ts";
import { isDebug } from "../debug.ts";
import { internalError } from "../errors.ts";
import type { PagedCache } from "../kv/paged-cache.ts";

/** How a call reads the cache. */
export interface AttentionPlan {
  readonly policy: SelectionPolicy;
  readonly budget: Budget;
  /**
   * What is remembered of keys, whichever policy reads them: the same in every call on a cache.
   * @default nothing
   */
  readonly features?: { readonly granule: number; readonly boundaryLayer?: number | undefined } | undefined;
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

  /** In debug builds, looks for NaN and infinity in what is about to be cached, unless it would have to leave a GPU. */
  async checkRows(layer: number, k: Tensor, v: Tensor): Promise<void> {
    if (!isDebug || this.ops.device !== "wasm") return;
    const position = this.blocks.qStart;
    assertFiniteRows(layer, "keys", await this.ops.read(k), k.width, position);
    assertFiniteRows(layer, "values", await this.ops.read(v), v.width, position);
  }

  /** What each block of a layer reads. Queries and keys are rotated, and the cache has room for them. */
  async select(call: UnselectedCall): Promise<Selection[]> {
    const { plan, blocks, shape } = this;
    const { layer } = call;
    this.#features?.append(layer, blocks.qLen, (ends, sums) =>
      this.#pool(call.k, ends, sums.subarray(0, call.k.width), (rows) => sums.set(rows)),
    );
    const squeezed = this.#prefix?.policy;
    if (squeezed) return this.#selectClusters(squeezed, call);
    const view = await this.#view(call);
    const selections = plan.policy.select(layer, blocks, plan.budget, view);
    if (isDebug) for (const selection of selections) assertSelection(selection, shape, blocks, plan.budget);
    plan.tally?.count(plan.policy.name, selections, blocks, shape);
    return selections;
  }

  /** The end of a prompt is no exception here: its questions are what the clusters are looked up for. */
  async #selectClusters(
    policy: SelectionPolicy,
    { layer, q, scale, softcap }: UnselectedCall,
  ): Promise<Selection[]> {
    const { shape, plan } = this;
    const blocks: QueryBlocks = { ...this.blocks, denseFrom: undefined };
    const queries = { q: await this.ops.read(q), shape, blocks, scale, softcap };
    const clusters = this.#prefix?.score(layer, queries);
    const selections = policy.select(layer, blocks, SQUEEZED_BUDGET, { clusters });
    if (isDebug && clusters)
      for (const selection of selections) assertSelection(selection, shape, blocks, SQUEEZED_BUDGET);
    plan.tally?.count(policy.name, selections, blocks, shape);
    return selections;
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
  }

  /** Shows the plan's observer, if it has one, what was selected. */
  async observe({ layer, q, k }: UnselectedCall, selections: readonly Selection[]): Promise<void> {
    const { observer } = this.plan;
    if (!observer) return;
    const { blocks } = this;
    observer({ layer, q: await this.ops.read(q), k: await this.ops.read(k), blocks, selections });
  }

  async #view(call: UnselectedCall): Promise<LayerView> {
    const { needs } = this.plan.policy;
    if (!needs) return {};
    const { attention } = this;
    if (needs.sampleRows && !attention.sampleMasses)
      throw internalError(`policy ${this.plan.policy.name} on a device without sampled attention`);
    let querySums: Float32Array | undefined;
    if (needs.pooled) {
      const { qLen, blockSize } = this.blocks;
      const ends = Uint32Array.from({ length: blockCount(this.blocks) }, (_, b) =>
        Math.min((b + 1) * blockSize, qLen),
      );
      this.#pool(call.q, ends, new Float32Array(call.q.width), (rows) => {
        querySums = rows;
      });
      await this.collect();
    }
    return {
      keys: this.#features,
      querySums,
      masses: needs.sampleRows && attention.sampleMasses?.(call, needs.sampleRows(this.blocks)),
    };
  }

  /** `take` gets the sums, (nRuns, width), when they are collected. */
  #pool(x: Tensor, ends: Uint32Array, first: Float32Array, take: (rows: Float32Array) => void): void {
    this.#pending.push({ tensor: this.ops.pool(x, ends, first), take });
  }
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
