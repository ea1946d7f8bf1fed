/**
 * Collects the work of a forward pass: everything that GpuOps and the attention beside it dispatch goes into one command
 * encoder, mostly into one compute pass, which is submitted when a result is read or all tensors are gone.
 *
 * Long passes are submitted in several pieces: operating systems reset a GPU that works on one submit for seconds,
 * and a slow one should not idle until a whole pass is recorded.
 */

import { type ErrorDetails, InlayError } from "../../errors.ts";
import { BufferGroup } from "./buffers.ts";
import type { GpuDevice, PipelineSpec } from "./device.ts";
import { keepAwake } from "./firefox-poll.ts";
import { BufferUse } from "./usage.ts";

/** Multiply-adds after which recorded work is submitted: some 50 ms of a small GPU. */
const SUBMIT_COST = 2 ** 34;

/** Parameter buffers and bind groups kept. A model uses far fewer; what changes from call to call must not pile up. */
const MAX_PARAMS = 512;
const MAX_BINDINGS = 8192;

/** Something that must know when recorded work was submitted, because it may then reuse or free buffers. */
export interface RecorderClient {
  /** Everything recorded so far was submitted. */
  submitted(): void;
  /** A pass failed: buffers of single calls may be invalid, or hold anything. */
  dropScratch(): void;
}

/** A compiled kernel. */
export interface Kernel {
  readonly name: string;
  readonly pipeline: GPUComputePipeline;
}

/** What a dispatch binds, by binding number. */
export type Bindings = Readonly<Record<number, GPUBuffer | GPUBufferBinding>>;

export class Recorder {
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #cost = 0;
  #nSubmits = 0;
  readonly #clients: RecorderClient[] = [];
  readonly #paramsGroup: BufferGroup;
  readonly #params = new Map<string, GPUBuffer>();
  /** Bind groups by kernel and buffers: decoding makes the same ones for every token. */
  readonly #bindings = new Map<string, GPUBindGroup>();
  readonly #names = new WeakMap<object, number>();
  #nNames = 0;
  #disposed = false;
  /** Resolves when the work before the last `settle` is done. */
  #previousWork: Promise<unknown> = Promise.resolve();

  constructor(readonly device: GpuDevice) {
    this.#paramsGroup = new BufferGroup(device, "params");
  }

  /** Submits so far. */
  get nSubmits(): number {
    return this.#nSubmits;
  }

  /** Bytes of parameter buffers. */
  get bytes(): number {
    return this.#paramsGroup.bytes;
  }

  /** `client` hears of every submit from now on. */
  addClient(client: RecorderClient): void {
    this.#clients.push(client);
  }

  /** Compiles a kernel, once per device. */
  async kernel(spec: PipelineSpec): Promise<Kernel> {
    return { name: spec.name, pipeline: await this.device.pipeline(spec) };
  }

  /** The open compute pass. Not to be kept across calls of the recorder. */
  pass(): GPUComputePassEncoder {
    this.#pass ??= this.#openEncoder().beginComputePass({ label: `${this.device.label} pass` });
    return this.#pass;
  }

