/**
 * Where the pages of the KV cache live on the GPU: per layer one buffer of keys and one of values, in which slot p
 * of KV head h starts at page p * nKvHeads + h. The layout inside a page is src/kv/page.ts's.
 *
 * Slots are numbers, handed out at once. Buffers follow in `prepare`, which grows them and carries out the copies
 * asked for since: growing can fail, and WebGPU says so only later. Everything that writes to pages calls
 * `prepare` first, so a copy always sees the page as it was when the copy was asked for.
 */

import { InlayError, internalError } from "../../errors.ts";
import { type PageFormat, pageBytes } from "../../kv/page.ts";
import type { SlotStore } from "../../kv/paged-cache.ts";
import { BufferGroup } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import { ReadBacks } from "./read-back.ts";
import { BufferUse } from "./usage.ts";

/** What a page store must know of the model. */
export interface PageStoreShape {
  readonly nLayers: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly format: PageFormat;
}

/** The pages of one layer. */
interface LayerPages {
  k: GPUBuffer;
  v: GPUBuffer;
}

export class GpuPageStore implements SlotStore {
  readonly slotBytes: number;
  readonly format: PageFormat;
  /** Slots that the device's buffer limits allow. */
  readonly maxSlots: number;
  /** Bytes of a slot in one of a layer's two buffers. */
  readonly #stride: number;
  readonly #group: BufferGroup;
  readonly #layers: (LayerPages | undefined)[];
  readonly #free = new Set<number>();
  /** Slots [0, #nSlots) are in use or free. */
  #nSlots = 0;
  #copies: { from: number; to: number }[] = [];
  #preparing: Promise<void> = Promise.resolve();
  #disposed = false;

