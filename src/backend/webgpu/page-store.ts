/**
 * Where the pages of the KV cache live on the GPU: per layer one buffer of keys and one of values, in which slot p
 * of KV head h starts at page p * nKvHeads + h, and one of quantized pages, K before V. The layout inside a page is that
 * of src/kv/page.ts; that of a quantized one, shaders/kv_quantize.wgsl's.
 *
 * Slots are numbers, handed out at once. Buffers follow in `prepare`, which grows them and carries out what was asked
 * for since, in order: copies, quantizing, decoding. Everything that writes to pages calls `prepare` first, so a copy
 * always sees the page as it was when the copy was asked for.
 */

import { InlayError } from "../../errors.ts";
import { type PageFormat, pageBytes } from "../../kv/page.ts";
import type { ColdSlots, SlotStore } from "../../kv/paged-cache.ts";
import { type QuantizedFormat, wholePageBytes } from "../../kv/quantize.ts";
import { BufferGroup } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import { ReadBacks } from "./read-back.ts";
import { SlotBuffers } from "./slot-buffers.ts";
import { BufferUse } from "./usage.ts";

/** What a page store must know of the model. */
export interface PageStoreShape {
  readonly nLayers: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly format: PageFormat;
  /** What pages become when they leave the window; undefined = they stay as they are. */
  readonly cold?: QuantizedFormat | undefined;
}

/** Kernels that code and decode pages. */
export interface PageCodec {
  /** shaders/kv_quantize.wgsl. */
  readonly quantize: GPUComputePipeline;
  /** shaders/kv_dequantize.wgsl. */
  readonly dequantize: GPUComputePipeline;
  /** Threads of a workgroup of `dequantize`. */
  readonly dequantizeThreads: number;
}

/** The pages of one layer. */
export interface LayerPages {
  readonly k: GPUBuffer;
  readonly v: GPUBuffer;
  /** Undefined until a page is quantized. */
  readonly cold: GPUBuffer | undefined;
}

/** Set in the number of a cold slot; shaders look for it in the page table. */
const COLD = 2 ** 31;

interface Job {
  readonly kind: "copy" | "freeze" | "thaw";
  readonly from: number;
  readonly to: number;
}

export class GpuPageStore implements SlotStore {
  readonly slotBytes: number;
  readonly format: PageFormat;
  /** Slots that the device's buffer limits allow. */
  readonly maxSlots: number;
  readonly cold: ColdSlots | undefined;
  /** Bytes of a slot in one of a layer's two buffers. */
  readonly #stride: number;
  /** Bytes of a cold slot in a layer's buffer. */
  readonly #coldStride: number;
  readonly #group: BufferGroup;
  readonly #hot: SlotBuffers;
  readonly #cold: SlotBuffers | undefined;
  #jobs: Job[] = [];
  #preparing: Promise<void> = Promise.resolve();
  #disposed = false;

