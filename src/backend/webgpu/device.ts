/**
 * One WebGPU device: how it is had, how its failures become `InlayError`s, and its compiled pipelines.
 *
 * WebGPU reports errors late and beside the call that caused them. Here they are brought back to the call:
 * `guarded` runs work inside error scopes and rejects with what they caught; errors outside any scope are kept
 * and thrown by the next guarded call. A lost device fails every later call with `device-lost`; its owner makes
 * a new one and uploads again.
 */

import { type ErrorCode, type ErrorDetails, InlayError, internalError } from "../../errors.ts";
import { needsWaking } from "./firefox-poll.ts";

/** How to choose the adapter. */
export interface GpuDeviceOptions {
  /** Prefix of the labels of all GPU objects. */
  readonly label?: string;
  readonly powerPreference?: GPUPowerPreference;
}

/** A kernel variant: one shader with its override constants. */
export interface PipelineSpec {
  /** The shader's file name without extension, used in labels and messages. */
  readonly name: string;
  readonly source: string;
  /** @default "main" */
  readonly entryPoint?: string;
  readonly constants: Readonly<Record<string, number>>;
}

/** Limits that are raised to what the adapter has. */
const RAISED_LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
] as const satisfies readonly (keyof GPUSupportedLimits)[];

/** Features that are used where they exist. */
const OPTIONAL_FEATURES = [
  "shader-f16",
  "subgroups",
  "timestamp-query",
] as const satisfies readonly GPUFeatureName[];

/** What each error scope means to a caller. */
const SCOPES: readonly { filter: GPUErrorFilter; code: ErrorCode }[] = [
  { filter: "out-of-memory", code: "out-of-memory" },
  { filter: "internal", code: "internal" },
  { filter: "validation", code: "internal" },
];

export class GpuDevice {
  readonly label: string;
  /** Vendor, architecture, device and description of the adapter, as far as the browser tells: the key of self-test results. */
  readonly adapterInfo: string;
  /** true: a software adapter, useful for tests only. */
  readonly isSoftware: boolean;
  readonly features: ReadonlySet<string>;
  readonly limits: GPUSupportedLimits;
  /** Resolves, with the error that later calls will throw, when the device is lost or disposed. */
  readonly lost: Promise<InlayError>;
  /** true: a pending map completes late unless the queue is kept awake; see firefox-poll.ts. */
  readonly needsWaking: boolean;
  readonly #pipelines = new Map<string, Promise<GPUComputePipeline>>();
  #loss: InlayError | undefined;
  #failure: InlayError | undefined;
  #disposed = false;

  private constructor(
    readonly handle: GPUDevice,
    adapter: GPUAdapter,
    wakes: boolean,
    /** Kept for `recreate`; besides, Node's `webgpu` crashes once its GPU object is collected. */
    private readonly gpu: GPU,
    private readonly options: GpuDeviceOptions,
  ) {
    // Browsers tell as much as they like: Firefox nothing, older ones do not have the field.
    const info: Partial<GPUAdapterInfo> = adapter.info ?? {};
    const label = labelOf(options);
    this.label = label;
    const names = [info.vendor, info.architecture, info.device, info.description];
    this.adapterInfo = names.filter(Boolean).join(" ") || "unnamed adapter";
    this.isSoftware = info.isFallbackAdapter === true;
    this.features = new Set(handle.features);
    this.limits = handle.limits;
    this.needsWaking = wakes;
    this.lost = handle.lost.then((lost) => {
      this.#loss = this.#disposed ? disposedError() : lossError(lost.message, this.adapterInfo);
      return this.#loss;
    });
    handle.addEventListener("uncapturederror", (event) => {
      event.preventDefault(); // it is reported by the next guarded call, so not on the console
      this.#failure ??= scopeError(event.error, uncapturedCode(event.error), "GPU work", { label });
    });
  }

  /** Asks `gpu` for an adapter and a device. Rejects with `device-unavailable` where there is none. */
  static async create(gpu: GPU, options: GpuDeviceOptions = {}): Promise<GpuDevice> {
    const label = labelOf(options);
    const adapter = await gpu.requestAdapter({
      powerPreference: options.powerPreference ?? "high-performance",
    });
    if (!adapter) {
      throw new InlayError("device-unavailable", "WebGPU is there but offers no adapter; use device 'wasm'");
    }
    const requiredLimits: Record<string, number> = {};
    for (const limit of RAISED_LIMITS) requiredLimits[limit] = adapter.limits[limit];
    const requiredFeatures = OPTIONAL_FEATURES.filter((feature) => adapter.features.has(feature));
    let handle: GPUDevice;
    try {
      handle = await adapter.requestDevice({ label, requiredLimits, requiredFeatures });
    } catch (cause) {
      throw new InlayError(
        "device-unavailable",
        `the WebGPU adapter refused a device: ${String(cause)}`,
        {},
        { cause },
      );
    }
    return new GpuDevice(handle, adapter, await needsWaking(handle), gpu, options);
  }

