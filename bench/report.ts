/** bench/report.json: what was measured, merged run by run; bench/REPORT.md is rendered from it (render.ts). */

import fs from "node:fs";
import path from "node:path";
import { ROOT } from "../tools/setup/shell.mjs";

/** One comparison. */
export interface BenchResult {
  /** "wllama-2.3.1/decode/2048/q4_0/1t/relaxed": what, on what, how; its first part is the report's section. */
  id: string;
  /** Inlay's number, the median of its rounds. */
  value: number;
  unit: string;
  /** The other's number: a rival's median, or a limit of the hardware. */
  baseline: number;
  /** How many times better Inlay is, median of the rounds; above 1 is better, for times and sizes too. */
  ratio: number;
  /** Rounds. */
  n: number;
  /** Smallest and largest ratio of a round. */
  min: number;
  max: number;
}

export interface BenchReport {
  /** Processor, cores, memory, system. */
  machine: string;
  /** Of the programs and packages that took part. */
  versions: Record<string, string>;
  /** Of the last run, ISO 8601. */
  date: string;
  results: BenchResult[];
}

export const REPORT_JSON = path.join(ROOT, "bench/report.json");
export const REPORT_MARKDOWN = path.join(ROOT, "bench/REPORT.md");

/**
 * `report` with the results of a new run in it: the same ids are replaced where they stand, new ones follow,
 * all others stay.
 */
export function mergeReport(report: BenchReport | undefined, run: BenchReport): BenchReport {
  const fresh = new Map(run.results.map((result) => [result.id, result]));
  const kept = (report?.results ?? []).map((result) => {
    const replacement = fresh.get(result.id);
    fresh.delete(result.id);
    return replacement ?? result;
  });
  return {
    machine: run.machine,
    versions: { ...report?.versions, ...run.versions },
    date: run.date,
    results: [...kept, ...fresh.values()],
  };
}

/** The report of earlier runs; undefined when there is none. */
export function readReport(file = REPORT_JSON): BenchReport | undefined {
  return fs.existsSync(file) ? (JSON.parse(fs.readFileSync(file, "utf8")) as BenchReport) : undefined;
}

/** Four significant digits: more would be noise, and would change in every run. */
function rounded(result: BenchResult): BenchResult {
  const round = (x: number) => Number(x.toPrecision(4));
  const { id, value, unit, baseline, ratio, n, min, max } = result;
  return {
    ...{ id, value: round(value), unit, baseline: round(baseline), ratio: round(ratio) },
    ...{ n, min: round(min), max: round(max) },
  };
}

/** Writes a report as JSON, one result a line. */
export function writeReport(report: BenchReport, file = REPORT_JSON): void {
  const { machine, versions, date, results } = report;
  const lines = results.map((result) => `    ${JSON.stringify(rounded(result))}`);
  const head = JSON.stringify({ machine, versions, date }, null, 2).slice(0, -2);
  fs.writeFileSync(file, `${head},\n  "results": [\n${lines.join(",\n")}\n  ]\n}\n`);
}
