/** `inlay eval --perplexity`: what policies, budgets and KV formats cost a model on a text. */

import { readFile, writeFile } from "node:fs/promises";
import { PREFILL_POLICIES } from "../attention/names.ts";
import { InlayError } from "../errors.ts";
import { type EvalModel, openEvalModel } from "../eval/eval-model.ts";
import { headBudgets } from "../eval/head-budgets.ts";
import { evaluateQuality, type QualityReport, qualityCases } from "../eval/quality.ts";
import { qualityChart } from "../eval/quality-chart.ts";
import { openSources } from "../gguf/source.ts";
import { nodeHost } from "../host/node.ts";
import { openPaths, shardPaths } from "../host/node-files.ts";
import type { CacheFormat } from "../kv/page.ts";
import { readBoundaryPredictor } from "../model/boundary-file.ts";
import { checkNumber, checkOneOf } from "../option-checks.ts";
import { checkHeadBudgets } from "../options.ts";
import { readArguments, UsageError } from "./arguments.ts";
import { modelSource, readBoundaries, readHeadBudgets } from "./model-argument.ts";
import { ProgressBar } from "./progress-bar.ts";

export const EVAL_QUALITY_USAGE =
  "inlay eval MODEL --perplexity TEXTFILE [--tokens N] [--skip CHARACTERS] [--attention dense,dhsa,…]\n" +
  "          [--budget 0.25,0.125] [--kv f16,q4,…] [--chunk N] [--svg FILE] [--head-budgets FILE]\n" +
  "          [--save-head-budgets FILE] [--boundaries FILE] [--device wasm|hybrid] [--threads N] [--json]";

const OPTIONS = {
  perplexity: "string",
  tokens: "integer",
  skip: "integer",
  attention: "string",
  budget: "string",
  kv: "string",
  chunk: "integer",
  "head-budgets": "string",
  "save-head-budgets": "string",
  boundaries: "string",
  svg: "string",
  device: "string",
  threads: "integer",
  json: "boolean",
} as const;

const KV_FORMATS: readonly CacheFormat[] = ["f32", "f16", "q8", "q4", "q2"];
const DEFAULT_TOKENS = 2048;

export async function evalQuality(args: readonly string[], signal: AbortSignal): Promise<void> {
  const { options, positionals } = readArguments(args, OPTIONS, ["MODEL"]);
  const path = options.perplexity;
  if (path === undefined) throw new UsageError("--perplexity FILE is missing");
  const list = (text: string) => text.split(",").map((item) => item.trim());
  const policies = list(options.attention ?? PREFILL_POLICIES.join(",")).map((name) =>
    checkOneOf("--attention", name, PREFILL_POLICIES),
  );
  const budgets = list(options.budget ?? "0.25").map((item) =>
    checkNumber("--budget", Number(item), { min: 0, aboveMin: true, max: 1 }),
  );
  const formats = list(options.kv ?? "f16,q8,q4,q2").map((item) => checkOneOf("--kv", item, KV_FORMATS));
  const device = checkOneOf("--device", options.device ?? "wasm", ["wasm", "hybrid"]);
  const nTokens = checkNumber("--tokens", options.tokens ?? DEFAULT_TOKENS, {
    min: 2,
    max: 1 << 24,
    isInteger: true,
  });
  const chunk = checkNumber("--chunk", options.chunk ?? 128, { min: 1, max: 8192, isInteger: true });
  const skip = checkNumber("--skip", options.skip ?? 0, { min: 0, max: 2 ** 31, isInteger: true });

  const headFile = options["head-budgets"];
  const headFactors =
    headFile === undefined ? null : checkHeadBudgets("--head-budgets", await readHeadBudgets(headFile));
  const predictor = await readBoundaries(options.boundaries);
  const bar = new ProgressBar();
  const argument = modelSource(positionals[0]!);
  const isPath = typeof argument === "string" && !/^[a-z][a-z0-9+.-]+:/i.test(argument);
  const model = await openEvalModel({
    host: nodeHost({
      wasmFolder: new URL("./", import.meta.url),
      computeWorker: new URL("./compute-worker.node.mjs", import.meta.url),
    }),
    sources: isPath ? openPaths(shardPaths(argument)) : openSources(argument),
    device,
    threads: options.threads ?? "auto",
    signal,
  });
  try {
    const report = await evaluateQuality(model, await textIds(model, path, skip, nTokens), {
      cases: qualityCases(policies, budgets, formats),
      chunk,
      headBudgets: headFactors,
      boundaryScore: predictor && (await readBoundaryPredictor(openSources(predictor), model.config, signal)),
      signal,
      onProgress: (done, total) =>
        bar.update(`run ${Math.min(total, Math.floor(done) + 1)} of ${total}`, done / total),
    }).finally(() => bar.clear());
    const { name, fileType } = model.config;
    const title = `${name} ${fileType} on ${device}, ${path.replace(/^.*\//, "")}`;
    if (options.svg !== undefined) await writeFile(options.svg, qualityChart(report, title));
    const saveTo = options["save-head-budgets"];
    if (saveTo !== undefined) await writeFile(saveTo, factorsOf(report, model.config.nKvHeads));
    process.stdout.write(
      options.json
        ? `${JSON.stringify({ model: { name, fileType }, device, text: path, ...report })}\n`
        : table(title, report),
    );
  } finally {
    model.dispose();
  }
}

/** Of the first sparse case, as JSON with a line for each layer. */
function factorsOf({ results }: QualityReport, nKvHeads: number): string {
  const recall = results.find((result) => result.recall)?.recall;
  if (!recall) throw new UsageError("--save-head-budgets needs a sparse policy among --attention");
  return `[\n${headBudgets(recall, nKvHeads)
    .map((heads) => `  ${JSON.stringify(heads)}`)
    .join(",\n")}\n]\n`;
}

/** The first `nTokens` ids of a text file, or all of a shorter one. */
async function textIds(model: EvalModel, path: string, skip: number, nTokens: number): Promise<Uint32Array> {
  const text = await readFile(path, "utf8").catch((cause) => {
    throw new InlayError("source-failed", `cannot read ${path}: ${cause}`, { path }, { cause });
  });
  // No token of a sensible vocabulary has more than 64 characters.
  const ids = model.tokenizer.encode(text.slice(skip, skip + 64 * nTokens), { addSpecial: true });
  return ids.slice(0, nTokens);
}

/** A row for each case. */
function table(title: string, { tokens, chunk, positions, reference, results }: QualityReport): string {
  const share = (x: number | undefined, digits = 1) =>
    (x === undefined ? "" : `${(100 * x).toFixed(digits)} %`).padStart(9);
  const rows = results.map(
    ({ policy, budget, kv, perplexity, kl, sameTop, recall, pagesRead, kvBytesPerToken }) =>
      `  ${policy.padEnd(15)}${share(policy === "dense" ? undefined : budget, 2)} ${kv.padStart(4)}` +
      `${perplexity.toPrecision(5).padStart(11)}${kl.toExponential(2).padStart(11)}${share(sameTop)}` +
      `${share(recall?.mean)}${share(recall?.attainable)}${share(recall?.p5)}${share(recall?.min)}${share(pagesRead)}` +
      `${Math.round(kvBytesPerToken).toString().padStart(9)}\n`,
  );
  return (
    `${title}: ${tokens} tokens in calls of ${chunk}, the last ${positions} positions counted; ` +
    `dense f16 has perplexity ${reference.perplexity.toPrecision(5)}\n` +
    "  policy            budget   kv perplexity    KL nats same top     kept     best   worst 5    least    pages  B/token\n" +
    rows.join("")
  );
}
