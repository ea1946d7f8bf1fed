/**
 * Slots of one kind on the GPU: numbers that are handed out at once, and per layer one or two buffers for them, which
 * follow in `grow`: growing can fail, and WebGPU says so only later.
 */

import { InlayError, internalError } from "../../errors.ts";
import type { BufferGroup } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import { BufferUse } from "./usage.ts";

export interface SlotBuffersShape {
  readonly nLayers: number;
  /** Labels of a layer's buffers. */
  readonly names: readonly string[];
  /** Bytes of a slot in each of them. */
  readonly stride: number;
  readonly initialSlots: number;
  /** For messages: the pages' format. */
  readonly format: string;
}

export class SlotBuffers {
  /** Slots that the device's buffer limits allow. */
  readonly maxSlots: number;
  readonly #layers: (readonly GPUBuffer[] | undefined)[];
  readonly #free = new Set<number>();
  /** Slots [0, #nSlots) are in use or free. */
  #nSlots = 0;
  #disposed = false;

  /** Buffers belong to `group`, which their owner clears. */
  constructor(
    private readonly device: GpuDevice,
    private readonly group: BufferGroup,
    private readonly shape: SlotBuffersShape,
  ) {
    const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
    this.maxSlots = Math.floor(Math.min(maxBufferSize, maxStorageBufferBindingSize) / shape.stride);
    this.#layers = new Array<undefined>(shape.nLayers).fill(undefined);
  }

  /** The lowest free slot, so that buffers stay small. Throws `out-of-memory`. */
  allocate(): number {
    this.device.assertLive();
    if (this.#free.size > 0) {
      const slot = lowest(this.#free);
      this.#free.delete(slot);
      return slot;
    }
    if (this.#nSlots === this.maxSlots) {
      const { maxSlots } = this;
      const { stride, names, nLayers, format } = this.shape;
      throw new InlayError(
        "out-of-memory",
        `the KV cache needs more than ${maxSlots} pages of 32 tokens (${maxSlots * stride} bytes of keys per ` +
          `layer), which is all this GPU can bind; use a shorter contextLength or a smaller kvCache.format`,
        { maxSlots, slotBytes: stride * names.length * nLayers, format, adapter: this.device.adapterInfo },
      );
    }
    return this.#nSlots++;
  }

  release(slot: number): void {
    this.#free.add(slot);
  }

  /** The buffers of a layer, if they have `slots`. */
  layer(layer: number, slots: readonly number[]): readonly GPUBuffer[] {
    const buffers = this.#layers[layer];
    const capacity = this.#capacity(buffers);
    if (!buffers || slots.some((slot) => slot >= capacity))
      throw internalError(`layer ${layer} of the KV pages is used before prepare()`, { capacity });
    return buffers;
  }

  /** Forgets the buffers, which the group's owner destroys; growth under way rejects with `disposed`. */
  dispose(): void {
    this.#disposed = true;
    this.#layers.fill(undefined);
  }

  /** Gives every slot that was handed out its bytes. Rejects with `out-of-memory`; what was cached stays intact. */
  async grow(): Promise<void> {
    // Layer by layer, so that only one layer is held twice at a time.
    for (let layer = 0; layer < this.shape.nLayers; layer++) await this.#grow(layer);
  }

  async #grow(layer: number): Promise<void> {
    const old = this.#layers[layer];
    const capacity = this.#capacity(old);
    const needed = this.#nSlots;
    if (capacity >= needed) return;
    const { stride, initialSlots, names, format } = this.shape;
    const nSlots = Math.min(this.maxSlots, Math.max(needed, 2 * capacity, initialSlots));
    const byteLength = nSlots * stride;
    const made: GPUBuffer[] = [];
    try {
      const details = { layer, nSlots, byteLength, heldBytes: this.group.bytes, format };
      await this.device.guarded(
        `growing the KV cache to ${nSlots * 32} tokens (layer ${layer})`,
        details,
        () => {
          for (const name of names)
            made.push(this.group.create(`${name}${layer}`, byteLength, BufferUse.storage));
        },
      );
      if (this.#disposed) throw new InlayError("disposed", "the KV pages were disposed");
    } catch (error) {
      for (const buffer of made) this.group.destroy(buffer);
      throw error;
    }
    // From here on without a pause, so that nobody writes to the old pages after they were copied.
    if (old) {
      const encoder = this.device.handle.createCommandEncoder({ label: `${this.device.label} kv grow` });
      for (const [i, buffer] of old.entries())
        encoder.copyBufferToBuffer(buffer, 0, made[i]!, 0, buffer.size);
      this.device.handle.queue.submit([encoder.finish()]);
      for (const buffer of old) this.group.destroy(buffer);
    }
    this.#layers[layer] = made;
  }

  #capacity(buffers: readonly GPUBuffer[] | undefined): number {
    return buffers ? Math.floor(buffers[0]!.size / this.shape.stride) : 0;
  }
}

function lowest(numbers: Iterable<number>): number {
  let least = Number.POSITIVE_INFINITY;
  for (const n of numbers) least = Math.min(least, n);
  return least;
}
