/** The page's side: a worker with an engine in it, and what happens when it dies. */

import { type Endpoint, proxy, type Remote, releaseProxy, transfer, wrap } from "comlink";
import { InlayError } from "../errors.ts";
import type { GenerateEvent } from "../generate/events.ts";
import type { GenerateRequest, Prompt } from "../generate/request.ts";
import type { EngineOptions, LoadProgress } from "../options.ts";
import type { PinEvent } from "../prompts/pin-events.ts";
import type { EngineApi, ModelInfo, WireSource } from "./engine-api.ts";
import { receiveEvents } from "./stream.ts";
import { registerTransferHandlers } from "./transfer.ts";
import { asInlayError } from "./wire-error.ts";

/** A started worker, in a browser or in Node. */
export interface EngineWorker {
  readonly endpoint: Endpoint;
  /** Calls back once if the worker fails or ends by itself. */
  onDeath(f: (error: InlayError) => void): void;
  terminate(): void;
}

/** A model source ready to cross. */
export interface PreparedSource {
  readonly wire: WireSource;
  readonly transfer: Transferable[];
}

/** Calls to one engine. Every call ends: with its result, its error, or the worker's death. */
export class EngineClient {
  readonly #worker: EngineWorker;
  readonly #engine: Remote<EngineApi>;
  /** Rejects when the worker dies or is terminated. */
  readonly #death: Promise<never>;
  #die: (error: InlayError) => void = () => {};
  /** Why every further call rejects. */
  #dead: InlayError | undefined;
  #nCalls = 0;

  constructor(worker: EngineWorker) {
    registerTransferHandlers();
    this.#worker = worker;
    this.#engine = wrap<EngineApi>(worker.endpoint);
    this.#death = new Promise((_, reject) => {
      this.#die = (error) => {
        this.#dead ??= error;
        reject(error);
      };
    });
    this.#death.catch(() => {}); // whoever waits for a call hears of it
    worker.onDeath((error) => this.#die(error));
  }

  /** Loads the model; an abort ends loading in the worker and rejects with `signal.reason`. */
  async load(
    source: PreparedSource,
    options: EngineOptions,
    wasmBase: string | null,
    onProgress: (progress: LoadProgress) => void,
    signal: AbortSignal | null,
  ): Promise<ModelInfo> {
    signal?.throwIfAborted();
    const call = ++this.#nCalls;
    const wire = transfer(source.wire, source.transfer);
    const onAbort = () => void this.#engine.cancel(call);
    signal?.addEventListener("abort", onAbort);
    // Progress comes over a port of its own, so the last of it may arrive after the result: it is told here.
    let isLoading = true;
    const tell = (progress: LoadProgress) => {
      try {
        onProgress(progress);
      } catch (error) {
        // As with an event listener that throws: the page hears of it, loading goes on.
        queueMicrotask(() => {
          throw error;
        });
      }
    };
    const whileLoading = proxy((progress: LoadProgress) => {
      if (isLoading && progress.progress < 1) tell(progress);
    });
    try {
      const info = await this.call((engine) => engine.load(call, wire, options, wasmBase, whileLoading));
      isLoading = false;
      tell({ phase: "warm-up", loaded: 1, total: 1, progress: 1 });
      return info;
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      isLoading = false;
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** One call to the engine. */
  async call<T>(f: (engine: Remote<EngineApi>) => Promise<T>): Promise<T> {
    if (this.#dead) throw this.#dead;
    try {
      return await Promise.race([f(this.#engine), this.#death]);
    } catch (error) {
      throw asInlayError(error);
    }
  }

  /** The events of one answer. Aborting rejects with `signal.reason`. */
  generate(request: GenerateRequest, signal?: AbortSignal): AsyncGenerator<GenerateEvent, void> {
    return this.#stream((port) => this.#engine.generate(request, transfer(port, [port])), signal);
  }

  /** Runs a prompt into the cache; yields its progress. */
  prefill(prompt: Prompt, signal?: AbortSignal): AsyncGenerator<GenerateEvent, void> {
    return this.#stream((port) => this.#engine.prefill(prompt, transfer(port, [port])), signal);
  }

  /** Pins, opens or imports a prompt: its progress, then the open prompt. */
  pinEvents(
    start: (engine: Remote<EngineApi>, port: MessagePort) => Promise<void>,
    signal?: AbortSignal,
  ): AsyncGenerator<PinEvent, void> {
    return this.#stream((port) => start(this.#engine, transfer(port, [port])), signal);
  }

  /** Ends the worker; calls in progress and later ones reject with `disposed`, or `worker-died` if it had. Idempotent. */
  terminate(): void {
    if (this.#dead?.code === "disposed") return;
    this.#die(new InlayError("disposed", "the model was disposed"));
    this.#engine[releaseProxy]();
    this.#worker.terminate();
  }

  async *#stream<Event>(
    start: (port: MessagePort) => Promise<void>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Event, void> {
    if (this.#dead) throw this.#dead;
    signal?.throwIfAborted();
    const { port1, port2 } = new MessageChannel();
    // A failing start would leave the reader waiting: it counts as the worker's death for this stream.
    const failed = start(port2).then(() => this.#death);
    yield* receiveEvents(port1, signal, Promise.race([failed, this.#death]));
  }
}
