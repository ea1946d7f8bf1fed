/**
 * The webgpu pair: linear algebra and attention on one GPU device, one row of logits read back per token.
 *
 * A lost device takes weights and cached keys with it. `recreate` opens an empty pair on a new device; the caller
 * streams the model file into its `ops` again (engine/reload.ts), drops what it had cached, and goes on. Nothing is
 * kept on the host for that: a second copy of the weights would cost as much memory as the first.
 */

import type { GpuDevice } from "./device.ts";
import { GpuOps } from "./gpu-ops.ts";
import { GpuPairAttention } from "./gpu-pair-attention.ts";
import type { KernelShape } from "./kernels.ts";

export interface WebgpuPair {
  readonly gpu: GpuDevice;
  readonly ops: GpuOps;
  readonly attention: GpuPairAttention;
  /** Bytes of all GPU buffers. */
  gpuBytes(): number;
  /** The same pair, empty, on a new device. This one, whose device is lost, is still to be disposed. */
  recreate(): Promise<WebgpuPair>;
  /** Destroys all buffers and the device; calls under way reject. Idempotent. */
  dispose(): void;
}

/** Compiles the kernels for `shape` on `gpu`, which the pair takes over; it is disposed when this rejects. */
export async function openWebgpuPair(gpu: GpuDevice, shape: KernelShape): Promise<WebgpuPair> {
  try {
    const ops = await GpuOps.create(gpu);
    const attention = await GpuPairAttention.create(ops, shape);
    return {
      gpu,
      ops,
      attention,
      gpuBytes() {
        const linear = ops.memory();
        const { kv, scratch } = attention.memory();
        return linear.weights + linear.scratch + kv + scratch;
      },
      recreate: async () => openWebgpuPair(await gpu.recreate(), shape),
      dispose() {
        ops.dispose();
        attention.dispose();
        gpu.dispose();
      },
    };
  } catch (error) {
    gpu.dispose();
    throw error;
  }
}
