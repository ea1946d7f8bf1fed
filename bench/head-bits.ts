/** Bits chosen head by head, as pinned prompts have them by default: what the choice saves, takes and costs. */

import fs from "node:fs";
import { DensePolicy } from "../src/attention/dense.ts";
import { WindowPolicy } from "../src/attention/window.ts";
import { PageConverter } from "../src/backend/wasm/page-converter.ts";
import { WasmAttention } from "../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../src/backend/wasm/wasm-ops.ts";
import { Checkpoint } from "../src/engine/yielding.ts";
import { makeNeedleCase, NEEDLE_TASKS, type NeedleTask } from "../src/eval/needle-cases.ts";
import { openModelFile } from "../src/gguf/model-file.ts";
import { openSources } from "../src/gguf/source.ts";
import { type ColdFormat, MixedFormat, NARROW, WIDE } from "../src/kv/mixed-format.ts";
import { PAGE_TOKENS } from "../src/kv/page.ts";
import type { PagedCache } from "../src/kv/paged-cache.ts";
import { wholePageBytes } from "../src/kv/quantize.ts";
import { forward, type Transformer } from "../src/model/forward.ts";
import { MadeUpText } from "../src/placement/made-up-text.ts";
import { timedCall } from "../src/placement/timed-call.ts";
import { BitsChooser } from "../src/prompts/choose-bits.ts";
import { CALIBRATION_TOKENS, WindowQueries } from "../src/prompts/window-queries.ts";
import { Tokenizer } from "../src/tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../src/tokenizer/vocabulary.ts";
import { densePlan, openTransformer } from "../test/fixtures/transformer.ts";
import { cannotRun, instantiate } from "../test/fixtures/wasm.ts";
import { ensureModel } from "./models.ts";
import type { Section } from "./section.ts";
import { limitResult, pairedResult } from "./statistics.ts";

const RECALL = new URL("../models/recall/inlay-recall-f16.gguf", import.meta.url);
const LENGTHS = [1024, 2048];
const N_DOCUMENTS = 8;
const klId = (length: number) => `head-bits/recall/${length / 1024}k/kl`;
const bitsId = (length: number) => `head-bits/recall/${length / 1024}k/bits`;

/** Design section 7. */
const BITS_GOAL = 2.7;

const TRIAL_ID = "head-bits/trial/2k/smollm2-135m";
const TRIAL_TOKENS = 2048;
/** What the choice may take of the prefill. */
const TRIAL_SHARE = 0.02;

const DECODE_TOKENS = 16_384;
const decodeId = (format: string) => `head-bits/decode/16k/${format}`;
const HEADS = { nLayers: 1, nHeads: 9, nKvHeads: 3, headDim: 64 } as const;

const variant = cannotRun("relaxed") ? "simd" : "relaxed";

async function openModel(bytes: Uint8Array<ArrayBuffer>) {
  const wasm = await instantiate(variant);
  const model = await openTransformer(bytes, wasm);
  const { nLayers, nHeads, nKvHeads, headDim, windows, attentionScale } = model.config;
  const shape = { nLayers, nHeads, nKvHeads, headDim, window: windows };
  const chooser = new BitsChooser(shape, attentionScale, wasm, new PageConverter(wasm, headDim));
  return { model, shape, chooser };
}

type Opened = Awaited<ReturnType<typeof openModel>>;

/** Prefills as pinning does; the cache, and the queries of the last tokens. */
async function prefill({ model, shape }: Opened, ids: Uint32Array) {
  const cache = model.attention.createCache();
  const plan = densePlan(model);
  const queries = new WindowQueries(shape, ids.length - CALIBRATION_TOKENS);
  while (cache.nTokens < ids.length) {
    const from = cache.nTokens;
    const end = from < queries.from ? Math.min(queries.from, from + 256) : ids.length;
    const watched = from < queries.from ? plan : { ...plan, observer: queries.observe };
    await forward(model, cache, ids.subarray(from, end), watched, "none", new Checkpoint(undefined));
  }
  return { cache, queries };
}

/** A document's tokens, the tokens of question and answer, and from where the answer's are. */
interface Asked {
  readonly document: Uint32Array;
  readonly rest: Uint32Array;
  readonly answerFrom: number;
}

