/** Inlay, through its public API and its own clock (`usage`): from the prompt's first to its last token, and from the first generated token to the last, sampling and text included. */

import type { loadModel as LoadModel, Model } from "../../src/index.ts";
import type { BenchPrompt } from "../prompts.ts";
import type { BenchEngine, EngineOptions } from "./engine.ts";

/** "relaxed" is what the browser gets; "plain" is what one without relaxed SIMD gets. */
export type InlayBuild = "relaxed" | "plain";

class InlayEngine implements BenchEngine {
  constructor(private readonly model: Model) {}

  get about(): string {
    const { kind, wasm, threads, kvFormat } = this.model.config.device;
    return `${kind}, ${wasm}, ${threads} thread(s), KV ${kvFormat}`;
  }

  async prefill({ ids }: BenchPrompt): Promise<number> {
    const { prefillSeconds, cachedTokens } = await this.#run(ids, 1);
    if (cachedTokens > 0) throw new Error(`${cachedTokens} of ${ids.length} prompt tokens were cached`);
    return prefillSeconds;
  }

  async decode({ ids }: BenchPrompt, nTokens: number): Promise<number> {
    const { decodeSeconds, completionTokens } = await this.#run(ids, nTokens + 1);
    if (completionTokens !== nTokens + 1) throw new Error(`${completionTokens} tokens, not ${nTokens + 1}`);
    return decodeSeconds;
  }

  dispose(): Promise<void> {
    return this.model.dispose();
  }

  async #run(ids: readonly number[], maxTokens: number) {
    const request = { prompt: ids, max_tokens: maxTokens, temperature: 0, ignore_eos: true };
    for await (const event of this.model.complete(request)) if (event.kind === "end") return event.usage;
    throw new Error("the answer had no end");
  }
}

export async function loadInlay(blob: Blob, options: EngineOptions, build: InlayBuild): Promise<BenchEngine> {
  const url = "/dist/inlay.js";
  const { loadModel } = (await import(url)) as { loadModel: typeof LoadModel };
  const model = await loadModel(blob, {
    ...options,
    device: "wasm",
    ...(build === "plain" && { assets: { wasm: "/plain/" } }),
  });
  return new InlayEngine(model);
}
