/** `inlay eval --needle`: how well a model finds facts in long texts. */

import { writeFile } from "node:fs/promises";
import { heatMap } from "../eval/heat-map.ts";
import { evaluateNeedles, type NeedleReport } from "../eval/needle.ts";
import { NEEDLE_TASKS, type NeedleTask } from "../eval/needle-cases.ts";
import type { PinBits } from "../prompts/coding.ts";
import { integerList, readArguments, UsageError } from "./arguments.ts";
import { loadArgument, MODEL_OPTIONS } from "./model-argument.ts";
import { ProgressBar } from "./progress-bar.ts";

export const EVAL_NEEDLE_USAGE =
  "inlay eval MODEL --needle [--tasks NAMES] [--lengths 512,4096] [--depths 0,50,100] [--count N] [--seed S]\n" +
  "          [--pinned [--bits 2|4|8|16] [--sparsity R]] [--svg FILE] [--device auto|wasm|hybrid|webgpu]\n" +
  "          [--threads N] [--context N] [--attention POLICY] [--budget B] [--kv FORMAT] [--json]";

const OPTIONS = {
  ...MODEL_OPTIONS,
  needle: "boolean",
  tasks: "string",
  lengths: "string",
  /** In percent. */
  depths: "string",
  count: "integer",
  seed: "integer",
  /** Each document is pinned and its question asked of that. */
  pinned: "boolean",
  bits: "integer",
  sparsity: "number",
  svg: "string",
  json: "boolean",
} as const;

export async function evalNeedle(args: readonly string[], signal: AbortSignal): Promise<void> {
  const { options, positionals } = readArguments(args, OPTIONS, ["MODEL"]);
  const tasks = options.tasks?.split(",").map(checkedTask);
  const lengths = options.lengths === undefined ? undefined : integerList("lengths", options.lengths, 1);
  const depths = options.depths === undefined ? undefined : integerList("depths", options.depths, 0);
  const { bits, sparsity } = options;
  for (const [name, value] of Object.entries({ bits, sparsity }))
    if (value !== undefined && !options.pinned) throw new UsageError(`--${name} goes with --pinned`);
  const pinned = options.pinned ? { bits: bits as PinBits | undefined, sparsity } : undefined; // checked by pin

  await using model = await loadArgument(positionals[0]!, options, signal);
  const bar = new ProgressBar();
  const report = await evaluateNeedles(model, {
    tasks,
    lengths,
    depths: depths?.map((percent) => percent / 100),
    count: options.count,
    seed: options.seed,
    pinned,
    signal,
    onProgress: ({ done, total, right }) => bar.update(`${right} of ${done} right`, done / total),
  }).finally(() => bar.clear());

  const { name, fileType, device } = model.config;
  if (options.svg !== undefined) await writeFile(options.svg, heatMap(report, `${name} ${fileType}`));
  process.stdout.write(
    options.json
      ? `${JSON.stringify({ model: { name, fileType, device }, ...report })}\n`
      : table(`${name} ${fileType} on ${device.kind}, KV ${device.kvFormat}`, report),
  );
}

function checkedTask(name: string): NeedleTask {
  if (name in NEEDLE_TASKS) return name as NeedleTask;
  throw new UsageError(`--tasks has ${name}; there are ${Object.keys(NEEDLE_TASKS).join(", ")}`);
}

/** A row for each task, a column for each length. */
function table(title: string, { overall, byTask, byLength }: NeedleReport): string {
  const lengths = [...new Set(Object.values(byLength).flatMap(Object.keys))];
  const percent = (score: { accuracy: number } | undefined) =>
    (score ? `${(score.accuracy * 100).toFixed(1)} %` : "").padStart(10);
  const rows = Object.entries(byTask).map(
    ([task, score]) =>
      `  ${task.padEnd(12)}${lengths.map((length) => percent(byLength[task]![length])).join("")}${percent(score)}\n`,
  );
  const head = `  ${"".padEnd(12)}${lengths.map((length) => length.padStart(10)).join("")}${"all".padStart(10)}\n`;
  return `${title}; exact match, ${overall.right} of ${overall.total} right\n${head}${rows.join("")}`;
}
