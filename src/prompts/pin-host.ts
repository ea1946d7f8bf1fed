/** What pinned prompts need of the engine. */

import type { PageConverter } from "../backend/wasm/page-converter.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import type { GenerateContext } from "../generate/generate.ts";
import type { Prompt } from "../generate/request.ts";
import type { RopeSpec } from "../model/rope.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import type { PromptStore } from "../storage/prompt-store.ts";
import type { BitsChooser } from "./choose-bits.ts";
import type { ModelIdentity, PromptManifest, PromptShape } from "./manifest.ts";
import { PageFeatures } from "./page-features.ts";
import type { Squeezer } from "./squeeze.ts";

/** One's turn in the engine's queue. */
export interface Turn {
  readonly context: GenerateContext;
  readonly checkpoint: Checkpoint;
  readonly signal: AbortSignal;
  leave(): void;
}

/** The engine, as pinned prompts see it. */
export interface PinHost {
  openStore(): PromptStore;
  /** Rejects with `unsupported-environment` where models have no fingerprint. */
  identify(): ModelIdentity;
  /** How caches keep their pages: `cold` is what they quantize them to by themselves. */
  readonly shape: PromptShape;
  /** How prompts are attended to. */
  readonly plan: AttentionPlan;
  readonly rope: RopeSpec;
  readonly pages: PageConverter;
  readonly squeezer: Squeezer;
  readonly bitsChooser: BitsChooser;
  readonly contextLength: number;
  encode(prompt: Prompt): Uint32Array;
  decode(ids: Uint32Array): string;
  enter(signal: AbortSignal | undefined): Promise<Turn>;
}

/** What is remembered of a prompt's keys; undefined where no policy asks. */
export function featuresOf(
  { plan, rope, pages }: Pick<PinHost, "plan" | "rope" | "pages">,
  manifest: PromptManifest,
): PageFeatures | undefined {
  return plan.features && new PageFeatures(plan.features, manifest, rope, pages);
}