async function askedDocuments(bytes: Uint8Array<ArrayBuffer>, length: number): Promise<Asked[]> {
  const file = await openModelFile(openSources(bytes));
  const vocabulary = vocabularyFromMetadata({ get: (key) => file.metadata.get(key)?.value });
  const tokenizer = Tokenizer.create(await instantiate("simd"), vocabulary);
  const encode = (text: string) => tokenizer.encode(text, { addSpecial: true, parseSpecial: true });
  const tasks = Object.keys(NEEDLE_TASKS) as NeedleTask[];
  const asked = Array.from({ length: N_DOCUMENTS }, (_, i) => {
    const spec = { task: tasks[i % tasks.length]!, length, depth: [0.3, 0.6, 0.1, 0.8][i % 4]!, index: i };
    const { document, question, answer } = makeNeedleCase({ ...spec, seed: 7 });
    const start = `<|im_start|>system\n${document}<|im_end|>\n`;
    const open = `${start}<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`;
    const ids = encode(`${open}${answer}<|im_end|>`);
    const nDocument = encode(start).length;
    const rest = ids.subarray(nDocument);
    return { document: ids.subarray(0, nDocument), rest, answerFrom: encode(open).length - 1 - nDocument };
  });
  tokenizer.dispose();
  await file.close();
  return asked;
}

/** Log-probabilities at the answer's positions, read after `cache` coded as `format`. */
async function answerLogprobs(
  model: Transformer,
  cache: PagedCache,
  { rest, answerFrom }: Asked,
  format: ColdFormat | undefined,
): Promise<Float32Array[]> {
  const fork = cache.fork();
  if (format) fork.quantize(format);
  const logits = (await forward(model, fork, rest, densePlan(model), "all", new Checkpoint(undefined)))!;
  fork.dispose();
  const { vocabSize } = model.config;
  return Array.from({ length: rest.length - 1 - answerFrom }, (_, i) => {
    const row = logits.slice((answerFrom + i) * vocabSize, (answerFrom + i + 1) * vocabSize);
    const max = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const logSum = max + Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0));
    return row.map((x) => x - logSum);
  });
}

function meanKl(exact: readonly Float32Array[], coded: readonly Float32Array[]): number {
  const sum = exact.reduce(
    (total, p, i) => total + p.reduce((kl, logP, t) => kl + Math.exp(logP) * (logP - coded[i]![t]!), 0),
    0,
  );
  return sum / exact.length;
}

/** Thousandths of a nat over all documents, and bits of an element of the coded pages. */
async function measureRecall(length: number) {
  const bytes = new Uint8Array(fs.readFileSync(RECALL));
  const opened = await openModel(bytes);
  const { model, chooser, shape } = opened;
  const sums = { chosen: 0, q2: 0, q4: 0, wide: 0 };
  for (const asked of await askedDocuments(bytes, length)) {
    const { cache, queries } = await prefill(opened, asked.document);
    const wide = await chooser.wideHeads(cache, queries, new Checkpoint(undefined));
    const exact = await answerLogprobs(model, cache, asked, undefined);
    for (const [name, format] of [
      ["chosen", new MixedFormat(wide)],
      ["q2", NARROW],
      ["q4", WIDE],
    ] as const)
      sums[name] += (1000 * meanKl(exact, await answerLogprobs(model, cache, asked, format))) / N_DOCUMENTS;
    sums.wide += wide.length / N_DOCUMENTS;
    cache.dispose();
  }
  const nHeads = shape.nLayers * shape.nKvHeads;
  const bits = (format: "q2" | "q4") =>
    (8 * wholePageBytes(format, shape.headDim)) / (2 * PAGE_TOKENS * shape.headDim);
  const share = sums.wide / nHeads;
  return { ...sums, nHeads, bits: share * bits(WIDE) + (1 - share) * bits(NARROW) };
}

/** Seconds of prefilling, and of choosing. */
async function measureTrial() {
  const bytes = new Uint8Array(fs.readFileSync(ensureModel("smollm2-135m", "q4_0")));
  const opened = await openModel(bytes);
  const ids = Uint32Array.from({ length: TRIAL_TOKENS }, (_, i) => 300 + ((i * 7919) % 40_000));
  const start = performance.now();
  const { cache, queries } = await prefill(opened, ids);
  const filled = performance.now();
  const wide = await opened.chooser.wideHeads(cache, queries, new Checkpoint(undefined));
  const end = performance.now();
  return { prefill: (filled - start) / 1000, trial: (end - filled) / 1000, nWide: wide.length };
}