  constructor(
    private readonly device: GpuDevice,
    private readonly shape: PageStoreShape,
    private readonly initialSlots: number,
  ) {
    this.#stride = shape.nKvHeads * pageBytes(shape.format, shape.headDim);
    this.format = shape.format;
    this.slotBytes = shape.nLayers * 2 * this.#stride;
    const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
    this.maxSlots = Math.floor(Math.min(maxBufferSize, maxStorageBufferBindingSize) / this.#stride);
    this.#group = new BufferGroup(device, "kv");
    this.#layers = new Array<LayerPages | undefined>(shape.nLayers).fill(undefined);
  }

  /** Bytes of the buffers, free slots included. */
  get bytes(): number {
    return this.#group.bytes;
  }

  /** The lowest free slot, so that buffers stay small. */
  allocate(): number {
    this.device.assertLive();
    if (this.#free.size > 0) {
      const slot = lowest(this.#free);
      this.#free.delete(slot);
      return slot;
    }
    if (this.#nSlots === this.maxSlots) {
      const { maxSlots, slotBytes } = this;
      throw new InlayError(
        "out-of-memory",
        `the KV cache needs more than ${maxSlots} pages of 32 tokens (${maxSlots * this.#stride} bytes of keys per ` +
          `layer), which is all this GPU can bind; use a shorter contextLength or a smaller kvCache.format`,
        { maxSlots, slotBytes, format: this.shape.format, adapter: this.device.adapterInfo },
      );
    }
    return this.#nSlots++;
  }

  release(slot: number): void {
    this.#free.add(slot);
  }

  /** Copies the whole slot, at the next `prepare`. */
  copy(from: number, to: number, _nTokens: number): void {
    this.#copies.push({ from, to });
  }

  layerBytes(slots: readonly number[]): number {
    return slots.length * 2 * this.#stride;
  }

  /** Reads back one layer of `slots`, with no recorded command unsubmitted. */
  async read(layer: number, slots: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
    await this.prepare();
    const byteLength = this.layerBytes(slots);
    const readBacks = new ReadBacks(this.device);
    try {
      return await readBacks.read(
        `reading ${slots.length} KV pages of layer ${layer}`,
        byteLength,
        (target) => {
          const encoder = this.device.handle.createCommandEncoder({ label: `${this.device.label} kv read` });
          for (const { buffer, offset, at, size } of this.#places(layer, slots))
            encoder.copyBufferToBuffer(buffer, offset, target, at, size);
          this.device.handle.queue.submit([encoder.finish()]);
        },
        (bytes) => new Uint8Array(bytes.slice(0, byteLength)),
      );
    } finally {
      readBacks.dispose();
    }
  }

  /** Uploads one layer of `slots`, with no recorded command unsubmitted. */
  async write(layer: number, slots: readonly number[], pages: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.prepare();
    this.device.assertLive();
    for (const { buffer, offset, at, size } of this.#places(layer, slots))
      this.device.handle.queue.writeBuffer(buffer, offset, pages, at, size);
  }

  /** Where each page of (slots, nKvHeads, K then V) lies: `at` in that order, `offset` in `buffer`. */
  *#places(layer: number, slots: readonly number[]) {
    const { k, v } = this.layer(layer, slots);
    const { nKvHeads, format, headDim } = this.shape;
    const size = pageBytes(format, headDim);
    let at = 0;
    for (const slot of slots)
      for (let head = 0; head < nKvHeads; head++)
        for (const buffer of [k, v]) {
          yield { buffer, offset: (slot * nKvHeads + head) * size, at, size };
          at += size;
        }
  }

  /**
   * Makes every slot handed out real and carries out copies. To be awaited before commands that touch pages are
   * recorded, with no recorded command unsubmitted. Rejects with `out-of-memory`; what was cached stays intact.
   */
  prepare(): Promise<void> {
    const next = this.#preparing.then(() => this.#prepare());
    this.#preparing = next.catch(() => {});
    return next;
  }

  /** The buffers of a layer, for a cache that uses `slots`. */
  layer(layer: number, slots: readonly number[]): Readonly<LayerPages> {
    const pages = this.#layers[layer];
    const capacity = pages ? this.#capacity(pages) : 0;
    if (!pages || slots.some((slot) => slot >= capacity))
      throw internalError(`layer ${layer} of the KV pages is used before prepare()`, { capacity });
    return pages;
  }

  /** Destroys all pages; growth under way rejects with `disposed`. Idempotent. */
  dispose(): void {
    this.#disposed = true;
    this.#layers.fill(undefined);
    this.#copies = [];
    this.#group.clear();
  }

  async #prepare(): Promise<void> {
    if (this.#disposed) throw new InlayError("disposed", "the KV pages were disposed");
    for (let layer = 0; layer < this.shape.nLayers; layer++) await this.#grow(layer);
    this.#carryOutCopies();
  }

  /** Layer by layer, so that only one layer is held twice at a time. */
  async #grow(layer: number): Promise<void> {
    const old = this.#layers[layer];
    const capacity = old ? this.#capacity(old) : 0;
    const needed = this.#nSlots;
    if (capacity >= needed) return;
    const nSlots = Math.min(this.maxSlots, Math.max(needed, 2 * capacity, this.initialSlots));
    const byteLength = nSlots * this.#stride;
    const made: GPUBuffer[] = [];
    try {
      const details = { layer, nSlots, byteLength, heldBytes: this.bytes, format: this.shape.format };
      await this.device.guarded(
        `growing the KV cache to ${nSlots * 32} tokens (layer ${layer})`,
        details,
        () => {
          for (const name of ["k", "v"])
            made.push(this.#group.create(`${name}${layer}`, byteLength, BufferUse.storage));
        },
      );
      if (this.#disposed) throw new InlayError("disposed", "the KV pages were disposed");
    } catch (error) {
      for (const buffer of made) this.#group.destroy(buffer);
      throw error;
    }
    const [k, v] = made as [GPUBuffer, GPUBuffer];
    // From here on without a pause, so that nobody writes to the old pages after they were copied.
    if (old) {
      const encoder = this.device.handle.createCommandEncoder({ label: `${this.device.label} kv grow` });
      encoder.copyBufferToBuffer(old.k, 0, k, 0, old.k.size);
      encoder.copyBufferToBuffer(old.v, 0, v, 0, old.v.size);
      this.device.handle.queue.submit([encoder.finish()]);
      this.#group.destroy(old.k);
      this.#group.destroy(old.v);
    }
    this.#layers[layer] = { k, v };
  }

  #carryOutCopies(): void {
    if (this.#copies.length === 0) return;
    const stride = this.#stride;
    // WebGPU does not copy inside one buffer, so every slot goes through this one.
    const between = this.#group.create("copy", stride, BufferUse.storage);
    const encoder = this.device.handle.createCommandEncoder({ label: `${this.device.label} kv copy` });
    for (const { from, to } of this.#copies.splice(0)) {
      for (const pages of this.#layers) {
        if (!pages) continue;
        for (const buffer of [pages.k, pages.v]) {
          encoder.copyBufferToBuffer(buffer, from * stride, between, 0, stride);
          encoder.copyBufferToBuffer(between, 0, buffer, to * stride, stride);
        }
      }
    }
    this.device.handle.queue.submit([encoder.finish()]);
    this.#group.destroy(between);
  }

  #capacity(pages: LayerPages): number {
    return Math.floor(pages.k.size / this.#stride);
  }
}

function lowest(numbers: Iterable<number>): number {
  let least = Number.POSITIVE_INFINITY;
  for (const n of numbers) least = Math.min(least, n);
  return least;
}
