/** What sparse attention and quantized caches cost trained models: perplexity, divergence, and attention kept. */

import fs from "node:fs";
import path from "node:path";
import { type PolicyName, PREFILL_POLICIES } from "../src/attention/names.ts";
import { type EvalModel, openEvalModel } from "../src/eval/eval-model.ts";
import { evaluateQuality, type QualityResult, qualityCases } from "../src/eval/quality.ts";
import { qualityChart } from "../src/eval/quality-chart.ts";
import { openSources } from "../src/gguf/source.ts";
import { readBoundaryPredictor } from "../src/model/boundary-file.ts";
import { TEST_HOST } from "../test/fixtures/engine.ts";
import { sharedPath } from "../test/fixtures/shared.ts";
import { ROOT } from "../tools/setup/shell.mjs";
import { trainPredictor } from "./learned-boundaries.ts";
import type { BenchResult } from "./report.ts";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

interface Subject {
  readonly name: string;
  /** Undefined where it is not on this machine. */
  readonly file: string | undefined;
  readonly text: string | undefined;
  readonly tokens: number;
  /** What a boundary predictor is trained on; undefined: none is. */
  readonly trainingText?: string | undefined;
}

const ownFile = (name: string) => {
  const file = path.join(ROOT, "models/recall", name);
  return fs.existsSync(file) ? file : undefined;
};

const SUBJECTS: readonly Subject[] = [
  {
    ...{ name: "inlay-recall", tokens: 2048 },
    file: ownFile("inlay-recall-f16.gguf"),
    text: ownFile("sample-document.txt"),
  },
  {
    ...{ name: "stories260K", tokens: 2048 },
    file: sharedPath("data", "models", "stories260K", "stories260K-f32.gguf"),
    text: sharedPath("data", "text", "alice.txt"),
    trainingText: sharedPath("data", "text", "pride-and-prejudice.txt"),
  },
  // Within the length that it was trained for: 256 keys are more than a quarter of them.
  {
    ...{ name: "stories260K-short", tokens: 512 },
    file: sharedPath("data", "models", "stories260K", "stories260K-f32.gguf"),
    text: sharedPath("data", "text", "alice.txt"),
  },
  {
    ...{ name: "tinystories-656k", tokens: 2048 },
    file: sharedPath("data", "models", "tinystories-656k", "tinystories-656k-f32.gguf"),
    text: sharedPath("data", "text", "alice.txt"),
  },
  {
    ...{ name: "tinystories-656k-short", tokens: 512 },
    file: sharedPath("data", "models", "tinystories-656k", "tinystories-656k-f32.gguf"),
    text: sharedPath("data", "text", "alice.txt"),
  },
];

const BUDGETS = [0.25, 0.5] as const;
const SPARSE = PREFILL_POLICIES.filter((policy) => policy !== "dense");
const QUANTIZED = ["q8", "q4", "q2"] as const;

/** KL in thousandths of a nat. */
const NAMES = ["kept", "attained", "kl", "perplexity"] as const;

function idOf(
  model: string,
  { policy, budget, kv }: Pick<QualityResult, "policy" | "budget" | "kv">,
): string {
  return `quality/${model}/${policy}${policy === "dense" ? "" : `-${100 * budget}`}/${kv}`;
}

/** What dhsa keeps with a boundary predictor trained for the model. */
const learnedId = (model: string) => `quality/${model}/dhsa-25-learned/f16/kept`;

/** Every policy over f16 pages, and every quantized format under dense attention and under dhsa. */
const CASES = [
  ...qualityCases(SPARSE, BUDGETS, ["f16"]),
  ...qualityCases(["dense"], [], ["f16", ...QUANTIZED]),
  ...qualityCases(["dhsa"], [0.25], QUANTIZED),
];

/** A text that is read nearly whole anyway shows little more. */
const casesOf = (tokens: number) => (tokens < 1024 ? qualityCases(SPARSE, [0.25], ["f16"]) : CASES);

const isShown = (policy: PolicyName, kv: string, what: (typeof NAMES)[number]) =>
  what === "kept" || what === "attained"
    ? policy !== "dense" && kv === "f16"
    : policy !== "dense" || kv !== "f16";

