/** One decoder layer: attention and feed-forward, each behind an RMSNorm and added to the residual stream. */

import type { QueryBlocks } from "../attention/policy.ts";
import type { AttentionOps, Ops, RopeAngles, Tensor, UnselectedCall } from "../backend/backend.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import type { ModelConfig } from "./config.ts";
import type { PageSelector } from "./select-pages.ts";
import type { LayerWeights } from "./weights.ts";

/** What stays the same for all layers of one forward call. */
export interface ForwardCall {
  readonly config: ModelConfig;
  readonly ops: Ops;
  readonly attention: AttentionOps;
  readonly cache: PagedCache;
  readonly angles: RopeAngles;
  readonly blocks: QueryBlocks;
  readonly selector: PageSelector;
  /** Resolves when the layer's keys and values before the call's are in the cache. Rejects if they cannot be read. */
  arrived(layer: number): Promise<void>;
}

/** Updates the residual stream `x` (nTokens, dModel) in place. */
export async function decoderLayer(
  call: ForwardCall,
  w: LayerWeights,
  layer: number,
  x: Tensor,
): Promise<void> {
  const { config, ops } = call;
  {
    using normed = ops.rmsNorm(x, w.attnNorm, config.rmsEps); // (nTokens, dModel)
    using attended = await selfAttention(call, w, layer, normed); // (nTokens, nHeads * headDim)
    ops.linearAdd(attended, { weight: w.attnOutput }, x);
  }
  using normed = ops.rmsNorm(x, w.ffnNorm, config.rmsEps); // (nTokens, dModel)
  using gated = ops.gatedLinear(normed, w.ffnGate, w.ffnUp, "silu"); // (nTokens, dFfn)
  ops.linearAdd(gated, { weight: w.ffnDown }, x);
}

/** q, k, v of every token, rotated; k and v join the cache; returns the attended heads (nTokens, nHeads * headDim). */
async function selfAttention(call: ForwardCall, w: LayerWeights, layer: number, x: Tensor): Promise<Tensor> {
  const { config, ops, attention, cache, angles, blocks, selector, arrived } = call;
  const [q, k, v] = ops.linear(x, [
    { weight: w.q, bias: w.qBias },
    { weight: w.k, bias: w.kBias },
    { weight: w.v, bias: w.vBias },
  ]);
  try {
    if (w.qNorm) ops.rmsNormHeadsInPlace(q!, w.qNorm, config.rmsEps);
    if (w.kNorm) ops.rmsNormHeadsInPlace(k!, w.kNorm, config.rmsEps);
    await arrived(layer);
    selector.beforeRope(layer, k!);
    ops.ropeInPlace(q!, angles, config.headDim);
    ops.ropeInPlace(k!, angles, config.headDim);
    await selector.checkRows(layer, k!, v!);
    const unselected: UnselectedCall = {
      layer,
      q: q!,
      k: k!,
      v: v!,
      cache,
      blocks,
      scale: config.attentionScale,
      window: config.windows[layer],
    };
    const selected = await selector.select(unselected);
    await selector.observe(unselected, selected);
    return await attention.attend({ ...unselected, ...selected });
  } finally {
    for (const tensor of [q, k, v]) tensor![Symbol.dispose]();
  }
}
