/** Which of the four WASM builds runs here. */

import { relaxedSimd, threads as sharedMemory, simd } from "wasm-feature-detect";
import { InlayError } from "../../errors.ts";

/** Names of the builds: build/wasm/inlay-{variant}.wasm. */
export type WasmVariant = "simd" | "relaxed" | "simd-threads" | "relaxed-threads";

/** Most threads the C++ side has room for (kMaxThreads in wasm/parallel.h). */
const MAX_THREADS = 16;

/** The build for this device, and how many threads it gets. */
export interface WasmChoice {
  readonly variant: WasmVariant;
  /** 1 for the builds without threads. */
  readonly nThreads: number;
}

/**
 * Picks the fastest build that this place can run. Throws `unsupported-environment` without SIMD, and
 * `invalid-option` when more than one thread is asked for where memory cannot be shared.
 */
export async function chooseWasm(
  threads: number | "auto",
  host: { readonly nProcessors: number; readonly canShareMemory: boolean },
): Promise<WasmChoice> {
  if (!(await simd()))
    throw new InlayError(
      "unsupported-environment",
      "this browser has no WebAssembly SIMD; Inlay needs Chrome 91, Firefox 89, Safari 16.4 or newer",
    );
  // WebKitGTK calls isolated pages isolated and cannot share memory with a worker all the same.
  const canShareMemory = host.canShareMemory && (await sharedMemory());
  const nThreads = chooseThreads(threads, { ...host, canShareMemory });
  const instructions = (await relaxedSimd()) ? "relaxed" : "simd";
  return { variant: nThreads > 1 ? `${instructions}-threads` : instructions, nThreads };
}

/**
 * All processors of a small machine, half of a bigger one: its second half is mostly hyperthreads, which add
 * nothing to SIMD loops and would fight with the page.
 */
function chooseThreads(
  threads: number | "auto",
  host: { readonly nProcessors: number; readonly canShareMemory: boolean },
): number {
  if (threads === "auto") {
    if (!host.canShareMemory) return 1;
    const n = host.nProcessors <= 4 ? host.nProcessors : Math.ceil(host.nProcessors / 2);
    return Math.max(1, Math.min(8, n));
  }
  if (threads > 1 && !host.canShareMemory)
    throw new InlayError(
      "invalid-option",
      `threads is ${threads}, but memory cannot be shared with workers here: the page is not cross-origin isolated, or the browser cannot. Serve it ` +
        "with the headers Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp, " +
        "or leave threads out",
      { threads },
    );
  return Math.min(threads, MAX_THREADS);
}
