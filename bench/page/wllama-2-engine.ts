/** wllama 2.3.1, the last release with SIMD kernels, through its low-level API: nothing but calls of decode() is timed. */

import type { LoggerWithoutDebug, Wllama } from "wllama-2/esm/index.js";
import type { BenchPrompt } from "../prompts.ts";
import { type BenchEngine, commonPrefix, type EngineOptions } from "./engine.ts";

class Wllama2Engine implements BenchEngine {
  /** Ids in the KV cache. */
  #cached: number[] = [];

  constructor(private readonly wllama: Wllama) {}

  get about(): string {
    const { n_batch, n_ubatch } = this.wllama.getLoadedContextInfo();
    return `${this.wllama.getNumThreads()} thread(s), n_batch ${n_batch}/${n_ubatch}, KV f16 (its default)`;
  }

  async prefill({ ids }: BenchPrompt): Promise<number> {
    await this.wllama.kvClear();
    this.#cached = [];
    return this.#append(ids);
  }

  async decode({ ids }: BenchPrompt, nTokens: number): Promise<number> {
    const common = commonPrefix(this.#cached, ids);
    if (common === 0) await this.wllama.kvClear();
    else await this.wllama.kvRemove(common, this.#cached.length - common);
    this.#cached.length = common;
    if (common < ids.length) await this.#append(ids.slice(common));
    let seconds = 0;
    for (let i = 0; i < nTokens; i++) seconds += await this.#append([ids[i % ids.length]!]);
    return seconds;
  }

  dispose(): Promise<void> {
    return this.wllama.exit();
  }

  async #append(ids: readonly number[]): Promise<number> {
    const start = performance.now();
    const { nPast } = await this.wllama.decode([...ids], {});
    const seconds = (performance.now() - start) / 1000;
    this.#cached.push(...ids);
    if (nPast !== this.#cached.length) throw new Error(`${nPast} tokens cached, not ${this.#cached.length}`);
    return seconds;
  }
}

export async function loadWllama2(
  blob: Blob,
  { contextLength, threads }: EngineOptions,
): Promise<BenchEngine> {
  const url = "/wllama-2/index.js";
  const { Wllama: Constructor, LoggerWithoutDebug: logger } = (await import(url)) as {
    Wllama: typeof Wllama;
    LoggerWithoutDebug: typeof LoggerWithoutDebug;
  };
  const wllama = new Constructor(
    {
      "single-thread/wllama.wasm": "/wllama-2/single-thread/wllama.wasm",
      "multi-thread/wllama.wasm": "/wllama-2/multi-thread/wllama.wasm",
    },
    { suppressNativeLog: true, logger },
  );
  await wllama.loadModel([blob], { n_ctx: contextLength, n_threads: threads });
  return new Wllama2Engine(wllama);
}
