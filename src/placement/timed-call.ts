/** One forward call's attention in one layer, its selection and itself timed apart. */

import type { AttentionShape, Selection } from "../attention/policy.ts";
import type { AttentionOps, Ops, UnselectedCall } from "../backend/backend.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import { type AttentionPlan, PageSelector } from "../model/select-pages.ts";
import type { Rows } from "./made-up-text.ts";

/** The layer, and where it runs. */
export interface TimedLayer {
  readonly ops: Ops;
  readonly attention: AttentionOps;
  readonly shape: AttentionShape;
}

/** Runs one call; the cache is left as it was unless it commits. Returns milliseconds, and what was read. */
export async function timedCall(
  { ops, attention, shape }: TimedLayer,
  cache: PagedCache,
  plan: AttentionPlan,
  { q, k, v }: Rows,
  blockSize = 1,
  commits = false,
): Promise<{ selection: number; attention: number; selections: readonly Selection[] }> {
  const blocks = { qStart: cache.nTokens, qLen: q.nTokens, blockSize };
  const call: UnselectedCall = { layer: 0, q, k, v, cache, blocks, scale: shape.headDim ** -0.5 };
  cache.reserve(q.nTokens);
  const start = performance.now();
  using selector = new PageSelector(ops, attention, shape, plan, cache, blocks);
  selector.beforeRope(0, k);
  const chosen = await selector.select(call);
  const selected = performance.now();
  using _out = await attention.attend({ ...call, ...chosen });
  const end = performance.now();
  await selector.collect();
  if (commits) cache.commit(q.nTokens);
  else cache.truncate(cache.nTokens);
  return { selection: selected - start, attention: end - selected, selections: chosen.selections };
}

export function zeros(n: number): number[] {
  return new Array<number>(n).fill(0);
}
