/** From the `attention` options to the policies that read prompts and write answers. */

import type { BoundaryScore } from "../attention/boundaries.ts";
import type { PolicyName } from "../attention/names.ts";
import { createPolicy } from "../attention/policies.ts";
import type { Budget, SelectionPolicy } from "../attention/policy.ts";
import { InlayError } from "../errors.ts";
import type { ModelConfig } from "../model/config.ts";
import { attentionShape } from "../model/forward.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import type { EngineOptions } from "../options.ts";
import type { DevicePair } from "./device-pair.ts";

/** How prompts are attended to, and how decoding is. */
export interface AttentionPlans {
  readonly prefill: AttentionPlan;
  readonly decode: AttentionPlan;
}

/**
 * Prefill with a sparse method: what is always read is the first page and the neighbourhood of the block; no budget is
 * smaller than `tokens`, or it would be little else.
 */
export const SPARSE_BUDGET = { tokens: 256, sinks: 32, local: 64, denseBelow: 0 } as const;
/** Generated tokens nearest to the one being generated (algorithms.md A.6). */
const DECODE_LOCAL = 512;

/**
 * Up to this many keys "auto" is dense. Attention breaks even at about 1K tokens and is twice as fast at 2K in WASM
 * (bench/attention.ts); below that, prefill as a whole gains too little to be worth any loss.
 */
export const AUTO_DENSE_BELOW = 2048;

/** Plans for a model on a device; `boundaryScore` as in `FeatureShape`. Throws `invalid-option` for head budgets of other heads. */
export function attentionPlans(
  config: ModelConfig,
  contextLength: number,
  { attention }: { readonly attention: Omit<EngineOptions["attention"], "boundaries"> },
  { kind }: Pick<DevicePair, "kind">,
  boundaryScore?: BoundaryScore,
): AttentionPlans {
  const shape = attentionShape(config);
  const perKvHead = headFactors(config, attention.headBudgets);
  const make = (name: PolicyName) => createPolicy(name, shape, config.attentionScale);
  const open = (option: "prefill" | "decode", auto: PolicyName): AttentionPlan => {
    const asked = attention[option];
    const isAuto = asked === "auto";
    const policy = make(isAuto ? auto : asked);
    const budget = budgetOf(policy, option, attention.budget, isAuto ? AUTO_DENSE_BELOW : 0);
    return { policy, budget: { ...budget, perKvHead } };
  };
  // A context that never leaves the dense range needs no features of its keys. On device "webgpu" a sparse policy reads
  // something back in every layer; whether that pays has been measured on software adapters only.
  const isSparse = contextLength > AUTO_DENSE_BELOW && kind !== "webgpu";
  const prefill = open("prefill", isSparse ? "dhsa" : "dense");
  const decode = open("decode", "dense");
  // Keys are remembered in both phases for whichever reads them: the next prompt goes on from this answer.
  const pooled = prefill.policy.needs?.pooled ?? decode.policy.needs?.pooled;
  const features = pooled && { ...pooled, boundaryScore };
  return { prefill: { ...prefill, features }, decode: { ...decode, features } };
}

const EVERYTHING: Budget = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };

function budgetOf(
  policy: SelectionPolicy,
  phase: "prefill" | "decode",
  fraction: number,
  denseBelow: number,
): Budget {
  if (policy.name === "dense") return EVERYTHING;
  const local = phase === "prefill" ? SPARSE_BUDGET.local : DECODE_LOCAL;
  return { ...SPARSE_BUDGET, fraction, local, denseBelow };
}

/** Throws `invalid-option` where the factors are not those of this model's heads. */
function headFactors(
  { nLayers, nKvHeads }: ModelConfig,
  factors: readonly (readonly number[])[] | null,
): Float32Array | undefined {
  if (!factors) return undefined;
  const wrong = factors.find((heads) => heads.length !== nKvHeads);
  if (factors.length === nLayers && !wrong) return Float32Array.from(factors.flat());
  throw new InlayError(
    "invalid-option",
    `attention.headBudgets has ${factors.length} layers${wrong ? `, one of them of ${wrong.length} heads` : ""}; ` +
      `this model has ${nLayers} layers of ${nKvHeads} KV heads`,
    { option: "attention.headBudgets", layers: factors.length, nLayers, nKvHeads },
  );
}
