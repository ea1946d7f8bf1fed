/** The rotary-embedding part of a model's configuration: which dimensions turn, how fast, and how it is stretched. */

import { InlayError } from "../errors.ts";
import type { Metadata } from "../gguf/metadata.ts";
import { bounded, invalid, real } from "./metadata-bounds.ts";

/** How positions beyond the training length are brought back into range. */
export type RopeScaling =
  | { readonly type: "none" }
  /** Every position is divided by `factor` (Chen et al. 2023, arXiv:2306.15595). */
  | { readonly type: "linear"; readonly factor: number }
  /** Slow pairs are interpolated, fast ones kept (YaRN, Peng et al. 2023, arXiv:2309.00071). */
  | {
      readonly type: "yarn";
      readonly factor: number;
      readonly originalContextLength: number;
      /** Rotations over the original context above which a pair is kept as it is. */
      readonly betaFast: number;
      /** Rotations below which a pair is fully interpolated. */
      readonly betaSlow: number;
      /** How much of the ramp is applied; 1 in every known model. */
      readonly extFactor: number;
      /** Multiplies cos and sin on top of YaRN's own 0.1 ln(factor) + 1. */
      readonly attnFactor: number;
    };

export interface RopeConfig {
  /** Rotated dimensions of each head, the first ones: even, at most headDim. */
  readonly nRot: number;
  readonly freqBase: number;
  /** Which dimensions form a pair: (2i, 2i+1), ggml's NORM, or (i, i + nRot/2), ggml's NEOX. */
  readonly pairs: "adjacent" | "halves";
  readonly scaling: RopeScaling;
  /** `rope_freqs.weight` holds nRot / 2 divisors of the frequencies (Llama 3.1 and later). */
  readonly hasFactors: boolean;
}

interface RopeContext {
  readonly headDim: number;
  readonly contextLength: number;
  readonly hasFactors: boolean;
}

/** Longest stretch that makes sense; published models go to 64. */
const MAX_FACTOR = 4096;

export function readRopeConfig(metadata: Metadata, architecture: string, context: RopeContext): RopeConfig {
  const key = (name: string) => `${architecture}.rope.${name}`;
  const nRot = bounded(metadata, key("dimension_count"), 2, context.headDim, context.headDim);
  if (nRot % 2 !== 0)
    throw invalid(metadata, `${key("dimension_count")} is ${nRot}; it must be even`, { nRot });
  return {
    nRot,
    freqBase: real(metadata, key("freq_base"), 1, 1e12, 10_000),
    // The converters permute q and k of Llama models so that pairs are neighbours, and leave Qwen's as they are.
    pairs: architecture === "llama" ? "adjacent" : "halves",
    scaling: readScaling(metadata, key, context.contextLength),
    hasFactors: context.hasFactors,
  };
}

function readScaling(metadata: Metadata, key: (name: string) => string, contextLength: number): RopeScaling {
  const type = metadata.string(key("scaling.type"), "linear");
  const factorKey = metadata.has(key("scaling.factor")) ? key("scaling.factor") : key("scale_linear");
  const stored = metadata.number(factorKey, 0);
  if (stored < 0 || stored > MAX_FACTOR) {
    throw invalid(metadata, `${factorKey} is ${stored}; it must be from 0 (no scaling) to ${MAX_FACTOR}`, {
      stored,
    });
  }
  // Early files write 0 for "no scaling".
  const factor = stored === 0 ? 1 : stored;
  if (type === "none") return { type: "none" };
  if (type === "linear") return factor === 1 ? { type: "none" } : { type: "linear", factor };
  if (type !== "yarn" || metadata.number(key("scaling.yarn_log_multiplier"), 0) !== 0) {
    const found = type === "yarn" ? "yarn with a log multiplier" : JSON.stringify(type);
    throw new InlayError(
      "unsupported-model",
      `${metadata.fileName}: the RoPE scaling (${key("scaling.type")}) is ${found}; none, linear and yarn can be run`,
      { scaling: type },
    );
  }
  return {
    type: "yarn",
    factor,
    originalContextLength: bounded(
      metadata,
      key("scaling.original_context_length"),
      1,
      1 << 24,
      contextLength,
    ),
    betaFast: real(metadata, key("scaling.yarn_beta_fast"), 0, 1e4, 32),
    betaSlow: real(metadata, key("scaling.yarn_beta_slow"), 0, 1e4, 1),
    extFactor: readExtFactor(metadata, key("scaling.yarn_ext_factor")),
    attnFactor: real(metadata, key("scaling.attn_factor"), 0, 100, 1),
  };
}

/** Negative means "as usual" in llama.cpp. */
function readExtFactor(metadata: Metadata, key: string): number {
  const stored = metadata.number(key, -1);
  if (stored < 0) return 1;
  if (stored <= 1) return stored;
  throw invalid(metadata, `${key} is ${stored}; it must be from 0 to 1`, { key });
}
