/** The webgpu pair as the engine uses it: tested before it is trusted, and made anew, weights included, when it is lost. */

import type { AttentionOps, Ops } from "../backend/backend.ts";
import type { GpuDevice } from "../backend/webgpu/device.ts";
import { linearSelfTest, type TrustedOps } from "../backend/webgpu/linear-self-test.ts";
import { openWebgpuPair, type WebgpuPair } from "../backend/webgpu/webgpu-pair.ts";
import type { TensorType } from "../gguf/tensor-types.ts";
import type { KvShape } from "../kv/page.ts";
import { assertAttention, Recoveries, selfTestError } from "./gpu.ts";

/** Linear algebra and attention on a GPU that can be lost. Owns the device. */
export class RecoverablePair {
  #pair: WebgpuPair;
  readonly #recoveries = new Recoveries();

  private constructor(pair: WebgpuPair) {
    this.#pair = pair;
  }

  /**
   * Tests `gpu` with the model's shape and its types of matrices, against `trusted`, and takes it over; it is
   * disposed when this rejects.
   */
  static async open(
    gpu: GpuDevice,
    shape: KvShape,
    trusted: TrustedOps,
    types: Iterable<TensorType>,
  ): Promise<RecoverablePair> {
    try {
      await assertAttention(gpu, shape);
      const { ok, maxError, worst } = await linearSelfTest(gpu, trusted, types);
      if (!ok) throw selfTestError(gpu, `a matrix product (${worst})`, maxError);
    } catch (error) {
      gpu.dispose();
      throw error;
    }
    return new RecoverablePair(await openWebgpuPair(gpu, shape));
  }

  /** Of the present device. */
  get ops(): Ops {
    return this.#pair.ops;
  }

  /** Of the present device. */
  get attention(): AttentionOps {
    return this.#pair.attention;
  }

  /**
   * A new device in place of a lost one; `reload` puts the weights into its linear algebra. Rejects with `device-lost`
   * if that cannot be had; the lost one stays then, and this may be tried again.
   */
  recover(reload: (ops: Ops) => Promise<void>): Promise<void> {
    return this.#recoveries.run(async () => {
      const pair = await this.#pair.recreate();
      try {
        await reload(pair.ops);
      } catch (error) {
        pair.dispose();
        throw error;
      }
      this.#pair.dispose();
      this.#pair = pair;
    });
  }

  /** Bytes of all GPU buffers. */
  gpuBytes(): number {
    return this.#pair.gpuBytes();
  }

  /** Idempotent. */
  dispose(): void {
    this.#pair.dispose();
  }
}
