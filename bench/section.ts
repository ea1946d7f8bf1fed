/** A part of the benchmarks: what it can measure, and how. */

import type { BenchBrowser } from "./browser.ts";
import type { ReportSection } from "./render.ts";
import type { BenchResult } from "./report.ts";

/** What sections share. */
export interface BenchContext {
  /** Rounds per cell, if the user chose. */
  readonly repeat: number | undefined;
  /** Chromium, started by the first who asks. */
  browser(): Promise<BenchBrowser>;
  /** Keeps a picture (SVG) beside the report, where its section names it. */
  savePicture(file: string, content: string): void;
  /** Progress, for people. */
  log(line: string): void;
}

export interface Section extends ReportSection {
  /** Runs only with --peer. */
  readonly needsPeer: boolean;
  /** Measures those of its ids that are in `wanted`, and hands over each result when it is there. */
  run(context: BenchContext, wanted: ReadonlySet<string>): AsyncGenerator<BenchResult>;
}

/**
 * Whether an id is asked for: `filter` is a comma-separated list of parts of ids, in which `*` stands for anything.
 * No filter asks for everything.
 */
export function isAskedFor(id: string, filter: string | undefined): boolean {
  if (filter === undefined) return true;
  return filter.split(",").some((part) => {
    const escaped = part.trim().replace(/[.+?^${}()|[\]\\]/g, "\\$&");
    // Whole parts of an id, so that "short/q4_0" is not found in "short/q4_0_x", nor "128" in "5128"; 2.3.1 is one of wllama-2.3.1.
    return new RegExp(`(^|[/-])${escaped.replaceAll("*", ".*")}(/|$)`).test(id);
  });
}
