/** Node: files beside the bundle, worker threads, WebGPU through the optional package `webgpu`. */

import { existsSync, readFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import type { WasmVariant } from "../backend/wasm/variant.ts";
import { InlayError } from "../errors.ts";
import { MemoryPromptStore } from "../storage/memory-prompt-store.ts";
import type { ComputeWorker, Host } from "./host.ts";

/** Where the built files are. */
export interface NodeAssets {
  /** Folder of the WASM builds. */
  readonly wasmFolder: URL;
  /** The compute worker's script. */
  readonly computeWorker: URL;
}

export function nodeHost(assets: NodeAssets): Host {
  return {
    kind: "node",
    nProcessors: availableParallelism(),
    canShareMemory: true,
    compileWasm: async (variant) => compile(new URL(`inlay-${variant}.wasm`, assets.wasmFolder), variant),
    startComputeWorker: () => nodeComputeWorker(assets.computeWorker),
    gpu: nodeGpu,
    openPromptStore: () => new MemoryPromptStore(),
  };
}

async function compile(url: URL, variant: WasmVariant): Promise<WebAssembly.Module> {
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = readFileSync(fileURLToPath(url));
  } catch (cause) {
    throw new InlayError(
      "source-failed",
      `cannot read the WASM build ${fileURLToPath(url)}; run \`npm run build\``,
      { url: url.href, variant },
      { cause },
    );
  }
  return WebAssembly.compile(bytes);
}

function nodeComputeWorker(script: URL): ComputeWorker {
  const worker = new Worker(script);
  // A helper must not keep a finished program alive.
  worker.unref();
  return {
    post: (message) => worker.postMessage(message),
    listen(onMessage, onFailure) {
      worker.on("message", onMessage);
      worker.on("error", onFailure);
    },
    terminate: () => void worker.terminate(),
  };
}

/** Chromium's software Vulkan driver, used where no other is installed; Debian, Ubuntu and Chrome's own folders. */
const SWIFTSHADER = [
  "/usr/lib/chromium/vk_swiftshader_icd.json",
  "/usr/lib/chromium-browser/vk_swiftshader_icd.json",
  "/opt/google/chrome/vk_swiftshader_icd.json",
];

async function nodeGpu(): Promise<GPU | undefined> {
  let dawn: typeof import("webgpu");
  try {
    dawn = await import("webgpu");
  } catch {
    return undefined; // the package is optional; without it there is no WebGPU in Node
  }
  Object.assign(globalThis, dawn.globals);
  // Mesa's Vulkan drivers complain on standard error when there is no such folder.
  process.env.XDG_RUNTIME_DIR ??= tmpdir();
  const gpu = dawn.create([]);
  if (await gpu.requestAdapter()) return gpu;
  const driver = SWIFTSHADER.find((file) => existsSync(file));
  if (driver === undefined || process.env.VK_ICD_FILENAMES !== undefined) return gpu;
  process.env.VK_ICD_FILENAMES = driver;
  return dawn.create([]);
}
