/** Pinned prompts in the page, through Inlay's public API: prefilled and stored once, restored round by round. */

import type { loadModel as LoadModel, Model, PinBits } from "../../src/index.ts";

export interface PinnedRequest {
  readonly modelUrl: string;
  readonly text: string;
  /** Tokens that prompt and answer may have. */
  readonly contextLength: number;
  readonly bits: PinBits | undefined;
  readonly rounds: number;
}

/** Seconds, and bytes. */
export interface PinnedTimes {
  readonly tokens: number;
  /** How the prompt was attended to. */
  readonly attention: string;
  /** Of a key or value on average. */
  readonly bits: number;
  readonly prefillSeconds: number;
  /** From the call of `open`, which does not wait for the pages, to the first token of an answer, in a fresh worker. */
  readonly restoreSeconds: readonly number[];
  /** Stored bytes, all included. */
  readonly byteLength: number;
  /** Bytes of the prompt's keys and values in f16. */
  readonly f16Bytes: number;
}

/** Loads the model, and disposes of it after `use`. */
async function withModel<T>(
  blob: Blob,
  contextLength: number,
  use: (model: Model) => Promise<T>,
): Promise<T> {
  const url = "/dist/inlay.js";
  const { loadModel } = (await import(url)) as { loadModel: typeof LoadModel };
  const model = await loadModel(blob, { device: "wasm", contextLength });
  try {
    return await use(model);
  } finally {
    await model.dispose();
  }
}

export async function measurePinned(
  blob: Blob,
  { text, contextLength, bits, rounds }: Omit<PinnedRequest, "modelUrl">,
): Promise<PinnedTimes> {
  const id = "bench";
  const { info, f16Bytes } = await withModel(blob, contextLength, async (model) => {
    await model.pinned.delete(id);
    const prompt = await model.pin(text, { id, raw: true, bits });
    const { nLayers, nKvHeads, headDim } = model.config;
    return { info: prompt.info, f16Bytes: prompt.info.tokens * nLayers * nKvHeads * headDim * 2 * 2 };
  });
  const restoreSeconds: number[] = [];
  for (let round = 0; round < rounds; round++)
    restoreSeconds.push(
      await withModel(blob, contextLength, async (model) => {
        // The kernels are compiled by now, as they are where a page has answered before.
        for await (const _ of model.complete({ prompt: "warm", max_tokens: 4 }));
        const start = performance.now();
        const pinned = await model.pinned.open(id, { wait: false });
        for await (const event of model.complete({ pinned, prompt: " and", max_tokens: 1, ignore_eos: true }))
          if (event.kind === "end" && event.usage.cachedTokens !== info.tokens)
            throw new Error(`${event.usage.cachedTokens} of ${info.tokens} tokens were cached`);
        return (performance.now() - start) / 1000;
      }),
    );
  await withModel(blob, contextLength, (model) => model.pinned.delete(id));
  const { tokens, attention, prefillSeconds, byteLength } = info;
  return { tokens, attention, bits: info.bits, prefillSeconds, restoreSeconds, byteLength, f16Bytes };
}

/** Milliseconds of listing `n` stored prompts, round by round, the first in a fresh worker. */
export async function measureListing(blob: Blob, n: number, rounds: number): Promise<number[]> {
  const ids = Array.from({ length: n }, (_, i) => `listed ${i}`);
  await withModel(blob, 512, async (model) => {
    for (const id of ids) {
      const prompt = await model.pin(`Prompt ${id} has these words.`, { id, raw: true });
      await prompt.close();
    }
  });
  return withModel(blob, 512, async (model) => {
    const times: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      const { length } = await model.pinned.list();
      times.push(performance.now() - start);
      if (length < n) throw new Error(`${length} of ${n} prompts are listed`);
    }
    for (const id of ids) await model.pinned.delete(id);
    return times;
  });
}
