/** `inlay bench`: prefill and decode speed of a model on this machine, medians of several runs. */

import type { Model } from "../api/model.ts";
import type { GenerateUsage } from "../generate/events.ts";
import { integerList, readArguments } from "./arguments.ts";
import { BENCH_ATTENTION_USAGE, benchAttention } from "./bench-attention.ts";
import { loadArgument, MODEL_OPTIONS } from "./model-argument.ts";

export const BENCH_USAGE =
  "inlay bench MODEL [--prompt-tokens 512,4096] [--contexts 0,4096,16384] [--decode-tokens N] [--runs N]\n" +
  "          [--device …] [--threads N] [--context N] [--attention POLICY] [--budget B] [--head-budgets FILE]\n" +
  "          [--boundaries FILE] [--kv FORMAT] [--json]\n" +
  `  ${BENCH_ATTENTION_USAGE}`;

const OPTIONS = {
  ...MODEL_OPTIONS,
  "prompt-tokens": "string",
  contexts: "string",
  "decode-tokens": "integer",
  runs: "integer",
  json: "boolean",
} as const;

/** Tokens per second. */
interface BenchRow {
  phase: "prefill" | "decode";
  /** Tokens of the prompt (prefill), or of context before the measured tokens (decode). */
  tokens: number;
  median: number;
  min: number;
  max: number;
  runs: number;
}

export async function bench(args: readonly string[], signal: AbortSignal): Promise<void> {
  if (args[0]?.split("=")[0] === "--attention") return benchAttention(args);
  const { options, positionals } = readArguments(args, OPTIONS, ["MODEL"]);
  const prompts = integerList("prompt-tokens", options["prompt-tokens"] ?? "128,512", 1);
  const contexts = integerList("contexts", options.contexts ?? "0,512", 0);
  const nDecode = options["decode-tokens"] ?? 32;
  const nRuns = options.runs ?? 3;
  const needed = Math.max(...prompts, ...contexts.map((n) => Math.max(1, n) + nDecode)) + 1;
  const loadOptions = { ...options, context: options.context ?? needed };
  await using model = await loadArgument(positionals[0]!, loadOptions, signal);

  const bencher = new Bencher(model, signal);
  await bencher.run(8, 8); // compiles what is compiled on first use
  const rows: BenchRow[] = [];
  for (const tokens of prompts)
    rows.push(
      await bencher.rate("prefill", tokens, nRuns, async () => {
        const usage = await bencher.run(tokens, 1);
        return tokens / usage.prefillSeconds;
      }),
    );
  for (const tokens of contexts)
    rows.push(
      await bencher.rate("decode", tokens, nRuns, async () => {
        const usage = await bencher.run(Math.max(1, tokens), nDecode);
        return (usage.completionTokens - 1) / usage.decodeSeconds;
      }),
    );

  if (options.json) {
    process.stdout.write(`${JSON.stringify({ model: model.config, rows })}\n`);
    return;
  }
  const { kind, wasm, threads, gpu, kvFormat } = model.config.device;
  process.stdout.write(
    `${model.config.name} ${model.config.fileType} on ${kind} (${wasm}, ${threads} thread(s)${gpu ? `, ${gpu}` : ""}), ` +
      `KV ${kvFormat}; tokens/s, median of ${nRuns} [min–max]\n`,
  );
  for (const { phase, tokens, median, min, max } of rows)
    process.stdout.write(
      `  ${phase.padEnd(8)} ${String(tokens).padStart(6)}  ${median.toFixed(1).padStart(8)}  ` +
        `[${min.toFixed(1)}–${max.toFixed(1)}]\n`,
    );
}

class Bencher {
  #nRuns = 0;

  constructor(
    private readonly model: Model,
    private readonly signal: AbortSignal,
  ) {}

  /** Answers a made-up prompt with exactly `nAnswer` tokens; no two runs share a prefix. */
  async run(nPrompt: number, nAnswer: number): Promise<GenerateUsage> {
    const { vocabSize } = this.model.config;
    const first = ++this.#nRuns;
    const ids = Uint32Array.from({ length: nPrompt }, (_, i) => (i * 7919 + first * 104_729) % vocabSize);
    const request = { prompt: ids, max_tokens: nAnswer, temperature: 0, ignore_eos: true };
    for await (const event of this.model.complete(request, { signal: this.signal }))
      if (event.kind === "end") return event.usage;
    throw new Error("internal: the answer had no end");
  }

  async rate(
    phase: BenchRow["phase"],
    tokens: number,
    runs: number,
    measure: () => Promise<number>,
  ): Promise<BenchRow> {
    const values: number[] = [];
    for (let i = 0; i < runs; i++) values.push(await measure());
    values.sort((a, b) => a - b);
    const median = values[Math.floor(values.length / 2)]!;
    return { phase, tokens, median, min: values[0]!, max: values.at(-1)!, runs };
  }
}
