/** A browser's worker: files beside the module, or where `assets` says; compute workers that the page starts. */

import type { WasmVariant } from "../backend/wasm/variant.ts";
import { InlayError } from "../errors.ts";
import { relayedComputeWorker } from "../rpc/compute-relay.ts";
import { IdbPromptStore } from "../storage/idb-prompt-store.ts";
import type { Host } from "./host.ts";

/** Written out one by one, so that bundlers see and copy the files. */
const WASM_URLS: Readonly<Record<WasmVariant, () => URL>> = {
  simd: () => new URL("./inlay-simd.wasm", import.meta.url),
  relaxed: () => new URL("./inlay-relaxed.wasm", import.meta.url),
  "simd-threads": () => new URL("./inlay-simd-threads.wasm", import.meta.url),
  "relaxed-threads": () => new URL("./inlay-relaxed-threads.wasm", import.meta.url),
};

/** `wasmBase`: the folder of the WASM builds, when they are not beside this module. */
export function browserHost(wasmBase: string | null): Host {
  return {
    kind: "browser",
    nProcessors: navigator.hardwareConcurrency || 1,
    canShareMemory: globalThis.crossOriginIsolated === true,
    compileWasm: (variant) => compile(wasmBase === null ? WASM_URLS[variant]() : inFolder(wasmBase, variant)),
    startComputeWorker: () => relayedComputeWorker(globalThis),
    gpu: async () => navigator.gpu as GPU | undefined,
    openPromptStore: () => new IdbPromptStore(),
  };
}

function inFolder(base: string, variant: WasmVariant): URL {
  return new URL(`inlay-${variant}.wasm`, base.endsWith("/") ? base : `${base}/`);
}

async function compile(url: URL): Promise<WebAssembly.Module> {
  const failed = (what: string, cause?: unknown) =>
    new InlayError(
      "source-failed",
      `cannot load the WASM build ${url.href}: ${what}; put Inlay's .wasm files there, or set assets.wasm to ` +
        "the folder that has them",
      { url: url.href },
      { cause },
    );
  let response: Response;
  try {
    response = await fetch(url);
  } catch (cause) {
    throw failed("the request failed", cause);
  }
  if (!response.ok) throw failed(`HTTP status ${response.status}`);
  try {
    // compileStreaming insists on the MIME type; servers that do not know it are met with a plain compile.
    if (response.headers.get("content-type")?.startsWith("application/wasm"))
      return await WebAssembly.compileStreaming(response);
    return await WebAssembly.compile(await response.arrayBuffer());
  } catch (cause) {
    throw failed(cause instanceof Error ? cause.message : String(cause), cause);
  }
}
