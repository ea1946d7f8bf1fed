/** What the engine needs from the place it runs in: a browser's worker, or a Node worker thread. */

import type { WasmVariant } from "../backend/wasm/variant.ts";
import type { PromptStore } from "../storage/prompt-store.ts";

/** A worker that does nothing but help with loops (src/backend/wasm/threads.ts). */
export interface ComputeWorker {
  post(message: unknown): void;
  /** Calls back with each message; errors and unexpected ends go to `onFailure`. */
  listen(onMessage: (message: unknown) => void, onFailure: (error: Error) => void): void;
  terminate(): void;
}

export interface Host {
  readonly kind: "browser" | "node";
  /** Logical processors; at least 1. */
  readonly nProcessors: number;
  /** Shared WebAssembly memory may be created here (in pages: cross-origin isolation). */
  readonly canShareMemory: boolean;
  /** Fetches and compiles one of the WASM builds. Rejects with `source-failed` naming the address. */
  compileWasm(variant: WasmVariant): Promise<WebAssembly.Module>;
  startComputeWorker(): ComputeWorker;
  /** WebGPU's entry point, or undefined where there is none. */
  gpu(): Promise<GPU | undefined>;
  /** Where pinned prompts are kept. Throws `unsupported-environment` where they cannot be. */
  openPromptStore(): PromptStore;
}
