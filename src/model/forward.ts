/**
 * The forward pass: token ids in, logits out, keys and values into the cache.
 *
 *     embed ▸ [ norm ▸ q k v ▸ RoPE ▸ append ▸ ATTEND ▸ output ▸ norm ▸ gated FFN ] × nLayers ▸ norm ▸ logits
 *
 * One call takes a run of tokens of one sequence: a chunk of a prompt (prefill) or one token (decode).
 */

import type { AttentionShape, QueryBlocks } from "../attention/policy.ts";
import { SQUEEZED_BLOCK } from "../attention/squeezed.ts";
import { SqueezedPrefix } from "../attention/squeezed-prefix.ts";
import type { AttentionOps, Ops, Tensor } from "../backend/backend.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { ArrivingPages } from "../kv/arriving-pages.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import type { ModelConfig } from "./config.ts";
import { decoderLayer, type ForwardCall } from "./layer.ts";
import { type RopeSpec, ropeTable } from "./rope.ts";
import { type AttentionPlan, PageSelector } from "./select-pages.ts";
import type { ModelWeights } from "./weights.ts";

/** A model ready to run on one device. */
export interface Transformer {
  readonly config: ModelConfig;
  readonly weights: ModelWeights;
  readonly rope: RopeSpec;
  readonly ops: Ops;
  readonly attention: AttentionOps;
}

export type { AttentionPlan };

/** Which positions' logits are wanted: none while a prompt is not yet complete, all for perplexity. */
export type WantedLogits = "none" | "last" | "all";

/** Queries of a block in prefill: as many as a page has tokens. */
const PREFILL_BLOCK = 32;

/**
 * Runs `ids` at positions [cache.nTokens, + ids.length). On success the tokens are committed to the cache; on any
 * failure or abort the cache is as before. Returns logits (1 or ids.length, vocabSize), or undefined for "none".
 */
export async function forward(
  model: Transformer,
  cache: PagedCache,
  ids: Uint32Array,
  plan: AttentionPlan,
  wanted: WantedLogits,
  checkpoint: Checkpoint,
): Promise<Float32Array | undefined> {
  const { config, weights, rope, ops, attention } = model;
  const pos = cache.nTokens;
  const blocks: QueryBlocks = {
    qStart: pos,
    qLen: ids.length,
    blockSize: blockQueries(cache, ids.length),
    denseFrom: plan.denseFrom,
  };
  try {
    cache.reserve(ids.length);
    using x = ops.embed(weights.tokenEmbedding, ids); // (nTokens, dModel)
    using angles = ops.ropeAngles(ropeTable(rope, pos, ids.length));
    using selector = new PageSelector(ops, attention, attentionShape(config), plan, cache, blocks);
    const arriving = cache.isComplete ? undefined : cache.companion(ArrivingPages);
    const arrived = async (layer: number) => arriving?.bring(layer, cache, checkpoint);
    const call: ForwardCall = { config, ops, attention, cache, angles, blocks, selector, arrived };
    for (const [layer, w] of weights.layers.entries()) {
      await decoderLayer(call, w, layer, x);
      await checkpoint.pass();
    }
    const logits = await finish(model, selector, x, wanted);
    cache.commit(ids.length);
    return logits;
  } catch (error) {
    cache.truncate(pos);
    throw error;
  }
}

/** Queries that share a selection, in a call of `n`. */
function blockQueries(cache: PagedCache, n: number): number {
  if (n === 1) return 1;
  return cache.companion(SqueezedPrefix)?.policy ? SQUEEZED_BLOCK : PREFILL_BLOCK;
}

/** What selection policies need to know of a model. */
export function attentionShape(config: ModelConfig): AttentionShape {
  const { nLayers, nHeads, nKvHeads, headDim, windows } = config;
  return { nLayers, nHeads, nKvHeads, headDim, window: windows };
}

/** Final norm and output matrix, for the last token or for all; reads the logits and what the selector left to be read. */
async function finish(
  model: Transformer,
  selector: PageSelector,
  x: Tensor,
  wanted: WantedLogits,
): Promise<Float32Array | undefined> {
  if (wanted === "none") return selector.collect();
  const { config, weights, ops } = model;
  using rows = wanted === "last" && x.nTokens > 1 ? ops.row(x, x.nTokens - 1) : undefined;
  using normed = ops.rmsNorm(rows ?? x, weights.outputNorm, config.rmsEps);
  const [logits] = ops.linear(normed, [{ weight: weights.output }]);
  try {
    return await selector.collect(logits);
  } finally {
    logits![Symbol.dispose]();
  }
}
