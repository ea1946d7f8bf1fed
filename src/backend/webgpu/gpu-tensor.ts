/**
 * Activations on the GPU: f32 rows in buffers from a pool.
 *
 * A disposed tensor's buffer may serve the next tensor at once, in the same pass even: dispatches of a queue take
 * effect in order. What must wait for the submit are buffers that the host writes, since `writeBuffer` does not wait
 * for commands that are merely recorded, and destroying. When the last tensor is disposed the forward call is over, and
 * what it recorded is submitted, whether or not a result was read.
 */

import { internalError } from "../../errors.ts";
import type { Tensor } from "../backend.ts";
import { BufferGroup } from "./buffers.ts";
import type { Recorder, RecorderClient } from "./recorder.ts";
import { BufferUse } from "./usage.ts";

/** A free buffer that no pass has used for so many submits is destroyed: decoding needs none of prefill's. */
const IDLE_SUBMITS = 64;

interface FreeBuffer {
  readonly buffer: GPUBuffer;
  /** Submits before it was given back; commands recorded since then may use it. */
  readonly freedAt: number;
}

export class GpuTensor implements Tensor {
  #buffer: GPUBuffer | undefined;

  constructor(
    private readonly pool: TensorPool,
    readonly nTokens: number,
    readonly width: number,
    buffer: GPUBuffer,
  ) {
    this.#buffer = buffer;
  }

  get byteLength(): number {
    return this.nTokens * this.width * 4;
  }

  /** The buffer, which may be larger. */
  get buffer(): GPUBuffer {
    if (!this.#buffer) throw internalError(`tensor (${this.nTokens}, ${this.width}) used after dispose`);
    return this.#buffer;
  }

  [Symbol.dispose](): void {
    if (!this.#buffer) return;
    const buffer = this.#buffer;
    this.#buffer = undefined;
    this.pool.release(buffer);
  }
}

/** Makes tensors, and reuses their buffers. */
export class TensorPool implements RecorderClient {
  readonly #group: BufferGroup;
  /** By size, most recently freed last. */
  readonly #free = new Map<number, FreeBuffer[]>();
  #live = new Set<GPUBuffer>();

  constructor(private readonly recorder: Recorder) {
    this.#group = new BufferGroup(recorder.device, "activations");
    recorder.addClient(this);
  }

  /** Bytes of all buffers, free ones included. */
  get bytes(): number {
    return this.#group.bytes;
  }

  /** Tensors that are not disposed. */
  get nLive(): number {
    return this.#live.size;
  }

  /** A tensor with undefined contents. */
  create(nTokens: number, width: number): GpuTensor {
    const size = this.#sizeOf(nTokens * width * 4);
    return new GpuTensor(
      this,
      nTokens,
      width,
      this.#take(size, () => true),
    );
  }

  /** A tensor that holds `elements`, rows of `width`. */
  upload(elements: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>, width: number): GpuTensor {
    const { nSubmits } = this.recorder;
    const buffer = this.#take(this.#sizeOf(elements.byteLength), ({ freedAt }) => freedAt < nSubmits);
    this.recorder.device.handle.queue.writeBuffer(buffer, 0, elements);
    return new GpuTensor(this, elements.length / width, width, buffer);
  }

  /** Takes back the buffer of a disposed tensor. */
  release(buffer: GPUBuffer): void {
    if (!this.#live.delete(buffer)) return; // dropped in the meantime
    const free = this.#free.get(buffer.size);
    const entry = { buffer, freedAt: this.recorder.nSubmits };
    if (free) free.push(entry);
    else this.#free.set(buffer.size, [entry]);
    if (this.#live.size === 0) this.recorder.submit();
  }

  submitted(): void {
    const oldest = this.recorder.nSubmits - IDLE_SUBMITS;
    for (const free of this.#free.values()) {
      while (free[0] && free[0].freedAt < oldest) this.#group.destroy(free.shift()!.buffer);
    }
  }

  /** Destroys all buffers. Live tensors cannot be used any more, only disposed. */
  dropScratch(): void {
    this.#live = new Set();
    this.#free.clear();
    this.#group.clear();
  }

  /** The size of the buffer for so many bytes; not past the device's limits if the bytes are not. */
  #sizeOf(byteLength: number): number {
    const { maxBufferSize, maxStorageBufferBindingSize } = this.recorder.device.limits;
    const limit = 4 * Math.floor(Math.min(maxBufferSize, maxStorageBufferBindingSize) / 4);
    return Math.max(byteLength, Math.min(sizeClass(byteLength), limit));
  }

  #take(size: number, isUsable: (free: FreeBuffer) => boolean): GPUBuffer {
    const free = this.#free.get(size) ?? [];
    const found = free.findLastIndex(isUsable);
    const reused = free.splice(found, found >= 0 ? 1 : 0)[0]?.buffer;
    const buffer = reused ?? this.#group.create(`of ${size} bytes`, size, BufferUse.storage);
    this.#live.add(buffer);
    return buffer;
  }
}

/** Sizes that repeat: at most a quarter is wasted, and prompts of any length share a few of them. */
function sizeClass(byteLength: number): number {
  const step = Math.max(256, 2 ** (Math.floor(Math.log2(Math.max(1, byteLength))) - 2));
  return step * Math.max(1, Math.ceil(byteLength / step));
}
