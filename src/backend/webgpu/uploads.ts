/**
 * Small host arrays that kernels read: parameters, page tables, selections.
 *
 * Layers of one forward call pass the same arrays, so each is uploaded once: an array is found again by its
 * contents, a selection by its identity. Commands are recorded for a whole pass and submitted later, while
 * `writeBuffer` takes effect at once: a buffer that the pass uses already must keep its contents until
 * `submitted()` is called.
 */

import type { Selection } from "../../attention/policy.ts";
import { BufferGroup, roundUpSize } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import { BufferUse } from "./usage.ts";

/** Buffers kept for reuse; a pass that needs more makes more. */
const KEPT = 24;

interface Upload {
  readonly buffer: GPUBuffer;
  readonly usage: number;
  /** What it holds: the selection it was made from, else the words. */
  source: Selection | Uint32Array<ArrayBuffer>;
  lastPass: number;
}

/** Where the parts of an uploaded selection start, in words; see attention_prefill.wgsl. */
export interface UploadedSelection {
  readonly buffer: GPUBuffer;
  readonly pagesAt: number;
  /** 0 = no masks. */
  readonly masksAt: number;
}

export class Uploads {
  readonly #group: BufferGroup;
  /** Least recently used first. */
  #uploads: Upload[] = [];
  #pass = 0;

  constructor(private readonly device: GpuDevice) {
    this.#group = new BufferGroup(device, "upload");
  }

  get bytes(): number {
    return this.#group.bytes;
  }

  /** A uniform buffer that holds `words`. */
  uniform(label: string, words: Uint32Array<ArrayBuffer>): GPUBuffer {
    return this.#words(label, words, BufferUse.uniform);
  }

  /** A storage buffer that holds `words`. */
  storage(label: string, words: Uint32Array<ArrayBuffer>): GPUBuffer {
    return this.#words(label, words, BufferUse.storage);
  }

  /** A storage buffer that holds where each row starts and ends, pages and masks of `selection`. */
  selection(selection: Selection): UploadedSelection {
    const { rowPtr, page, mask } = selection;
    const nRows = rowPtr.length - 1;
    const pagesAt = 2 * nRows;
    const masksAt = mask ? pagesAt + page.length : 0;
    let upload = this.#uploads.find((u) => u.source === selection);
    if (upload) {
      this.#touch(upload);
    } else {
      const words = new Uint32Array(pagesAt + page.length + (mask?.length ?? 0));
      for (let row = 0; row < nRows; row++) {
        words[2 * row] = rowPtr[row]!;
        words[2 * row + 1] = rowPtr[row + 1]!;
      }
      words.set(page, pagesAt);
      if (mask) words.set(mask, masksAt);
      upload = this.#write("selection", words, BufferUse.storage, selection);
    }
    return { buffer: upload.buffer, pagesAt, masksAt };
  }

  /** The commands recorded so far were submitted: their buffers may be written again. */
  submitted(): void {
    this.#pass++;
    this.#group.submitted();
  }

  /** Destroys the buffers. Later uploads make new ones. */
  clear(): void {
    this.#uploads = [];
    this.#group.clear();
  }

  #words(label: string, words: Uint32Array<ArrayBuffer>, usage: number): GPUBuffer {
    const found = this.#uploads.find(
      (u) => u.usage === usage && u.source instanceof Uint32Array && isEqual(u.source, words),
    );
    if (found) this.#touch(found);
    return (found ?? this.#write(label, words, usage, words.slice())).buffer;
  }

  #write(
    label: string,
    words: Uint32Array<ArrayBuffer>,
    usage: number,
    source: Selection | Uint32Array<ArrayBuffer>,
  ): Upload {
    const byteLength = Math.max(4, words.byteLength);
    let upload: Upload | undefined;
    if (this.#uploads.length >= KEPT) {
      const isFree = (u: Upload) => u.lastPass < this.#pass && u.usage === usage;
      upload = this.#uploads.find((u) => isFree(u) && u.buffer.size >= byteLength);
      if (!upload) this.#drop(this.#uploads.find(isFree));
    }
    if (upload) {
      upload.source = source;
    } else {
      const buffer = this.#group.create(label, roundUpSize(byteLength), usage);
      upload = { buffer, usage, source, lastPass: this.#pass };
      this.#uploads.push(upload);
    }
    this.#touch(upload);
    this.device.handle.queue.writeBuffer(upload.buffer, 0, words);
    return upload;
  }

  #touch(upload: Upload): void {
    upload.lastPass = this.#pass;
    this.#uploads.splice(this.#uploads.indexOf(upload), 1);
    this.#uploads.push(upload);
  }

  #drop(upload: Upload | undefined): void {
    if (!upload) return;
    this.#uploads.splice(this.#uploads.indexOf(upload), 1);
    this.#group.destroy(upload.buffer);
  }
}

function isEqual(a: Uint32Array, b: Uint32Array): boolean {
  return a.length === b.length && a.every((word, i) => word === b[i]);
}