/** Milliseconds of one token's attention over the coded prompt, by round, of each format. */
async function measureDecode(formats: readonly ColdFormat[], rounds: number): Promise<number[][]> {
  const ops = new WasmOps(await instantiate(variant));
  const shape = { ...HEADS, window: [undefined] };
  const attention = new WasmAttention(ops, { ...HEADS, format: "f32" });
  const layer = { ops, attention, shape };
  const text = new MadeUpText(shape);
  const everything = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };
  const dense = { policy: new DensePolicy(shape), budget: everything };
  // Little is read while it is filled: keys and values are all that is wanted of the prompt.
  const window = {
    policy: new WindowPolicy(shape),
    budget: { tokens: 1, sinks: 0, local: 0, denseBelow: 0 },
  };
  const cache = attention.createCache();
  while (cache.nTokens < DECODE_TOKENS) {
    using rows = text.next(ops, 512);
    await timedCall(layer, cache, window, rows, 512, true);
  }
  const caches = formats.map((format) => {
    const fork = cache.fork();
    fork.quantize(format);
    return fork;
  });
  const times = formats.map(() => [] as number[]);
  for (let round = 0; round < rounds; round++) {
    const sums = formats.map(() => 0);
    for (let token = 0; token < 16; token++) {
      using rows = text.next(ops, 1);
      for (const [i, each] of caches.entries())
        sums[i]! += (await timedCall(layer, each, dense, rows)).attention;
    }
    for (const [i, sum] of sums.entries()) times[i]!.push(sum / 16);
  }
  for (const each of [cache, ...caches]) each.dispose();
  return times;
}

export const headBits: Section = {
  title: "Bits head by head",
  about:
    "Pinned prompts have 2 bits by default, but 4 in heads whose attention outputs would change by more than a tenth of their energy, tried " +
    "with the prompt's own last queries. `kl`: divergence from f32 pages, thousandths of a nat, of the recall model's answers to " +
    `${N_DOCUMENTS} documents of 1,024 or 2,048 tokens, beside 2 bits for all heads; \`bits\`: of an element of the quantized pages on average, ranges included, ` +
    `beside the goal of ${BITS_GOAL}. \`trial\`: seconds that the choice took after prefilling 2,048 tokens, beside ${100 * TRIAL_SHARE} % of the ` +
    "prefill. `decode`: milliseconds of dense attention of one token over 16,384 in one layer of smollm2-135m's shape, with 4 bits in one of three heads, beside pages of " +
    "one format. In Node, one thread.",
  baseline: "other",
  owns: (id) => id.startsWith("head-bits/"),
  ids: [
    ...LENGTHS.flatMap((length) => [klId(length), bitsId(length)]),
    TRIAL_ID,
    decodeId(NARROW),
    decodeId(WIDE),
  ],
  leftOut: [],
  needsPeer: false,
  async *run({ repeat, log }, wanted) {
    for (const length of LENGTHS) {
      if (!wanted.has(klId(length)) && !wanted.has(bitsId(length))) continue;
      const { chosen, q2, q4, wide, nHeads, bits } = await measureRecall(length);
      log(
        `  ${length} tokens: KL ${chosen.toFixed(2)} mnats with ${wide.toFixed(2)} of ${nHeads} heads at 4 bits, ` +
          `${q2.toFixed(2)} with all at 2, ${q4.toFixed(2)} with all at 4`,
      );
      if (wanted.has(klId(length))) yield limitResult(klId(length), "mnats", [chosen], q2);
      if (wanted.has(bitsId(length))) yield limitResult(bitsId(length), "bits", [bits], BITS_GOAL);
    }
    if (wanted.has(TRIAL_ID)) {
      const { prefill, trial, nWide } = await measureTrial();
      log(`  prefill ${prefill.toFixed(1)} s, choice ${trial.toFixed(2)} s: ${nWide} heads at 4 bits`);
      yield limitResult(TRIAL_ID, "s", [trial], TRIAL_SHARE * prefill);
    }
    const uniform = ([NARROW, WIDE] as const).filter((format) => wanted.has(decodeId(format)));
    if (uniform.length === 0) return;
    const [mixed, ...others] = await measureDecode([new MixedFormat([0]), ...uniform], repeat ?? 7);
    for (const [i, format] of uniform.entries())
      yield pairedResult(decodeId(format), "ms", mixed!, others[i]!);
  },
};