  /** Records `nGroups` workgroups, folded over x and y, that cost `cost` multiply-adds together. */
  dispatch(kernel: Kernel, bindings: Bindings, nGroups: number, cost: number): void {
    const pass = this.pass();
    pass.setPipeline(kernel.pipeline);
    pass.setBindGroup(0, this.#bindGroup(kernel, bindings));
    const width = Math.min(nGroups, this.device.limits.maxComputeWorkgroupsPerDimension);
    pass.dispatchWorkgroups(width, Math.ceil(nGroups / width));
    this.spend(cost);
  }

  /** Counts `cost` multiply-adds that were recorded into `pass()`. */
  spend(cost: number): void {
    this.#cost += cost;
    if (this.#cost > SUBMIT_COST) this.submit();
  }

  /** Records a copy of `byteLength` bytes; both offsets are multiples of 4. */
  copy(from: GPUBuffer, fromOffset: number, to: GPUBuffer, byteLength: number, toOffset = 0): void {
    this.#endPass();
    this.#openEncoder().copyBufferToBuffer(from, fromOffset, to, toOffset, byteLength);
  }

  /** A uniform buffer that holds `words`. Its contents never change. */
  params(label: string, words: Uint32Array<ArrayBuffer>): GPUBuffer {
    const key = words.join();
    const known = this.#params.get(key);
    if (known) return known;
    const made = this.#paramsGroup.create(label, words.byteLength, BufferUse.uniform);
    this.device.handle.queue.writeBuffer(made, 0, words);
    this.#params.set(key, made);
    return made;
  }

  /** Submits what was recorded. Errors are reported by the next `settle` or `GpuDevice.guarded`. */
  submit(): void {
    if (!this.#encoder) return;
    this.#endPass();
    const commands = this.#encoder.finish();
    this.#forget();
    this.device.handle.queue.submit([commands]);
    this.#nSubmits++;
    for (const client of this.#clients) client.submitted();
    if (this.#params.size > MAX_PARAMS) this.#dropParams();
    if (this.#bindings.size > MAX_BINDINGS) this.#bindings.clear();
  }

  /**
   * Submits what was recorded and waits until the device has accepted it, so that what it writes may be relied on; and
   * until the work before the last call is done, so that the host does not run away from the GPU. Rejects as
   * `GpuDevice.guarded`; scratch is dropped then.
   */
  async settle(what: string, details: ErrorDetails): Promise<void> {
    const { handle, needsWaking } = this.device;
    await this.guarded(what, details, () => this.submit());
    const previous = this.#previousWork;
    this.#previousWork = handle.queue.onSubmittedWorkDone().catch(() => {}); // a lost device is reported elsewhere
    if (needsWaking) void keepAwake(handle, previous);
    await previous;
  }

  /** `GpuDevice.guarded`; when it rejects, recorded work is given up and scratch dropped. */
  async guarded<T>(what: string, details: ErrorDetails, work: () => T | Promise<T>): Promise<T> {
    let isDone = false;
    try {
      const result = await this.device.guarded(what, details, work);
      isDone = true;
      return result;
    } finally {
      if (!isDone) this.discard();
    }
  }

  /** Gives up what was recorded, and all scratch. */
  discard(): void {
    this.#forget();
    for (const client of this.#clients) client.dropScratch();
    this.#dropParams();
  }

  /** Throws `disposed` or `device-lost` once nothing can be recorded any more. */
  assertLive(): void {
    if (this.#disposed) throw new InlayError("disposed", "the model was disposed");
    this.device.assertLive();
  }

  /** Gives up what was recorded, and all scratch; later calls throw `disposed`. */
  dispose(): void {
    this.#disposed = true;
    this.discard();
  }

  #bindGroup(kernel: Kernel, bindings: Bindings): GPUBindGroup {
    let key = `${this.#nameOf(kernel.pipeline)}`;
    for (const resource of Object.values(bindings)) {
      const { buffer, offset } = bindingOf(resource);
      key += `,${this.#nameOf(buffer)}`;
      if (offset !== 0) key += `+${offset}`;
    }
    let group = this.#bindings.get(key);
    if (!group) {
      group = this.device.handle.createBindGroup({
        label: `${this.device.label} ${kernel.name}`,
        layout: kernel.pipeline.getBindGroupLayout(0),
        entries: Object.entries(bindings).map(([binding, resource]) => ({
          binding: Number(binding),
          resource: bindingOf(resource),
        })),
      });
      this.#bindings.set(key, group);
    }
    return group;
  }

  /** A number for every object, never reused. */
  #nameOf(object: object): number {
    let name = this.#names.get(object);
    if (name === undefined) {
      name = this.#nNames++;
      this.#names.set(object, name);
    }
    return name;
  }

  #openEncoder(): GPUCommandEncoder {
    this.assertLive();
    this.#encoder ??= this.device.handle.createCommandEncoder({ label: `${this.device.label} forward` });
    return this.#encoder;
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }

  #forget(): void {
    this.#encoder = undefined;
    this.#pass = undefined;
    this.#cost = 0;
  }

  /** Everything that used them was submitted or given up. */
  #dropParams(): void {
    this.#paramsGroup.clear();
    this.#params.clear();
    this.#bindings.clear();
  }
}

function bindingOf(resource: GPUBuffer | GPUBufferBinding): GPUBufferBinding & { offset: number } {
  return "buffer" in resource
    ? { ...resource, offset: resource.offset ?? 0 }
    : { buffer: resource, offset: 0 };
}
