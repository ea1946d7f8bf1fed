/**
 * wllama 3.8.1, the current release, by the clock of the llama.cpp server inside it: it has no low-level API any more.
 * Prompts go in as text, and it is checked that they are as many tokens as they should be.
 */

import type { LoggerWithoutDebug, Wllama } from "@wllama/wllama/esm/index.js";
import type { BenchPrompt } from "../prompts.ts";
import type { BenchEngine, EngineOptions } from "./engine.ts";

class Wllama3Engine implements BenchEngine {
  constructor(private readonly wllama: Wllama) {}

  get about(): string {
    const { n_batch, n_ubatch } = this.wllama.getLoadedContextInfo();
    return `${this.wllama.getNumThreads()} thread(s), n_batch ${n_batch}/${n_ubatch}, KV f16 (its default)`;
  }

  async prefill(prompt: BenchPrompt): Promise<number> {
    const { prompt_n, prompt_ms } = await this.#run(prompt, 1, false);
    if (prompt_n !== prompt.ids.length)
      throw new Error(`${prompt_n} of ${prompt.ids.length} tokens were run`);
    return prompt_ms / 1000;
  }

  async decode(prompt: BenchPrompt, nTokens: number): Promise<number> {
    const { predicted_n, predicted_ms } = await this.#run(prompt, nTokens + 1, true);
    if (predicted_n !== nTokens + 1) throw new Error(`${predicted_n} tokens, not ${nTokens + 1}`);
    // Its clock starts with the first token.
    return predicted_ms / 1000;
  }

  dispose(): Promise<void> {
    return this.wllama.exit();
  }

  async #run({ ids, text }: BenchPrompt, maxTokens: number, cache: boolean) {
    const request = {
      prompt: text,
      max_tokens: maxTokens,
      temperature: 0,
      ignore_eos: true,
      cache_prompt: cache,
    };
    const { timings, usage } = await this.wllama.createCompletion({ ...request, stream: false });
    if (usage.prompt_tokens !== ids.length)
      throw new Error(`the prompt became ${usage.prompt_tokens} tokens, not ${ids.length}`);
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
