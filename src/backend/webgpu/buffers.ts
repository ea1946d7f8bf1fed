/** GPU buffers by owner: created with a label and a size check, counted, and destroyed together. */

import { InlayError } from "../../errors.ts";
import type { GpuDevice } from "./device.ts";
import { BufferUse } from "./usage.ts";

const MIB = 2 ** 20;

/** The buffers of one owner. */
export class BufferGroup {
  readonly #buffers = new Set<GPUBuffer>();
  #retired: GPUBuffer[] = [];
  #bytes = 0;

  constructor(
    readonly device: GpuDevice,
    private readonly name: string,
  ) {}

  /** Bytes of all buffers that exist. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * A zeroed buffer. Throws `out-of-memory` if the size is over the device's limits; if the device is merely full,
   * the surrounding `guarded` call rejects.
   */
  create(label: string, byteLength: number, usage: number): GPUBuffer {
    this.device.assertLive();
    const { maxBufferSize, maxStorageBufferBindingSize } = this.device.limits;
    const limit =
      usage === BufferUse.storage ? Math.min(maxBufferSize, maxStorageBufferBindingSize) : maxBufferSize;
    if (byteLength > limit) {
      throw new InlayError(
        "out-of-memory",
        `${label} needs ${byteLength} bytes in one GPU buffer, this device allows ${limit}; ` +
          `use a shorter contextLength, a smaller prefill chunk or device 'wasm'`,
        { label, byteLength, limit, adapter: this.device.adapterInfo },
      );
    }
    const buffer = this.device.handle.createBuffer({
      label: `${this.device.label} ${this.name} ${label}`,
      size: byteLength,
      usage,
    });
    this.#buffers.add(buffer);
    this.#bytes += buffer.size;
    return buffer;
  }

  /** Frees a buffer that no unsubmitted command uses. */
  destroy(buffer: GPUBuffer): void {
    if (!this.#buffers.delete(buffer)) return;
    this.#bytes -= buffer.size;
    buffer.destroy();
  }

  /** Frees a buffer once the commands recorded so far are submitted. */
  retire(buffer: GPUBuffer): void {
    this.#retired.push(buffer);
  }

  /** Everything recorded so far was submitted. */
  submitted(): void {
    for (const buffer of this.#retired.splice(0)) this.destroy(buffer);
  }

  /** Destroys every buffer. The group can be used again. */
  clear(): void {
    this.#retired = [];
    for (const buffer of this.#buffers) this.destroy(buffer);
  }
}

/** A buffer whose contents last for one call; it grows to the largest call seen. */
export class ScratchBuffer {
  #buffer: GPUBuffer | undefined;

  constructor(
    private readonly group: BufferGroup,
    private readonly label: string,
    private readonly usage: number = BufferUse.storage,
  ) {}

  /** A buffer of at least `byteLength` bytes, with undefined contents. */
  atLeast(byteLength: number): GPUBuffer {
    if (this.#buffer && this.#buffer.size >= byteLength) return this.#buffer;
    if (this.#buffer) this.group.retire(this.#buffer);
    this.#buffer = undefined;
    this.#buffer = this.group.create(this.label, roundUpSize(byteLength), this.usage);
    return this.#buffer;
  }

  /** Forgets the buffer, which the group has destroyed. */
  forget(): void {
    this.#buffer = undefined;
  }
}

/** Sizes that repeat: powers of two up to 1 MiB, then whole MiB. */
export function roundUpSize(byteLength: number): number {
  if (byteLength > MIB) return Math.ceil(byteLength / MIB) * MIB;
  return Math.max(256, 2 ** Math.ceil(Math.log2(byteLength)));
}
