/**
 * Results on their way from the GPU to the host: host-visible buffers, reused, and the one place that maps them.
 */

import { BufferGroup, roundUpSize } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import { keepAwake } from "./firefox-poll.ts";
import { BufferUse, MAP_MODE_READ } from "./usage.ts";

export class ReadBacks {
  readonly #group: BufferGroup;
  #free: GPUBuffer[] = [];

  constructor(private readonly device: GpuDevice) {
    this.#group = new BufferGroup(device, "read-back");
  }

  get bytes(): number {
    return this.#group.bytes;
  }

  /**
   * Runs `record`, which encodes a copy of `byteLength` bytes into the buffer it is given and submits it, waits for
   * the copy, and returns what `use` makes of the bytes. `use` must not keep them. Whatever fails, no buffer
   * stays mapped. Rejects as `GpuDevice.guarded` does.
   */
  async read<T>(
    what: string,
    byteLength: number,
    record: (target: GPUBuffer) => void,
    use: (bytes: ArrayBuffer) => T,
  ): Promise<T> {
    let target: GPUBuffer | undefined;
    try {
      // The host needs the rows for the next matmul, so this map is awaited: once per attention call.
      const mapped = await this.device.guarded(what, { byteLength }, async () => {
        const buffer = this.#take(byteLength);
        target = buffer;
        record(buffer);
        const pending = buffer.mapAsync(MAP_MODE_READ, 0, byteLength);
        if (this.device.needsWaking) void keepAwake(this.device.handle, pending);
        await pending;
        return buffer;
      });
      const result = use(mapped.getMappedRange(0, byteLength));
      mapped.unmap();
      this.#free.push(mapped);
      target = undefined;
      return result;
    } finally {
      // Destroying unmaps, and settles a pending map.
      if (target) this.#group.destroy(target);
    }
  }

  /** Destroys the buffers; a read that is under way rejects. Idempotent. */
  dispose(): void {
    this.#free = [];
    this.#group.clear();
  }

  /** The smallest free buffer that is large enough; smaller ones are replaced rather than kept. */
  #take(byteLength: number): GPUBuffer {
    const fit = this.#free.findIndex((buffer) => buffer.size >= byteLength);
    const found = fit >= 0 ? this.#free.splice(fit, 1)[0] : undefined;
    if (found) return found;
    for (const small of this.#free.splice(0)) this.#group.destroy(small);
    return this.#group.create("rows", roundUpSize(byteLength), BufferUse.readBack);
  }
}
