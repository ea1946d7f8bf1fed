/** What a clustered prompt costs in answers: divergence from dense attention, and needles found. */

import fs from "node:fs";
import path from "node:path";
import { PageConverter } from "../src/backend/wasm/page-converter.ts";
import { Checkpoint } from "../src/engine/yielding.ts";
import { evaluateNeedles } from "../src/eval/needle.ts";
import { openModelFile } from "../src/gguf/model-file.ts";
import { openSources } from "../src/gguf/source.ts";
import type * as Inlay from "../src/index.node.ts";
import { CODE_BITS, type QuantizedFormat } from "../src/kv/quantize.ts";
import { attentionShape, forward } from "../src/model/forward.ts";
import type { PinBits } from "../src/prompts/coding.ts";
import { Squeezer } from "../src/prompts/squeeze.ts";
import { Tokenizer } from "../src/tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../src/tokenizer/vocabulary.ts";
import { densePlan, openTransformer } from "../test/fixtures/transformer.ts";
import { cannotRun, instantiate } from "../test/fixtures/wasm.ts";
import { ROOT } from "../tools/setup/shell.mjs";
import { klDivergence, logSoftmax } from "./distributions.ts";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

const MODEL = path.join(ROOT, "models/recall/inlay-recall-f16.gguf");
const TEXT = path.join(ROOT, "models/recall/sample-document.txt");
/** Tokens of the text that are pinned, and that are read after them. */
const PINNED = 2944;
const READ = 256;

interface Reading {
  readonly name: string;
  /** 0: all keys are read. */
  readonly sparsity: number;
  readonly isTwoLevel?: boolean;
  /** undefined: f16. */
  readonly cold?: QuantizedFormat;
}

const EXACT: Reading = { name: "dense/f16", sparsity: 0 };
const READINGS: readonly Reading[] = [
  { name: "dense/q4", sparsity: 0, cold: "q4" },
  { name: "dense/q2", sparsity: 0, cold: "q2" },
  ...[0.7, 0.8, 0.9].map((sparsity) => ({ name: `${100 * sparsity}/f16`, sparsity })),
  { name: "90-two-level/f16", sparsity: 0.9, isTwoLevel: true },
  { name: "70/q2", sparsity: 0.7, cold: "q2" },
  { name: "90/q2", sparsity: 0.9, cold: "q2" },
];

const idOf = ({ name }: Reading, what: "kl" | "needles") => `squeezed-quality/${name}/${what}`;

/** The number of coarse clusters at which `pin` itself turns to two levels is far beyond this model's context. */
const hasNeedles = ({ isTwoLevel }: Reading) => !isTwoLevel;

/** Log-probabilities at each of the READ tokens after the pinned ones, decoded one by one: (READ, vocabSize). */
async function logprobsAfter(
  bytes: Uint8Array<ArrayBuffer>,
  ids: Uint32Array,
  { sparsity, isTwoLevel = false, cold }: Reading,
): Promise<Float64Array[]> {
  const wasm = await instantiate(cannotRun("relaxed") ? "simd" : "relaxed");
  const model = await openTransformer(bytes, wasm, "f16");
  const { config } = model;
  const cache = model.attention.createCache();
  const pages = new PageConverter(wasm, config.headDim);
  const squeezer = new Squeezer(attentionShape(config), config.attentionScale, wasm, pages);
  const { before, queries } = squeezer.watch(PINNED);
  const plan = densePlan(model);
  const run = (from: number, to: number, wanted: "none" | "last", observer = plan.observer) =>
    forward(model, cache, ids.subarray(from, to), { ...plan, observer }, wanted, new Checkpoint(undefined));
  for (let from = 0; from < before; from += 512) await run(from, Math.min(before, from + 512), "none");
  await run(before, PINNED, "none", queries.observe);
  if (sparsity > 0) {
    const steps = squeezer.squeeze(cache, { sparsity, maxMissing: 1 }, queries, new Checkpoint(undefined));
    let step = await steps.next();
    while (!step.done) step = await steps.next();
    const { info, records } = step.value;
    const index = squeezer.index(PINNED, info.layers, records);
    const calibrated = squeezer.calibrate(index, PINNED, queries, [sparsity], isTwoLevel);
    cache.replaceCompanion(squeezer.prefix({ nTokens: PINNED }, { ...info, ...calibrated }, records));
  }
  if (cold) cache.quantize(cold);
  const rows: Float64Array[] = [];
  for (let i = PINNED; i < PINNED + READ; i++) rows.push(logSoftmax((await run(i, i + 1, "last"))!));
  cache.dispose();
  return rows;
}

