/**
 * Helper threads for the WASM module: workers that share its memory and take chunks of loops (wasm/parallel.cpp).
 *
 * Each worker instantiates the same module on the same memory, gets a stack of its own, and then stays inside
 * `pool_run` until the pool ends; it never handles another message.
 */

import { InlayError } from "../../errors.ts";
import type { ComputeWorker, Host } from "../../host/host.ts";
import { WasmModule } from "./module.ts";

/** What a compute worker is started with. */
export interface ComputeStart {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** 1, 2, …; the engine is thread 0. */
  readonly thread: number;
  readonly stack: number;
  readonly stackBytes: number;
}

/** What it says once, when it is about to enter the loop. */
export const COMPUTE_READY = "ready";

const STACK_BYTES = 256 * 1024;

/** Starting a worker takes milliseconds; one that says nothing for this long never will. */
const START_TIMEOUT_MS = 20_000;

export class ThreadPool {
  readonly #workers: ComputeWorker[] = [];

  private constructor(
    private readonly wasm: WasmModule,
    /** The engine's thread included. */
    readonly nThreads: number,
  ) {}

  /** Starts `nThreads - 1` workers. Rejects with `worker-died` if one cannot start. */
  static async start(
    host: Host,
    wasm: WasmModule,
    module: WebAssembly.Module,
    nThreads: number,
  ): Promise<ThreadPool> {
    const pool = new ThreadPool(wasm, nThreads);
    try {
      const starts = Array.from({ length: nThreads - 1 }, (_, i) => pool.#startWorker(host, module, i + 1));
      await Promise.all(starts);
    } catch (error) {
      pool.dispose();
      throw error;
    }
    pool.useThreads(nThreads);
    return pool;
  }

  /** How many threads take chunks from now on, 1 to nThreads. */
  useThreads(n: number): void {
    this.wasm.call("pool_set_threads", n);
  }

  /** Ends the workers. Idempotent. */
  dispose(): void {
    if (this.#workers.length === 0) return;
    this.wasm.call("pool_quit");
    for (const worker of this.#workers.splice(0)) worker.terminate();
  }

  #startWorker(host: Host, module: WebAssembly.Module, thread: number): Promise<void> {
    const worker = host.startComputeWorker();
    this.#workers.push(worker);
    const stack = this.wasm.alloc(STACK_BYTES, "a thread's stack");
    return new Promise((resolve, reject) => {
      const died = (cause: unknown, what: string) =>
        reject(new InlayError("worker-died", `compute worker ${thread} ${what}`, { thread }, { cause }));
      const timer = setTimeout(
        () => died(undefined, `did not start within ${START_TIMEOUT_MS / 1000} s`),
        START_TIMEOUT_MS,
      );
      worker.listen(
        (message) => {
          clearTimeout(timer);
          if (message === COMPUTE_READY) resolve();
          else died(message, `answered ${JSON.stringify(message)}`);
        },
        (error) => {
          clearTimeout(timer);
          died(error, `failed: ${error.message}`);
        },
      );
      const start: ComputeStart = {
        module,
        memory: this.wasm.memory,
        thread,
        stack,
        stackBytes: STACK_BYTES,
      };
      worker.post(start);
    });
  }
}

/** A compute worker's whole life: says COMPUTE_READY, or what went wrong, and returns when the pool ends. */
export async function runComputeWorker(start: ComputeStart, say: (message: string) => void): Promise<void> {
  let wasm: WasmModule;
  try {
    wasm = await WasmModule.instantiate({ module: start.module, shared: true, memory: start.memory });
    wasm.call("_emscripten_wasm_worker_initialize", start.stack, start.stackBytes);
  } catch (error) {
    say(String(error));
    return;
  }
  say(COMPUTE_READY);
  wasm.call("pool_run", start.thread);
}
