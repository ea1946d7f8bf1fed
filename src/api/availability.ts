/** What this browser (or Node) can run, before anything is loaded. */

import { relaxedSimd, threads as sharedMemory, simd } from "wasm-feature-detect";

/** What `availability` found. */
export interface Availability {
  /** Inlay runs here. False only without WebAssembly SIMD. */
  readonly available: boolean;
  /** The faster SIMD instructions of 2023 and later. */
  readonly relaxedSimd: boolean;
  /** More than one thread: the page is cross-origin isolated. */
  readonly threads: boolean;
  /** A WebGPU adapter was found. */
  readonly webgpu: boolean;
  /** What is missing and what to do about it; empty when everything is there. */
  readonly hints: readonly string[];
}

/** Checks the environment; downloads nothing. */
export async function availability(): Promise<Availability> {
  const gpu = (globalThis.navigator as Navigator | undefined)?.gpu as GPU | undefined;
  const isNode = "process" in globalThis && !("window" in globalThis || "importScripts" in globalThis);
  const [available, isRelaxed, canShare, adapter] = await Promise.all([
    simd(),
    relaxedSimd(),
    sharedMemory(),
    gpu?.requestAdapter() ?? null,
  ]);
  const threads = canShare && (isNode || globalThis.crossOriginIsolated === true);
  const hints: string[] = [];
  if (!available)
    hints.push("WebAssembly SIMD is missing: Inlay needs Chrome 91, Firefox 89, Safari 16.4 or newer");
  if (available && !threads)
    hints.push(
      "one thread only: serve the page with Cross-Origin-Opener-Policy: same-origin and " +
        "Cross-Origin-Embedder-Policy: require-corp to use more",
    );
  return { available, relaxedSimd: isRelaxed, threads, webgpu: adapter !== null, hints };
}
