/**
 * Attention of the hybrid pair: activations live in the WASM heap, KV cache and attention on the GPU. Per layer q, k
 * and v go up, one submit appends and attends, and one read-back brings the attended rows down.
 */

import { blockCount, type SampledMasses } from "../../attention/policy.ts";
import { InlayError, internalError } from "../../errors.ts";
import { pageCount } from "../../kv/page.ts";
import type { PagedCache } from "../../kv/paged-cache.ts";
import type { AttendCall, AttentionOps, Crossings, Tensor, UnselectedCall } from "../backend.ts";
import { GpuAttention, type GpuAttentionOptions } from "./attention.ts";
import { BufferGroup, ScratchBuffer } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import type { KernelShape } from "./kernels.ts";
import { pageMasses } from "./page-masses.ts";
import { ReadBacks } from "./read-back.ts";

/** Tensors of the other side, seen from the GPU. The WASM backend implements it. */
export interface HostTensors {
  /** The elements of `t`, in place. Valid until the heap grows: until the next op or `create`. */
  view(t: Tensor): Float32Array;
  /** A new tensor with undefined contents, which the caller disposes. */
  create(nTokens: number, width: number): Tensor;
}

/** Keys and values (rows of all KV heads) of the tokens from `start` on, which `cache` has reserved. */
export type AppendCall = Pick<AttendCall, "layer" | "k" | "v" | "cache"> & { readonly start: number };

export class HybridAttention implements AttentionOps {
  readonly device = "webgpu";
  /** Counted since creation. */
  readonly crossings: Crossings = { uploads: 0, uploadedBytes: 0, readbacks: 0, readbackBytes: 0 };
  readonly #inputs: BufferGroup;
  readonly #rows: Readonly<Record<"q" | "k" | "v" | "out", ScratchBuffer>>;
  readonly #readBacks: ReadBacks;
  #disposed = false;

  private constructor(
    private readonly gpu: GpuDevice,
    private readonly host: HostTensors,
    private readonly attention: GpuAttention,
  ) {
    this.#inputs = new BufferGroup(gpu, "rows");
    const row = (label: string) => new ScratchBuffer(this.#inputs, label);
    this.#rows = { q: row("q"), k: row("k"), v: row("v"), out: row("out") };
    this.#readBacks = new ReadBacks(gpu);
  }

  /** Compiles the kernels for `shape` on `gpu`, which stays the caller's. */
  static async create(
    gpu: GpuDevice,
    host: HostTensors,
    shape: KernelShape,
    options: GpuAttentionOptions = {},
  ): Promise<HybridAttention> {
    return new HybridAttention(gpu, host, await GpuAttention.create(gpu, shape, options));
  }

  /** An empty cache; also on a lost device, whose loss the first call with it reports. */
  createCache(): PagedCache {
    this.#assertNotDisposed();
    return this.attention.createCache();
  }

  async attend(call: AttendCall): Promise<Tensor> {
    this.#assertLive();
    this.#check(call);
    await this.attention.prepare();
    this.#assertLive();
    const { nTokens, width } = call.q;
    const what = `attention of layer ${call.layer} over ${call.blocks.qStart + nTokens} tokens`;
    let isDone = false;
    try {
      const result = await this.#readBacks.read(
        what,
        nTokens * width * 4,
        (target) => this.#submit(call, target),
        (bytes) => this.#receive(bytes, nTokens, width),
      );
      isDone = true;
      return result;
    } finally {
      // A buffer made by a call that failed may be invalid.
      if (!isDone) this.#dropScratch();
    }
  }

