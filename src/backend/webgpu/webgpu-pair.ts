/**
 * The webgpu pair: linear algebra and attention on one GPU device, one row of logits read back per token.
 *
 * A lost device takes weights and cached keys with it. `recreate` opens an empty pair on a new device; the caller
 * streams the model file into its `ops` again (model/weights.ts, `loadWeights`), drops what it had cached, and goes on.
 * Nothing is kept on the host for that: a second copy of the weights would cost as much memory as the first.
 */

import type { InlayError } from "../../errors.ts";
import type { GpuAttentionOptions } from "./attention.ts";
import type { GpuDevice } from "./device.ts";
import { GpuOps, type GpuOpsOptions } from "./gpu-ops.ts";
import { GpuPairAttention } from "./gpu-pair-attention.ts";
import type { KernelShape } from "./kernels.ts";

/** Options of {@link openWebgpuPair}. */
export interface WebgpuPairOptions {
  readonly ops?: GpuOpsOptions;
  readonly attention?: GpuAttentionOptions;
}

export interface WebgpuPair {
  readonly gpu: GpuDevice;
  readonly ops: GpuOps;
  readonly attention: GpuPairAttention;
  /** Resolves when the device is lost, or disposed, with the error that calls then reject with. */
  readonly lost: Promise<InlayError>;
  /** Bytes of all GPU buffers. */
  gpuBytes(): number;
  /** The same pair, empty, on a new device, which the caller then owns. This one must be disposed first. */
  recreate(): Promise<WebgpuPair>;
  /** Destroys all buffers; calls under way reject. The device stays the caller's. Idempotent. */
  dispose(): void;
}

/** Opens the pair on `gpu` for a model of this shape. Weights come through `ops.createWeight`. */
export async function openWebgpuPair(
  gpu: GpuDevice,
  shape: KernelShape,
  options: WebgpuPairOptions = {},
): Promise<WebgpuPair> {
  const ops = await GpuOps.create(gpu, options.ops);
  const attention = await GpuPairAttention.create(ops, shape, options.attention);
  return {
    gpu,
    ops,
    attention,
    lost: gpu.lost,
    gpuBytes() {
      const linear = ops.memory();
      const { kv, scratch } = attention.memory();
      return linear.weights + linear.scratch + kv + scratch;
    },
    recreate: async () => openWebgpuPair(await gpu.recreate(), shape, options),
    dispose() {
      ops.dispose();
      attention.dispose();
    },
  };
}
