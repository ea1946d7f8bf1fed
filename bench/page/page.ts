/** The page's side of the benchmarks: engines by name, run one step at a time by bench/browser.ts. */

import type { BenchPrompt } from "../prompts.ts";
import type { BenchEngine, EngineOptions } from "./engine.ts";
import { loadInlay } from "./inlay-engine.ts";
import type { KernelRequest, KernelTimes } from "./kernel-jobs.ts";
import { measureListing, measurePinned, type PinnedRequest } from "./pinned-job.ts";
import { loadWllama2 } from "./wllama-2-engine.ts";
import { loadWllama3 } from "./wllama-3-engine.ts";

export type EngineName = "inlay/relaxed" | "inlay/plain" | "wllama-2.3.1" | "wllama-3.8.1";

const LOADERS: Readonly<Record<EngineName, (blob: Blob, options: EngineOptions) => Promise<BenchEngine>>> = {
  "inlay/relaxed": (blob, options) => loadInlay(blob, options, "relaxed"),
  "inlay/plain": (blob, options) => loadInlay(blob, options, "plain"),
  "wllama-2.3.1": loadWllama2,
  "wllama-3.8.1": loadWllama3,
};

/** Models by address: fetched once. */
const blobs = new Map<string, Blob>();
/** Loaded engines by the key that bench/browser.ts gave them. */
const engines = new Map<string, BenchEngine>();

async function modelBlob(url: string): Promise<Blob> {
  const known = blobs.get(url);
  if (known) return known;
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  const blob = await response.blob();
  blobs.set(url, blob);
  return blob;
}

function engine(key: string): BenchEngine {
  const found = engines.get(key);
  if (!found) throw new Error(`no engine ${key} is loaded`);
  return found;
}

/** Runs a job in a worker of its own. */
function runKernel(request: KernelRequest): Promise<KernelTimes> {
  const worker = new Worker("/kernel-worker.js", { type: "module" });
  return new Promise<KernelTimes>((resolve, reject) => {
    worker.addEventListener("message", ({ data }: MessageEvent<{ times?: KernelTimes; error?: string }>) => {
      if (data.times) resolve(data.times);
      else reject(new Error(data.error));
    });
    worker.addEventListener("error", (event) =>
      reject(new Error(event.message || "the worker did not load")),
    );
    worker.postMessage(request);
  }).finally(() => worker.terminate());
}

/** What bench/browser.ts calls. Times are seconds. */
const steps = {
  isIsolated: crossOriginIsolated,

  /** Loads a model; how long it took (without fetching the file), and what the engine says about itself. */
  async load(key: string, name: EngineName, modelUrl: string, options: EngineOptions) {
    const blob = await modelBlob(modelUrl);
    const start = performance.now();
    const loaded = await LOADERS[name](blob, options);
    const seconds = (performance.now() - start) / 1000;
    engines.set(key, loaded);
    return { seconds, about: loaded.about };
  },

  async dispose(key: string): Promise<void> {
    const loaded = engine(key);
    engines.delete(key);
    await loaded.dispose();
  },

  runKernel,
  runPinned: async ({ modelUrl, ...request }: PinnedRequest) =>
    measurePinned(await modelBlob(modelUrl), request),
  runListing: async (modelUrl: string, n: number, rounds: number) =>
    measureListing(await modelBlob(modelUrl), n, rounds),
  prefill: (key: string, prompt: BenchPrompt) => engine(key).prefill(prompt),
  decode: (key: string, prompt: BenchPrompt, nTokens: number) => engine(key).decode(prompt, nTokens),
};

export type BenchSteps = typeof steps;

declare global {
  var bench: BenchSteps;
}
globalThis.bench = steps;