  async sampleMasses(call: UnselectedCall, rows: Uint32Array): Promise<SampledMasses> {
    this.#assertLive();
    this.#check(call);
    const [kernel] = await Promise.all([this.attention.sampleKernel(), this.attention.prepare()]);
    this.#assertLive();
    const { nHeads } = this.attention.shape;
    const byteLength = rows.length * nHeads * pageCount(call.blocks.qStart + call.blocks.qLen) * 4;
    const what = `sampled attention of layer ${call.layer} up to token ${call.blocks.qStart + call.blocks.qLen}`;
    let isDone = false;
    try {
      const lse = await this.#readBacks.read(
        what,
        byteLength,
        (target) =>
          this.#record(call, target, byteLength, (pass, buffers) =>
            this.attention.encodeSample(pass, { ...call, ...buffers }, kernel, rows),
          ),
        (bytes) => new Float32Array(bytes.slice(0)),
      );
      isDone = true;
      this.crossings.readbacks++;
      this.crossings.readbackBytes += byteLength;
      return pageMasses(lse, rows, call.blocks, this.attention.shape);
    } finally {
      if (!isDone) this.#dropScratch();
    }
  }

  /** Writes rows to their pages without attending; a later `attend` reports a lost device. */
  async append(call: AppendCall): Promise<void> {
    this.#assertLive();
    await this.attention.prepare();
    this.#assertLive();
    const k = this.#upload("k", call.k);
    const v = this.#upload("v", call.v);
    const encoder = this.gpu.handle.createCommandEncoder({ label: `${this.gpu.label} append ${call.layer}` });
    const pass = encoder.beginComputePass();
    this.attention.encodeAppend(pass, { ...call, k, v, nTokens: call.k.nTokens });
    pass.end();
    this.gpu.handle.queue.submit([encoder.finish()]);
    this.attention.submitted();
    this.#inputs.submitted();
  }

  memory(): { kv: number; scratch: number } {
    const { kv, scratch } = this.attention.memory();
    return { kv, scratch: scratch + this.#inputs.bytes + this.#readBacks.bytes };
  }

  /** Destroys all buffers; calls under way reject with `disposed`. The device stays. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#readBacks.dispose();
    this.#dropScratch();
    this.attention.dispose();
  }

  #submit(call: AttendCall, target: GPUBuffer): void {
    this.#record(call, target, call.q.nTokens * call.q.width * 4, (pass, buffers) =>
      this.attention.encode(pass, { ...call, ...buffers, onDevice: undefined }),
    );
  }

  /** Uploads, records one pass, and submits it with the copy of the result to `target`. */
  #record(
    call: UnselectedCall,
    target: GPUBuffer,
    byteLength: number,
    encode: (pass: GPUComputePassEncoder, buffers: Record<"q" | "k" | "v" | "out", GPUBuffer>) => void,
  ): void {
    const q = this.#upload("q", call.q);
    const k = this.#upload("k", call.k);
    const v = this.#upload("v", call.v);
    const out = this.#rows.out.atLeast(byteLength);
    const encoder = this.gpu.handle.createCommandEncoder({ label: `${this.gpu.label} layer ${call.layer}` });
    const pass = encoder.beginComputePass();
    encode(pass, { q, k, v, out });
    pass.end();
    encoder.copyBufferToBuffer(out, 0, target, 0, byteLength);
    this.gpu.handle.queue.submit([encoder.finish()]);
    this.attention.submitted();
    this.#inputs.submitted();
  }

  #upload(name: "q" | "k" | "v", tensor: Tensor): GPUBuffer {
    const elements = unshared(this.host.view(tensor));
    const buffer = this.#rows[name].atLeast(elements.byteLength);
    this.gpu.handle.queue.writeBuffer(buffer, 0, elements);
    this.crossings.uploads++;
    this.crossings.uploadedBytes += elements.byteLength;
    return buffer;
  }

  #receive(bytes: ArrayBuffer, nTokens: number, width: number): Tensor {
    const tensor = this.host.create(nTokens, width);
    this.host.view(tensor).set(new Float32Array(bytes));
    this.crossings.readbacks++;
    this.crossings.readbackBytes += bytes.byteLength;
    return tensor;
  }

  #dropScratch(): void {
    this.attention.dropScratch();
    this.#inputs.clear();
    for (const scratch of Object.values(this.#rows)) scratch.forget();
  }

  #check({ q, k, v, blocks, layer }: UnselectedCall): void {
    const { nHeads, nKvHeads, headDim, nLayers } = this.attention.shape;
    const isRow = (t: Tensor, heads: number) => t.nTokens === blocks.qLen && t.width === heads * headDim;
    if (!isRow(q, nHeads) || !isRow(k, nKvHeads) || !isRow(v, nKvHeads) || blockCount(blocks) < 1)
      throw internalError(
        `q, k or v does not fit ${blocks.qLen} tokens of ${nHeads}:${nKvHeads} heads of ${headDim}`,
      );
    if (layer < 0 || layer >= nLayers) throw internalError(`layer ${layer} of ${nLayers}`);
  }

  #assertLive(): void {
    this.#assertNotDisposed();
    this.gpu.assertLive();
  }

  #assertNotDisposed(): void {
    if (this.#disposed) throw new InlayError("disposed", "this model's attention was disposed");
  }
}

/** Elements of a shared heap are copied first: Node's `webgpu` crashes on views of shared memory. */
function unshared(elements: Float32Array): Float32Array<ArrayBuffer> {
  if (elements.buffer instanceof ArrayBuffer) return elements as Float32Array<ArrayBuffer>;
  return new Float32Array(elements);
}
