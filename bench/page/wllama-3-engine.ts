/**
 * wllama 3.8.1, the current release, by the clock of the llama.cpp server inside it: it has no low-level API any more.
 * Its types want the prompt as text; the server also takes ids, which makes the prompts those of the other engines.
 */

import type { LoggerWithoutDebug, Wllama } from "@wllama/wllama/esm/index.js";
import type { BenchEngine, EngineOptions } from "./engine.ts";

class Wllama3Engine implements BenchEngine {
  constructor(private readonly wllama: Wllama) {}

  get about(): string {
    const { n_batch, n_ubatch } = this.wllama.getLoadedContextInfo();
    return `${this.wllama.getNumThreads()} thread(s), n_batch ${n_batch}/${n_ubatch}, KV f16 (its default)`;
  }

  async prefill(ids: readonly number[]): Promise<number> {
    const { prompt_n, prompt_ms } = await this.#run(ids, 1, false);
    if (prompt_n !== ids.length) throw new Error(`${prompt_n} of ${ids.length} prompt tokens were run`);
    return prompt_ms / 1000;
  }

  async decode(ids: readonly number[], nTokens: number): Promise<number> {
    const { predicted_n, predicted_ms } = await this.#run(ids, nTokens + 1, true);
    if (predicted_n !== nTokens + 1) throw new Error(`${predicted_n} tokens, not ${nTokens + 1}`);
    // Its clock starts with the first token.
    return predicted_ms / 1000;
  }

  dispose(): Promise<void> {
    return this.wllama.exit();
  }

  async #run(ids: readonly number[], maxTokens: number, cache: boolean) {
    const request = {
      prompt: ids as unknown as string,
      max_tokens: maxTokens,
      temperature: 0,
      ignore_eos: true,
      cache_prompt: cache,
    };
    const { timings } = await this.wllama.createCompletion({ ...request, stream: false });
    if (!timings) throw new Error("the answer has no timings");
    return timings;
  }
}

export async function loadWllama3(
  blob: Blob,
  { contextLength, threads }: EngineOptions,
): Promise<BenchEngine> {
  const url = "/wllama-3/index.js";
  const { Wllama: Constructor, LoggerWithoutDebug: logger } = (await import(url)) as {
    Wllama: typeof Wllama;
    LoggerWithoutDebug: typeof LoggerWithoutDebug;
  };
  const wllama = new Constructor(
    { default: "/wllama-3/wasm/wllama.wasm" },
    { suppressNativeLog: true, logger },
  );
  await wllama.loadModel([blob], {
    n_ctx: contextLength,
    n_threads: threads,
    n_gpu_layers: 0,
    n_parallel: 1,
  });
  return new Wllama3Engine(wllama);
}
