/**
 * `npm run bench -- [--peer] [--cells FILTER] [--repeat N] [--no-save]`, or `npm run bench -- SCRIPT …`
 *
 *   --peer       beside other engines too, not only Inlay's own parts
 *   --cells      only ids with one of these parts in them, comma-separated, `*` for anything: decode/short/q4_0/1t
 *   --repeat     rounds per cell
 *   --no-save    print the results, leave the report as it is
 *   SCRIPT       tokenizer, matmul-webgpu or attention-webgpu: bench/SCRIPT.mjs, in Node, with options of its own
 *
 * Results are merged into bench/report.json cell by cell; bench/REPORT.md is rendered from it.
 */

import fs from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { SetupError } from "../tools/setup/shell.mjs";
import { type BenchBrowser, startBrowser } from "./browser.ts";
import { busyCore } from "./busy-core.ts";
import { headBits } from "./head-bits.ts";
import { kernels } from "./kernels.ts";
import { kvQuality } from "./kv-quality.ts";
import { loading } from "./loading.ts";
import { describeMachine, versions } from "./machine.ts";
import { memory } from "./memory.ts";
import { peers } from "./peers.ts";
import { pinned } from "./pinned.ts";
import { quality } from "./quality.ts";
import { renderReport } from "./render.ts";
import {
  type BenchReport,
  type BenchResult,
  mergeReport,
  REPORT_MARKDOWN,
  readReport,
  writeReport,
} from "./report.ts";
import { type BenchContext, isAskedFor, type Section } from "./section.ts";
import { sizes } from "./sizes.ts";
import { sparseAttention } from "./sparse-attention.ts";
import { squeezed } from "./squeezed.ts";
import { squeezedQuality } from "./squeezed-quality.ts";

const SECTIONS: readonly Section[] = [
  peers,
  kernels,
  busyCore,
  sparseAttention,
  squeezed,
  squeezedQuality,
  headBits,
  loading,
  sizes,
  kvQuality,
  quality,
  pinned,
  memory,
];

const SCRIPTS: readonly string[] = ["tokenizer", "matmul-webgpu", "attention-webgpu"];

function parsedCommandLine() {
  try {
    return parseArgs({
      options: {
        peer: { type: "boolean", default: false },
        cells: { type: "string" },
        repeat: { type: "string" },
        "no-save": { type: "boolean", default: false },
      },
    });
  } catch (error) {
    throw new SetupError(error instanceof Error ? error.message : String(error));
  }
}

function readArguments() {
  const { values } = parsedCommandLine();
  const repeat = values.repeat === undefined ? undefined : Number(values.repeat);
  if (repeat !== undefined && !(Number.isInteger(repeat) && repeat >= 1))
    throw new SetupError(`--repeat is ${values.repeat}; it must be a whole number above 0`);
  return { ...values, repeat, save: !values["no-save"] };
}

function resultLine({ id, value, unit, baseline, ratio, n, min, max }: BenchResult): string {
  const number = (x: number) => x.toPrecision(4).padStart(8);
  return (
    `${id.padEnd(46)} ${number(value)} ${unit.padEnd(9)} beside ${number(baseline)}   ` +
    `${ratio.toFixed(2).padStart(6)} × [${min.toFixed(2)}–${max.toFixed(2)}] n=${n}`
  );
}

function save(report: BenchReport): void {
  writeReport(report);
  fs.writeFileSync(REPORT_MARKDOWN, renderReport(report, SECTIONS));
}

async function main(): Promise<void> {
  const options = readArguments();
  const wanted = new Set(
    SECTIONS.filter(({ needsPeer }) => options.peer || !needsPeer)
      .flatMap(({ ids }) => ids)
      .filter((id) => isAskedFor(id, options.cells)),
  );
  if (wanted.size === 0)
    throw new SetupError(
      `no cell matches --cells ${options.cells}${options.peer ? "" : "; those beside other engines need --peer"}`,
    );
  let browser: Promise<BenchBrowser> | undefined;
  const context: BenchContext = {
    repeat: options.repeat,
    browser: () => {
      browser ??= startBrowser();
      return browser;
    },
    savePicture: (file, content) => {
      if (options.save) fs.writeFileSync(path.join(path.dirname(REPORT_MARKDOWN), file), content);
    },
    log: (line) => console.error(line),
  };
  const earlier = readReport();
  if (options.save && earlier && earlier.machine !== describeMachine())
    console.error(`inlay: the report's other results were measured on another machine: ${earlier.machine}`);
  const run = { machine: describeMachine(), versions: versions(), date: new Date().toISOString() };
  const results: BenchResult[] = [];
  try {
    for (const section of SECTIONS) {
      const ids = new Set(section.ids.filter((id) => wanted.has(id)));
      if (ids.size === 0) continue;
      context.log(section.title);
      for await (const result of section.run(context, ids)) {
        results.push(result);
        if (browser) run.versions.chromium = (await browser).version.replace(/^.*\//, "");
        // After every cell: what an interrupted run has measured is kept.
        if (options.save) save(mergeReport(readReport(), { ...run, results }));
      }
    }
  } finally {
    await (await browser)?.close();
  }
  for (const result of results) console.log(resultLine(result));
}

try {
  const [script, ...rest] = process.argv.slice(2);
  if (script !== undefined && SCRIPTS.includes(script)) {
    process.argv = [...process.argv.slice(0, 2), ...rest];
    await import(`./${script}.mjs`);
  } else await main();
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`inlay: ${error.message}`);
  process.exitCode = 1;
}
