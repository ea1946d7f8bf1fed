/**
 * How much faster a selection policy makes the attention of a long prompt: one layer, made-up text with structure, on any
 * device whose activations are in WASM memory. Selection and attention are timed apart, each beside dense attention
 * of the same queries, one after the other, so that what slows the machine meets both.
 */

import { DensePolicy } from "../attention/dense.ts";
import type { AttentionShape, Budget, SelectionPolicy } from "../attention/policy.ts";
import { AttentionTally } from "../attention/tally.ts";
import { WindowPolicy } from "../attention/window.ts";
import type { AttentionOps } from "../backend/backend.ts";
import type { WasmOps } from "../backend/wasm/wasm-ops.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import { MadeUpText } from "./made-up-text.ts";
import { timedCall, zeros } from "./timed-call.ts";

/** What is measured where. */
export interface SparseMeasurement {
  readonly ops: WasmOps;
  /** Made for one layer of `shape`. */
  readonly attention: AttentionOps;
  /** One layer without a sliding window. */
  readonly shape: AttentionShape;
  readonly policy: SelectionPolicy;
  readonly budget: Budget;
  /** Prompt lengths. */
  readonly length: number;
  /** Prompt tokens per call. @default 512 */
  readonly chunk?: number | undefined;
  /** Calls that are timed, evenly spread over the prompt; the others only fill the cache. @default 8 */
  readonly maxCalls?: number | undefined;
  /** @default 3 */
  readonly rounds?: number | undefined;
}

/** Milliseconds of the whole prompt's attention in one layer, one entry per round. */
export interface SparseTimes {
  readonly length: number;
  readonly dense: number[];
  readonly selection: number[];
  readonly attention: number[];
  /** Share of the pages before the queries that were read. */
  readonly keysRead: number;
}

const CHUNK = 512;
const BLOCK = 32;
const EVERYTHING: Budget = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };
/** Reads little: fills the cache between the calls that are timed. */
const LITTLE: Budget = { tokens: 1, sinks: 0, local: 0, denseBelow: 0 };

export async function measureSparse(m: SparseMeasurement): Promise<SparseTimes> {
  const { ops, attention, shape, length, chunk = CHUNK, maxCalls = 8, rounds = 3 } = m;
  const features = m.policy.needs?.pooled;
  const tally = new AttentionTally();
  const plans: Record<"sparse" | "dense" | "filling", AttentionPlan> = {
    sparse: { policy: m.policy, budget: m.budget, features },
    dense: { policy: new DensePolicy(shape), budget: EVERYTHING },
    filling: { policy: new WindowPolicy(shape), budget: LITTLE, features },
  };
  const nCalls = Math.ceil(length / chunk);
  const step = Math.max(1, Math.floor(nCalls / maxCalls));
  const text = new MadeUpText(shape);
  const cache = attention.createCache();
  const sums = { dense: zeros(rounds), selection: zeros(rounds), attention: zeros(rounds) };
  let nTimed = 0;
  try {
    for (let call = 0; call < nCalls; call++) {
      const qLen = Math.min(chunk, length - cache.nTokens);
      using rows = text.next(ops, qLen);
      const run = (plan: AttentionPlan, commits = false) => timedCall(m, cache, plan, rows, BLOCK, commits);
      // The middle one of every `step` calls stands for all of them: the cost grows with the position.
      if (call % step === step >> 1) {
        if (nTimed === 0) for (const plan of [plans.dense, plans.sparse]) await run(plan);
        nTimed++;
        for (let round = 0; round < rounds; round++) {
          const dense = await run(plans.dense);
          const sparse = await run({ ...plans.sparse, tally: round === 0 ? tally : undefined });
          sums.dense[round]! += dense.selection + dense.attention;
          sums.selection[round]! += sparse.selection;
          sums.attention[round]! += sparse.attention;
        }
      }
      await run(plans.filling, true);
    }
  } finally {
    cache.dispose();
  }
  const whole = (times: number[]) => times.map((ms) => (ms * nCalls) / nTimed);
  return {
    length,
    dense: whole(sums.dense),
    selection: whole(sums.selection),
    attention: whole(sums.attention),
    keysRead: tally.fraction ?? 1,
  };
}