  /** `codec`: where `shape.cold` is set. */
  constructor(
    private readonly device: GpuDevice,
    private readonly shape: PageStoreShape,
    initialSlots: number,
    private readonly codec?: PageCodec,
  ) {
    const { nLayers, nKvHeads, headDim, format } = shape;
    this.#stride = nKvHeads * pageBytes(format, headDim);
    this.slotBytes = 2 * nLayers * this.#stride;
    this.format = format;
    this.#group = new BufferGroup(device, "kv");
    const hot = { nLayers, names: ["k", "v"], stride: this.#stride, initialSlots, format };
    this.#hot = new SlotBuffers(device, this.#group, hot);
    this.maxSlots = this.#hot.maxSlots;
    this.#coldStride = shape.cold ? nKvHeads * wholePageBytes(shape.cold, headDim) : 0;
    if (shape.cold && codec) {
      const stride = this.#coldStride;
      const cold = { nLayers, names: ["cold"], stride, initialSlots, format: shape.cold };
      this.#cold = new SlotBuffers(device, this.#group, cold);
      this.cold = this.#coldSlots(this.#cold, shape.cold, nLayers * stride);
    }
  }

  /** Bytes of the buffers, free slots included. */
  get bytes(): number {
    return this.#group.bytes;
  }

  allocate(): number {
    return this.#hot.allocate();
  }

  release(slot: number): void {
    if (slot >= COLD) this.#cold?.release(slot - COLD);
    else this.#hot.release(slot);
  }

  /** Copies the whole slot, at the next `prepare`. */
  copy(from: number, to: number, _nTokens: number): void {
    this.#jobs.push({ kind: "copy", from, to });
  }

  layerBytes(_layer: number, slots: readonly number[]): number {
    return slots.reduce((sum, slot) => sum + (slot >= COLD ? this.#coldStride : 2 * this.#stride), 0);
  }

  /** Reads back one layer of `slots`, with no recorded command unsubmitted. */
  async read(layer: number, slots: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
    await this.prepare();
    const byteLength = this.layerBytes(layer, slots);
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
    const { k, v, cold } = this.layer(layer, slots);
    const { nKvHeads, format, headDim } = this.shape;
    const size = pageBytes(format, headDim);
    let at = 0;
    for (const slot of slots) {
      if (slot >= COLD) {
        yield { buffer: cold!, offset: (slot - COLD) * this.#coldStride, at, size: this.#coldStride };
        at += this.#coldStride;
        continue;
      }
      for (let head = 0; head < nKvHeads; head++)
        for (const buffer of [k, v]) {
          yield { buffer, offset: (slot * nKvHeads + head) * size, at, size };
          at += size;
        }
    }
  }

  /**
   * Makes every slot handed out real and carries out what was asked for. To be awaited before commands that touch pages
   * are recorded, with no recorded command unsubmitted. Rejects with `out-of-memory`; what was cached stays intact.
   */
  prepare(): Promise<void> {
    const next = this.#preparing.then(() => this.#prepare());
    this.#preparing = next.catch(() => {});
    return next;
  }

  /** The buffers of a layer, for a cache that uses `slots`. */
  layer(layer: number, slots: readonly number[]): LayerPages {
    const coldSlots = slots.filter((slot) => slot >= COLD).map((slot) => slot - COLD);
    const hotSlots = coldSlots.length > 0 ? slots.filter((slot) => slot < COLD) : slots;
    const [k, v] = this.#hot.layer(layer, hotSlots) as [GPUBuffer, GPUBuffer];
    return { k, v, cold: coldSlots.length > 0 ? this.#cold?.layer(layer, coldSlots)[0] : undefined };
  }

  /** Destroys all pages; growth under way rejects with `disposed`. Idempotent. */
  dispose(): void {
    this.#disposed = true;
    this.#hot.dispose();
    this.#cold?.dispose();
    this.#jobs = [];
    this.#group.clear();
  }

  /** Pages are not looked at for values that are not finite: that would be a read-back. f16 pages hold none. */
  #coldSlots(cold: SlotBuffers, format: QuantizedFormat, slotBytes: number): ColdSlots {
    return {
      automatic: format,
      canCode: (wanted) => wanted === format,
      slotBytes: () => slotBytes,
      formatOf: (slot) => (slot >= COLD ? format : undefined),
      allocate: () => COLD + cold.allocate(),
      freeze: (slot) => {
        const to = cold.allocate();
        this.#jobs.push({ kind: "freeze", from: slot, to });
        return COLD + to;
      },
      thaw: (slot) => {
        const to = this.#hot.allocate();
        this.#jobs.push({ kind: "thaw", from: slot - COLD, to });
        return to;
      },
    };
  }

  async #prepare(): Promise<void> {
    if (this.#disposed) throw new InlayError("disposed", "the KV pages were disposed");
    await this.#hot.grow();
    await this.#cold?.grow();
    // Without a pause: what is asked for from now on is for the next time.
    for (let jobs = this.#jobs.splice(0); jobs.length > 0; ) {
      const { kind } = jobs[0]!;
      const end = jobs.findIndex((job) => job.kind !== kind);
      const run = jobs.splice(0, end < 0 ? jobs.length : end);
      if (kind === "copy") this.#copy(run);
      else this.#code(kind, run);
    }
  }

  #copy(jobs: readonly Job[]): void {
    const stride = this.#stride;
    // WebGPU does not copy inside one buffer, so every slot goes through this one.
    const between = this.#group.create("copy", stride, BufferUse.storage);
    const encoder = this.device.handle.createCommandEncoder({ label: `${this.device.label} kv copy` });
    for (const { from, to } of jobs)
      for (let layer = 0; layer < this.shape.nLayers; layer++)
        for (const buffer of this.#hot.layer(layer, [from, to])) {
          encoder.copyBufferToBuffer(buffer, from * stride, between, 0, stride);
          encoder.copyBufferToBuffer(between, 0, buffer, to * stride, stride);
        }
    this.device.handle.queue.submit([encoder.finish()]);
    this.#group.destroy(between);
  }

  /** Codes hot slots into cold ones, or the reverse; no slot is in two jobs. */
  #code(kind: "freeze" | "thaw", jobs: readonly Job[]): void {
    const { handle, label } = this.device;
    const { nLayers, nKvHeads, headDim } = this.shape;
    const codec = this.codec!;
    const pipeline = kind === "freeze" ? codec.quantize : codec.dequantize;
    const list = this.#upload(
      "jobs",
      Uint32Array.from(jobs.flatMap(({ from, to }) => [from, to])),
      BufferUse.storage,
    );
    const params = this.#upload("params", Uint32Array.of(nKvHeads, 0, 0, 0), BufferUse.uniform);
    const encoder = handle.createCommandEncoder({ label: `${label} kv ${kind}` });
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const [from, to] = [jobs.map((job) => job.from), jobs.map((job) => job.to)];
    const [hotSlots, coldSlots] = kind === "freeze" ? [from, to] : [to, from];
    for (let layer = 0; layer < nLayers; layer++) {
      const [k, v] = this.#hot.layer(layer, hotSlots) as [GPUBuffer, GPUBuffer];
      const [cold] = this.#cold!.layer(layer, coldSlots) as [GPUBuffer];
      const buffers = kind === "freeze" ? [params, list, k, v, cold] : [params, list, cold, k, v];
      const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
      pass.setBindGroup(
        0,
        handle.createBindGroup({
          label: `${label} kv ${kind}`,
          layout: pipeline.getBindGroupLayout(0),
          entries,
        }),
      );
      const nGroups =
        kind === "freeze" ? 2 * nKvHeads : Math.ceil((4 * nKvHeads * headDim) / codec.dequantizeThreads);
      pass.dispatchWorkgroups(nGroups, jobs.length);
    }
    pass.end();
    handle.queue.submit([encoder.finish()]);
    this.#group.destroy(list);
    this.#group.destroy(params);
  }

  #upload(label: string, words: Uint32Array<ArrayBuffer>, usage: number): GPUBuffer {
    const buffer = this.#group.create(label, words.byteLength, usage);
    this.device.handle.queue.writeBuffer(buffer, 0, words);
    return buffer;
  }
}