export const squeezedQuality: Section = {
  title: "Quality of squeezed attention",
  about:
    `inlay-recall (5 layers, 4 heads of 64 on 2). \`kl\`: ${PINNED} tokens of the document that comes with it are pinned and its next ${READ} read ` +
    "one by one; the mean of KL(dense f16 || this) in thousandths of a nat, beside the divergence that would raise the perplexity of " +
    "dense attention by 0.3. `needles`: documents of 2,048 tokens are pinned and asked about, as `inlay eval --needle --pinned` does it (8 tasks, 3 " +
    "depths); right answers beside those of dense attention over f16 pages. `70`, `80`, `90`: percent of the keys that are left out.",
  baseline: "other",
  owns: (id) => id.startsWith("squeezed-quality/"),
  ids: READINGS.flatMap((reading) => [
    idOf(reading, "kl"),
    ...(hasNeedles(reading) ? [idOf(reading, "needles")] : []),
  ]),
  leftOut: [],
  needsPeer: false,
  async *run({ log }, wanted) {
    const bytes = new Uint8Array(fs.readFileSync(MODEL));
    const divergences = READINGS.filter((reading) => wanted.has(idOf(reading, "kl")));
    if (divergences.length > 0) {
      const file = await openModelFile(openSources(bytes));
      const vocabulary = vocabularyFromMetadata({ get: (key) => file.metadata.get(key)?.value });
      const tokenizer = Tokenizer.create(await instantiate("simd"), vocabulary);
      const ids = tokenizer.encode(fs.readFileSync(TEXT, "utf8"), { addSpecial: true });
      if (ids.length < PINNED + READ) throw new RangeError(`${TEXT} has ${ids.length} tokens`);
      const exact = await logprobsAfter(bytes, ids, EXACT);
      const nll =
        exact.slice(0, -1).reduce((sum, row, i) => sum - row[ids[PINNED + i + 1]!]!, 0) / (READ - 1);
      const goal = 1000 * Math.log(1 + 0.3 / Math.exp(nll));
      for (const reading of divergences) {
        const rows = await logprobsAfter(bytes, ids, reading);
        const kl = exact.map((row, i) => klDivergence(row, rows[i]!));
        log(`  ${reading.name}: largest KL ${Math.max(...kl).toPrecision(3)}`);
        const mean = (1000 * kl.reduce((a, b) => a + b, 0)) / READ;
        yield limitResult(idOf(reading, "kl"), "mnats", [mean], goal);
      }
    }
    const asked = READINGS.filter((reading) => wanted.has(idOf(reading, "needles")));
    if (asked.length === 0) return;
    const { loadModel } = (await import(path.join(ROOT, "dist/node.mjs"))) as typeof Inlay;
    const model = await loadModel(new Blob([bytes]), { device: "wasm", threads: 1 });
    try {
      const rightOf = async ({ sparsity, cold }: Reading) => {
        const pinned = { bits: (cold ? CODE_BITS[cold] : 16) as PinBits, sparsity };
        const { overall } = await evaluateNeedles(model, {
          ...{ lengths: [2048], depths: [0, 0.5, 1], count: 1 },
          pinned,
        });
        return overall;
      };
      const dense = await rightOf(EXACT);
      log(`  needles: dense attention finds ${dense.right} of ${dense.total}`);
      for (const reading of asked) {
        const { right } = await rightOf(reading);
        yield limitResult(idOf(reading, "needles"), "right", [right], dense.right);
      }
    } finally {
      await model.dispose();
    }
  },
};
