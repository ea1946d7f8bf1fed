// The model that this project ships, in a page: Inlay's greedy answers are, token by token, those of llama.cpp as wllama
// has it, with the same file, but for ties.

import { assert } from "chai";
import { loadModel, type Model } from "/dist/inlay.js";
import { needlePrompt } from "../../src/eval/needle.ts";
import { makeNeedleCase, NEEDLE_TASKS, type NeedleTask } from "../../src/eval/needle-cases.ts";
import { browser, skip } from "./harness/index.ts";

const LENGTH = 512;
const MAX_TOKENS = 48;

/**
 * Both programs round activations to eight bits, but llama.cpp's WASM code in wllama 2.3.1 not as ggml's formula has it: with
 * Q8_0 its log-probabilities are 0.1 from those of the formula already after a prompt of one token, where attention has nothing
 * to add up, and Inlay's are none; with f16, which needs no such rounding, wllama's are none either (computed in f64 beside
 * both). So where two tokens are nearly equally likely answers part; a place like that counts as a tie, since what follows it
 * is another answer.
 */
const FILES = [
  { file: "inlay-recall-f16.gguf", nQuestions: 50, tie: 0, identical: 50 },
  { file: "inlay-recall-q8_0.gguf", nQuestions: 25, tie: 0.25, identical: 22 },
] as const;

/** What is used here of wllama 2 (npm @wllama/wllama@2.3.1), the last one that tells the ids. */
interface Wllama {
  loadModel(
    files: Blob[],
    config: { n_ctx: number; n_threads: number; cache_type_k: "f32"; cache_type_v: "f32" },
  ): Promise<void>;
  createCompletion(
    prompt: string,
    options: { nPredict: number; sampling: { temp: number }; onNewToken(token: number): void },
  ): Promise<string>;
  isTokenEOG(token: number): boolean;
  exit(): Promise<void>;
}

interface WllamaModule {
  Wllama: new (assets: Record<string, string>, config: { logger: object }) => Wllama;
}

const ignore = () => undefined;
const SILENT = { debug: ignore, log: ignore, warn: ignore, error: console.error };

const WLLAMA = "/node_modules/wllama-2/esm";

async function loadWllama(file: Blob): Promise<Wllama> {
  const url = `${WLLAMA}/index.js`;
  const { Wllama } = (await import(url)) as WllamaModule;
  const assets = { "single-thread/wllama.wasm": `${WLLAMA}/single-thread/wllama.wasm` };
  const wllama = new Wllama(assets, { logger: SILENT });
  await wllama.loadModel([file], { n_ctx: 1024, n_threads: 1, cache_type_k: "f32", cache_type_v: "f32" });
  return wllama;
}

async function answerOfWllama(wllama: Wllama, prompt: string): Promise<number[]> {
  const ids: number[] = [];
  const onNewToken = (token: number) => void ids.push(token);
  await wllama.createCompletion(prompt, { nPredict: MAX_TOKENS, sampling: { temp: 0 }, onNewToken });
  return ids.filter((id) => !wllama.isTokenEOG(id));
}

/** The ids, and at each how much likelier it was than the second, as the difference of log-probabilities. */
async function answerOfInlay(model: Model, prompt: string): Promise<{ ids: number[]; leads: number[] }> {
  const ids: number[] = [];
  const leads: number[] = [];
  const request = { prompt, temperature: 0, max_tokens: MAX_TOKENS, logprobs: true, top_logprobs: 2 };
  for await (const event of model.complete(request)) {
    if (event.kind !== "text") continue;
    ids.push(...event.tokenIds);
    for (const { top } of event.logprobs ?? []) leads.push(top[0]!.logprob - top[1]!.logprob);
  }
  return { ids, leads };
}

function promptOf(i: number): string {
  const tasks = Object.keys(NEEDLE_TASKS) as NeedleTask[];
  const task = tasks[i % tasks.length]!;
  const needle = makeNeedleCase({ task, length: LENGTH, depth: (i % 5) / 4, index: i, seed: 50 });
  return `<|im_start|>user\n${needlePrompt(needle)}<|im_end|>\n<|im_start|>assistant\n`;
}

for (const expected of FILES)
  it(`${expected.nQuestions} answers of ${expected.file} are those of llama.cpp`, async function () {
    if (browser !== "chromium") skip(this, "one browser is enough to compare two programs");
    this.timeout(180_000);
    const response = await fetch(`/models/recall/${expected.file}`);
    assert.isTrue(response.ok, `${expected.file} is not there`);
    const file = await response.blob();
    const wllama = await loadWllama(file);
    const model = await loadModel(file, { device: "wasm" });
    try {
      const different: string[] = [];
      let identical = 0;
      for (let i = 0; i < expected.nQuestions; i++) {
        const prompt = promptOf(i);
        const theirs = await answerOfWllama(wllama, prompt);
        const { ids, leads } = await answerOfInlay(model, prompt);
        assert.isAbove(theirs.length, 2);
        const at = theirs.findIndex((id, j) => id !== ids[j]);
        if (at < 0 && theirs.length === ids.length) identical++;
        else if (at < 0 || !(leads[at]! < expected.tie))
          different.push(
            `${i}: ${await model.detokenize(theirs)} | ${await model.detokenize(ids)}, lead ${leads[at]}`,
          );
      }
      console.log(
        `${expected.file}: ${identical} of ${expected.nQuestions} answers identical, the others after a tie`,
      );
      assert.deepEqual(different, []);
      assert.isAtLeast(identical, expected.identical);
    } finally {
      await model.dispose();
      await wllama.exit();
    }
  });
