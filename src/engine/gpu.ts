/** The GPU as the engine uses it: opened, tested before it is trusted, and made anew when it is lost. */

import type { SampledMasses } from "../attention/policy.ts";
import type { AttendCall, AttentionOps, Tensor, UnselectedCall } from "../backend/backend.ts";
import { GpuDevice } from "../backend/webgpu/device.ts";
import { type AppendCall, type HostTensors, HybridAttention } from "../backend/webgpu/hybrid-attention.ts";
import { selfTest } from "../backend/webgpu/self-test.ts";
import { InlayError } from "../errors.ts";
import type { Host } from "../host/host.ts";
import type { KvShape } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";

/** Opens the GPU. Rejects with `device-unavailable` where there is none. */
export async function openGpu(host: Host): Promise<GpuDevice> {
  const gpu = await host.gpu();
  if (gpu) return GpuDevice.create(gpu, { label: "inlay" });
  throw new InlayError(
    "device-unavailable",
    host.kind === "node"
      ? 'WebGPU in Node needs the package `webgpu` (npm install webgpu); or use device "wasm"'
      : "this browser has no WebGPU here (it needs HTTPS or localhost, and Chrome 113, Safari 26 or Firefox 141); " +
          'use device "wasm"',
  );
}

/** Rejects with `device-unavailable` if this GPU computes attention wrongly. */
export async function assertAttention(gpu: GpuDevice, shape: KvShape): Promise<void> {
  const { ok, maxError } = await selfTest(gpu, shape);
  if (!ok) throw selfTestError(gpu, "attention", maxError);
}

/** The error for a GPU that failed a self-test. */
export function selfTestError(gpu: GpuDevice, what: string, maxError: number): InlayError {
  return new InlayError(
    "device-unavailable",
    `the GPU (${gpu.adapterInfo}) computed ${what} wrongly in its self-test: the largest relative error is ` +
      `${maxError.toPrecision(2)}; use device "wasm" and report the GPU`,
    { adapter: gpu.adapterInfo, maxError },
  );
}

/** A device that is lost again and again is given up. */
const MAX_RECOVERIES = 3;

/** Opens lost devices again, but not forever. */
export class Recoveries {
  #n = 0;

  /** Runs `reopen`. Rejects with `device-lost` when that fails, or when it has succeeded too often. */
  async run(reopen: () => Promise<void>): Promise<void> {
    if (this.#n === MAX_RECOVERIES)
      throw new InlayError(
        "device-lost",
        `the GPU device was lost ${this.#n + 1} times; it is not opened again`,
      );
    try {
      await reopen();
      this.#n++;
    } catch (cause) {
      if (cause instanceof InlayError && cause.code === "device-lost") throw cause;
      throw new InlayError(
        "device-lost",
        `the GPU device was lost and could not be opened again: ${cause}`,
        {},
        { cause },
      );
    }
  }
}

/** Attention on a GPU that can be lost: after `recover` it works again, with empty caches. Owns the device. */
export class RecoverableAttention implements AttentionOps {
  readonly device = "webgpu";
  #gpu: GpuDevice;
  #attention: HybridAttention;
  readonly #recoveries = new Recoveries();

  private constructor(
    gpu: GpuDevice,
    attention: HybridAttention,
    private readonly host: HostTensors,
    private readonly shape: KvShape,
  ) {
    this.#gpu = gpu;
    this.#attention = attention;
  }

  /** Tests `gpu` and takes it over; it is disposed when this rejects. */
  static async open(gpu: GpuDevice, host: HostTensors, shape: KvShape): Promise<RecoverableAttention> {
    try {
      await assertAttention(gpu, shape);
      return new RecoverableAttention(gpu, await HybridAttention.create(gpu, host, shape), host, shape);
    } catch (error) {
      gpu.dispose();
      throw error;
    }
  }

  createCache(): PagedCache {
    return this.#attention.createCache();
  }

  attend(call: AttendCall): Promise<Tensor> {
    return this.#attention.attend(call);
  }

  sampleMasses(call: UnselectedCall, rows: Uint32Array): Promise<SampledMasses> {
    return this.#attention.sampleMasses(call, rows);
  }

  append(call: AppendCall): Promise<void> {
    return this.#attention.append(call);
  }

  /** A new device in place of a lost one. Rejects with `device-lost` if it cannot be had. */
  recover(): Promise<void> {
    return this.#recoveries.run(async () => {
      const gpu = await this.#gpu.recreate();
      this.#attention.dispose();
      this.#gpu = gpu;
      this.#attention = await HybridAttention.create(gpu, this.host, this.shape);
    });
  }

  memory(): { kv: number; scratch: number } {
    return this.#attention.memory();
  }

  /** Idempotent. */
  dispose(): void {
    this.#attention.dispose();
    this.#gpu.dispose();
  }
}
