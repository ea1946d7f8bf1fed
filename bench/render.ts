/** bench/REPORT.md from bench/report.json: nothing is in it that is not in the JSON or known beforehand. */

import type { BenchReport, BenchResult } from "./report.ts";

/** What a part of the report says around its numbers. */
export interface ReportSection {
  readonly title: string;
  /** Markdown: what is measured and how to read it. */
  readonly about: string;
  /** What the baseline column holds: "wllama", "limit". */
  readonly baseline: string;
  /** Whether a result belongs here. */
  owns(id: string): boolean;
  /** Ids that the section measures when it is asked to. */
  readonly ids: readonly string[];
  /** Shown where results with ids that begin with `of` are. */
  readonly pictures?: readonly { readonly file: string; readonly alt: string; readonly of: string }[];
  /** What it never measures, and why. */
  readonly leftOut: readonly LeftOut[];
}

export interface LeftOut {
  readonly what: string;
  readonly reason: string;
}

const METHOD = `Medians of interleaved rounds. Everything runs in one headless Chromium, in one cross-origin isolated page, on the
same generated GGUF file (random weights in a real model's shape: speed does not depend on their values) and the same token
ids. The engines are loaded side by side, warmed up, and take turns round by round, in alternating order (A B, B A, …), so that
whatever else the machine does meets all of them; **a ratio is formed within each round, and the median, smallest and largest
of these ratios are shown**. They can be trusted more than the absolute numbers when the machine is shared. A ratio above 1
means that Inlay is better, for times and sizes too; beside a limit it is the share of the limit that is reached.`;

const HEADER = "<!-- Written by `npm run bench` from report.json; changes made here are lost. -->";

/** Of the ids that were not run, as many are named. */
const SHOWN_IDS = 4;

/** Four significant digits, no exponent. */
function number(x: number): string {
  const digits = Math.max(0, 3 - Math.floor(Math.log10(Math.abs(x) || 1)));
  return x.toFixed(Math.min(digits, 4));
}

const ratio = (x: number) => (x >= 100 ? x.toFixed(0) : x.toFixed(2));

function table(results: readonly BenchResult[], baseline: string): string {
  const rows = results.map(
    (r) =>
      `| \`${r.id}\` | ${number(r.value)} ${r.unit} | ${number(r.baseline)} | **${ratio(r.ratio)}** | ` +
      `${ratio(r.min)}–${ratio(r.max)} | ${r.n} |`,
  );
  return [
    `| id | Inlay | ${baseline} | ratio | min–max | n |`,
    "| --- | ---: | ---: | ---: | ---: | ---: |",
    ...rows,
  ].join("\n");
}

/** The results in the order in which the section names its ids; those that it does not name come last. */
function inOrder(results: readonly BenchResult[], ids: readonly string[]): BenchResult[] {
  const place = ({ id }: BenchResult) => (ids.includes(id) ? ids.indexOf(id) : ids.length);
  return [...results].sort((a, b) => place(a) - place(b));
}

/** The report as Markdown. Results that no section owns are shown at the end. */
export function renderReport(report: BenchReport, sections: readonly ReportSection[]): string {
  const { machine, versions, date, results } = report;
  const parts = [
    HEADER,
    "# Benchmarks",
    `- machine: ${machine}
- date of the last run: ${date.slice(0, 10)}
- versions: ${Object.entries(versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(", ")}
- command: \`npm run bench -- --peer\`; a part of it: \`npm run bench -- --peer --cells decode/short/q4_0/1t\``,
    METHOD,
  ];
  const measured = new Set(results.map(({ id }) => id));
  const missing: string[] = [];
  for (const section of sections) {
    const own = results.filter(({ id }) => section.owns(id));
    if (own.length > 0)
      parts.push(`## ${section.title}`, section.about, table(inOrder(own, section.ids), section.baseline));
    for (const { file, alt, of } of section.pictures ?? [])
      if (own.some(({ id }) => id.startsWith(of))) parts.push(`![${alt}](${file})`);
    for (const { what, reason } of section.leftOut) missing.push(`- ${what}: ${reason}`);
    const notRun = section.ids.filter((id) => !measured.has(id)).map((id) => `\`${id}\``);
    const more = notRun.length > SHOWN_IDS ? ` and ${notRun.length - SHOWN_IDS} more` : "";
    if (notRun.length > 0) missing.push(`- not run yet: ${notRun.slice(0, SHOWN_IDS).join(", ")}${more}`);
  }
  const others = results.filter(({ id }) => !sections.some((section) => section.owns(id)));
  if (others.length > 0) parts.push("## Other results", table(others, "baseline"));
  if (missing.length > 0) parts.push("## Not measured", missing.join("\n"));
  return `${parts.join("\n\n")}\n`;
}
