/** What is to be pinned and how, and whether just that is stored already. */

import { InlayError } from "../errors.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import { type CodingChoice, isCodedSo, type PinBits } from "./coding.ts";
import type { PinnedContent } from "./content.ts";
import type { PromptManifest } from "./manifest.ts";
import { LEAST_SQUEEZED_TOKENS, type SqueezeRequest } from "./squeeze.ts";

/** What is to be pinned. */
export interface PinRequest {
  readonly id: string;
  readonly content: PinnedContent;
  /** undefined: as the cache quantizes its pages; where it does not, 2, but 4 for heads that would lose too much. */
  readonly bits: PinBits | undefined;
  /** Share of its keys that answers leave out, 0 to below 1. @default 0 */
  readonly sparsity?: number | undefined;
  /** See SqueezedOptions. @default 1 */
  readonly maxMissing?: number | undefined;
  /** Stored encrypted. */
  readonly encrypt: boolean;
  /** Key of an open prompt that `content` comes after. */
  readonly on?: string | undefined;
}

/**
 * How the prompt of a request is to be squeezed; undefined: not at all. Throws `invalid-option` where that does not go with the
 * prompt that it is pinned on: sorting would move tokens that the two share.
 */
export function squeezeRequest(
  { sparsity = 0, maxMissing = 1 }: PinRequest,
  nTokens: number,
  base: PromptManifest | undefined,
): SqueezeRequest | undefined {
  if (base && (sparsity > 0 || base.squeezed))
    throw new InlayError(
      "invalid-option",
      base.squeezed
        ? `the prompt ${JSON.stringify(base.id)} was pinned with a sparsity of ${base.squeezed.sparsity}, and only those with ` +
            "sparsity: 0 can be gone on from: pin it with that, or pin both together"
        : `sparsity is ${sparsity}, and a prompt that goes on another one is read whole: leave it out, or pin both together`,
      { option: base.squeezed ? "on" : "sparsity", value: base.squeezed ? base.id : sparsity },
    );
  return sparsity > 0 && nTokens >= LEAST_SQUEEZED_TOKENS ? { sparsity, maxMissing } : undefined;
}

/** How a prompt of `nTokens` is attended to: "dense", or a policy and the share of the keys that it reads. */
export function attentionOf({ policy, budget }: AttentionPlan, nTokens: number): string {
  const isDense = policy.name === "dense" || nTokens <= budget.denseBelow;
  return isDense ? "dense" : `${policy.name} ${budget.fraction}`;
}

/**
 * Whether a stored prompt is the one of `draft`: same text and tokens, whose SHA-256 are `known`, computed in the same way.
 */
export function isSamePrompt(
  stored: PromptManifest,
  draft: PromptManifest,
  choice: CodingChoice,
  squeeze: SqueezeRequest | undefined,
  known: readonly string[],
): boolean {
  return (
    stored.attention === draft.attention &&
    isCodedSo(stored.shape, choice) &&
    stored.squeezed?.sparsity === squeeze?.sparsity &&
    stored.squeezed?.maxMissing === squeeze?.maxMissing &&
    known.every((digest, i) => stored.records[i]!.sha256 === digest)
  );
}