  /** A new device like this one, after it was lost. Nothing is carried over. */
  recreate(): Promise<GpuDevice> {
    return GpuDevice.create(this.gpu, this.options);
  }

  /**
   * Runs `work` inside error scopes and waits for what it returns. Rejects with `out-of-memory` or `internal` if
   * the device reports an error for any call that `work` made synchronously, naming `what` and `details`, and
   * with `device-lost` or `disposed` if the device went away.
   */
  async guarded<T>(what: string, details: ErrorDetails, work: () => T | Promise<T>): Promise<T> {
    this.assertLive();
    for (const { filter } of SCOPES) this.handle.pushErrorScope(filter);
    let result: Promise<T>;
    try {
      result = Promise.resolve(work());
    } catch (thrown) {
      result = Promise.reject(thrown);
    }
    // Scopes nest, so they are popped in reverse. Popping fails only on a lost device.
    const caught = SCOPES.toReversed().map(async ({ code }) => {
      const error = await this.handle.popErrorScope().catch(() => null);
      return error && scopeError(error, code, what, details);
    });
    const [outcome] = await Promise.allSettled([result]);
    const errors = (await Promise.all(caught)).filter((error) => error !== null);
    // An allocation that failed makes everything after it invalid: the allocation is the news. An error outside of
    // all scopes came earlier.
    const failure = this.#takeFailure();
    if (failure) errors.unshift(failure);
    const error = errors.find((e) => e.code === "out-of-memory") ?? errors[0];
    if (error) throw error;
    if (outcome.status === "fulfilled") return outcome.value;
    throw this.#explain(outcome.reason, what, details);
  }

  /** The compiled pipeline of a kernel variant; compiled on first use, then shared. */
  pipeline(spec: PipelineSpec): Promise<GPUComputePipeline> {
    const constants = Object.entries(spec.constants).sort(([a], [b]) => (a < b ? -1 : 1));
    const kernel = spec.entryPoint ? `${spec.name}.${spec.entryPoint}` : spec.name;
    const variant = `${kernel}(${constants.map(([name, value]) => `${name}=${value}`).join(" ")})`;
    let pipeline = this.#pipelines.get(variant);
    if (!pipeline) {
      pipeline = this.#compile(spec, variant);
      this.#pipelines.set(variant, pipeline);
      // A failed compilation is reported to whoever waits, and tried again by the next.
      pipeline.catch(() => this.#pipelines.delete(variant));
    }
    return pipeline;
  }

  /** Throws if the device is lost or disposed. */
  assertLive(): void {
    if (this.#disposed) throw disposedError();
    if (this.#loss) throw this.#loss;
  }

  /** Destroys the device and with it every buffer. Idempotent; later calls fail with `disposed`. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#pipelines.clear();
    this.handle.destroy();
  }

  async #compile(spec: PipelineSpec, variant: string): Promise<GPUComputePipeline> {
    const { name, source, constants, entryPoint = "main" } = spec;
    return this.guarded(`compiling ${variant}`, { shader: name, constants }, async () => {
      const module = this.handle.createShaderModule({ label: `${this.label} ${name}`, code: source });
      const label = `${this.label} ${variant}`;
      const compute = { module, entryPoint, constants: { ...constants } };
      try {
        return await this.handle.createComputePipelineAsync({ label, layout: "auto", compute });
      } catch (cause) {
        throw internalError(`${variant} does not compile: ${String(cause)}`, { shader: name, constants });
      }
    });
  }

  #takeFailure(): InlayError | undefined {
    const failure = this.#failure;
    this.#failure = undefined;
    return failure;
  }

  /** Our own errors pass; a promise that WebGPU rejected without a scope's error means that the device is gone. */
  #explain(reason: unknown, what: string, details: ErrorDetails): unknown {
    if (this.#disposed) return disposedError();
    if (this.#loss) return this.#loss;
    if (!(reason instanceof DOMException)) return reason;
    return new InlayError("device-lost", `${what} was cut off: ${reason.message}`, details, {
      cause: reason,
    });
  }
}

function labelOf({ label = "inlay" }: GpuDeviceOptions): string {
  return label;
}

function scopeError(error: GPUError, code: ErrorCode, what: string, details: ErrorDetails): InlayError {
  const prefix = code === "internal" ? "internal: " : "";
  return new InlayError(code, `${prefix}${what} failed on the GPU: ${error.message}`, details);
}

/** Error classes are compared by name: they are not global in Node. */
function uncapturedCode(error: GPUError): ErrorCode {
  return error.constructor.name === "GPUOutOfMemoryError" ? "out-of-memory" : "internal";
}

function lossError(message: string, adapter: string): InlayError {
  return new InlayError("device-lost", `the GPU device was lost: ${message || "no reason given"}`, {
    adapter,
  });
}

function disposedError(): InlayError {
  return new InlayError("disposed", "the GPU device was disposed");
}
