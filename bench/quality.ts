/** What sparse attention and quantized caches cost trained models: perplexity, divergence, and attention kept. */

import fs from "node:fs";
import path from "node:path";
import { type PolicyName, PREFILL_POLICIES } from "../src/attention/names.ts";
import { openEvalModel } from "../src/eval/eval-model.ts";
import { evaluateQuality, type QualityResult, qualityCases } from "../src/eval/quality.ts";
import { qualityChart } from "../src/eval/quality-chart.ts";
import { openSources } from "../src/gguf/source.ts";
import { TEST_HOST } from "../test/fixtures/engine.ts";
import { sharedPath } from "../test/fixtures/shared.ts";
import { ROOT } from "../tools/setup/shell.mjs";
import type { BenchResult } from "./report.ts";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

interface Subject {
  readonly name: string;
  /** Undefined where it is not on this machine. */
  readonly file: string | undefined;
  readonly text: string | undefined;
  readonly tokens: number;
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
  },
];

const BUDGETS = [0.25, 0.5] as const;
const SPARSE = PREFILL_POLICIES.filter((policy) => policy !== "dense");
const QUANTIZED = ["q8", "q4", "q2"] as const;

/** KL in thousandths of a nat. */
const NAMES = ["kept", "kl", "perplexity"] as const;

function idOf(
  model: string,
  { policy, budget, kv }: Pick<QualityResult, "policy" | "budget" | "kv">,
): string {
  return `quality/${model}/${policy}${policy === "dense" ? "" : `-${100 * budget}`}/${kv}`;
}

/** Every policy over f16 pages, and every quantized format under dense attention and under dhsa. */
const CASES = [
  ...qualityCases(SPARSE, BUDGETS, ["f16"]),
  ...qualityCases(["dense"], [], ["f16", ...QUANTIZED]),
  ...qualityCases(["dhsa"], [0.25], QUANTIZED),
];

const isShown = (policy: PolicyName, kv: string, what: (typeof NAMES)[number]) =>
  what === "kept" ? policy !== "dense" && kv === "f16" : policy !== "dense" || kv !== "f16";

export const quality: Section = {
  title: "Quality of sparse attention and quantized caches",
  about:
    "As `inlay eval MODEL --perplexity` has it: a text is read in calls of 128 tokens by the policies with the engine's own settings (32 sinks, 128 " +
    "tokens before the block, never fewer than 256 keys), and its second half counts. `kept` is the share, in percent, of every seventh query's " +
    "attention on the keys that it read, beside that of `window` at the same budget; `kl` is KL(dense f16 || this) in thousandths " +
    "of a nat, beside `window`'s, of dense attention beside what would raise the perplexity by our goal (0.1 for q8 and q4, 0.3 for q2); " +
    "`perplexity` beside that of dense attention over f16 pages. inlay-recall " +
    "(5 layers, 4 heads of 64 on 2) reads the document that comes with it, stories260K (heads of 8, trained for 512 tokens) 2048 tokens of " +
    "Alice in Wonderland, of which more than 512 are beyond what it knows.",
  baseline: "other",
  owns: (id) => id.startsWith("quality/"),
  ids: SUBJECTS.flatMap(({ name }) =>
    CASES.flatMap((c) =>
      NAMES.filter((what) => isShown(c.policy, c.kv, what)).map((what) => `${idOf(name, c)}/${what}`),
    ),
  ),
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
    for (const { name, file, text, tokens } of SUBJECTS) {
      const cases = CASES.filter((c) => NAMES.some((what) => wanted.has(`${idOf(name, c)}/${what}`)));
      if (cases.length === 0) continue;
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
    ...(klBeside === undefined ? [] : [limitResult(`${id}/kl`, "mnats", [1000 * kl], 1000 * klBeside)]),
    limitResult(`${id}/perplexity`, "ppl", [perplexity], densePerplexity),
  ];
}