export const quality: Section = {
  title: "Quality of sparse attention and quantized caches",
  about:
    "As `inlay eval MODEL --perplexity` has it: a text is read in calls of 128 tokens by the policies with the engine's own settings (32 sinks, 64 " +
    "tokens before the block, never fewer than 256 keys), and its second half counts. `kept` is the share, in percent, of every seventh query's " +
    "attention on the keys that it read, beside that of `window` at the same budget; `attained` is the same beside what the best " +
    "choice of as many whole pages in each layer and block of 32 queries would keep, which knows all probabilities; `kl` is KL(dense f16 || this) in thousandths " +
    "of a nat, beside `window`'s, of dense attention beside what would raise the perplexity by our goal (0.1 for q8 and q4, 0.3 for q2); " +
    "`perplexity` beside that of dense attention over f16 pages. inlay-recall " +
    "(5 layers, 4 heads of 64 on 2) reads the document that comes with it, stories260K (heads of 8) and tinystories-656k (2 layers, heads " +
    "of 16), both trained for 512 tokens, 2048 tokens of Alice in Wonderland, of which those past 512 are beyond what they know, and 512 of " +
    "them (`-short`), where 256 keys are half and not a quarter. `dhsa-25-learned` is dhsa with a boundary predictor that was trained on " +
    "12,288 tokens of Pride and Prejudice (tools/boundary-predictor), beside the training-free boundaries.",
  baseline: "other",
  owns: (id) => id.startsWith("quality/"),
  ids: SUBJECTS.flatMap(({ name, tokens, trainingText }) => [
    ...casesOf(tokens).flatMap((c) =>
      NAMES.filter((what) => isShown(c.policy, c.kv, what)).map((what) => `${idOf(name, c)}/${what}`),
    ),
    ...(trainingText === undefined ? [] : [learnedId(name)]),
  ]),
  pictures: SUBJECTS.map(({ name }) => ({
    file: pictureOf(name),
    alt: `Quality of ${name}`,
    of: `quality/${name}/`,
  })),
  leftOut: [
    { what: "models of 100 million and more trained weights", reason: "there are none on this machine" },
  ],
  needsPeer: false,
  async *run({ log, savePicture }, wanted) {
    for (const { name, file, text, tokens, trainingText } of SUBJECTS) {
      const cases = casesOf(tokens).filter((c) =>
        NAMES.some((what) => wanted.has(`${idOf(name, c)}/${what}`)),
      );
      const learnsBoundaries = wanted.has(learnedId(name));
      if (cases.length === 0 && !learnsBoundaries) continue;
      if (file === undefined || text === undefined) {
        log(`  ${name} is not on this machine`);
        continue;
      }
      const model = await openEvalModel({
        ...{ host: TEST_HOST, device: "wasm", threads: 1 },
        sources: openSources(new Uint8Array(fs.readFileSync(file))),
      });
      try {
        const content = fs.readFileSync(text, "utf8").slice(0, 16 * tokens);
        const ids = model.tokenizer.encode(content, { addSpecial: true }).slice(0, tokens);
        if (learnsBoundaries && trainingText !== undefined) {
          const bytes = await trainPredictor(file, trainingText, log);
          if (bytes) yield await learnedLine(name, model, ids, bytes);
        }
        if (cases.length === 0) continue;
        const report = await evaluateQuality(model, ids, { cases });
        savePicture(
          pictureOf(name),
          qualityChart(report, `${name}, ${report.tokens} tokens of ${path.basename(text)}`),
        );
        for (const result of report.results) {
          if (result.recall)
            log(
              `  ${idOf(name, result)}: worst 5 % keep at most ${percent(result.recall.p5)} %, ` +
                `${percent(result.pagesRead)} % of the pages read`,
            );
          for (const line of resultLines(name, result, report.results, report.reference.perplexity))
            if (wanted.has(line.id)) yield line;
        }
      } finally {
        model.dispose();
      }
    }
  },
};

/** Kept attention with learned boundaries, beside that with the training-free ones. */
async function learnedLine(
  name: string,
  model: EvalModel,
  ids: Uint32Array,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<BenchResult> {
  const cases = qualityCases(["dhsa"], [0.25], ["f16"]);
  const boundaryScore = await readBoundaryPredictor(openSources(bytes), model.config);
  const kept: number[] = [];
  for (const options of [{ cases, boundaryScore }, { cases }]) {
    const { results } = await evaluateQuality(model, ids, options);
    kept.push(100 * results[0]!.recall!.mean);
  }
  return limitResult(learnedId(name), "%", [kept[0]!], kept[1]!);
}

function pictureOf(name: string): string {
  return `quality-${name}.svg`;
}

const percent = (share: number) => (100 * share).toFixed(1);

function resultLines(
  model: string,
  result: QualityResult,
  all: readonly QualityResult[],
  densePerplexity: number,
): BenchResult[] {
  const { policy, budget, kv, recall, kl, perplexity } = result;
  const id = idOf(model, result);
  const window = all.find((r) => r.policy === "window" && r.budget === budget && r.kv === "f16");
  const goal = Math.log(1 + (kv === "q2" ? 0.3 : 0.1) / densePerplexity);
  const klBeside = policy === "dense" ? goal : window?.kl;
  return [
    ...(recall && window?.recall
      ? [limitResult(`${id}/kept`, "%", [100 * recall.mean], 100 * window.recall.mean)]
      : []),
    ...(recall ? [limitResult(`${id}/attained`, "%", [100 * recall.mean], 100 * recall.attainable)] : []),
    ...(klBeside === undefined ? [] : [limitResult(`${id}/kl`, "mnats", [1000 * kl], 1000 * klBeside)]),
    limitResult(`${id}/perplexity`, "ppl", [perplexity], densePerplexity),
  ];
}
