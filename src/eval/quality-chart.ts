/**
 * A quality report as an SVG: what each policy keeps and loses by budget, what each KV format loses, and which heads the
 * selections serve least.
 */

import type { QualityReport, QualityResult } from "./quality.ts";

const PLOT = { width: 270, height: 170, left: 58, right: 34, top: 56, bottom: 44 } as const;
const PANEL_WIDTH = PLOT.left + PLOT.width + PLOT.right;
const PANEL_HEIGHT = PLOT.top + PLOT.height + PLOT.bottom;
const HEADING = 34;
/** Told apart by marks as well as by colour. */
const MARKS: Readonly<Record<string, { color: string; shape: (x: number, y: number) => string }>> = {
  window: { color: "#9a6700", shape: (x, y) => `M${x - 4} ${y - 4}h8v8h-8z` },
  dhsa: { color: "#0550ae", shape: (x, y) => `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z` },
  "vertical-slash": { color: "#8250df", shape: (x, y) => `M${x} ${y - 6}l6 10h-12z` },
  sample: { color: "#1a7f37", shape: (x, y) => `M${x} ${y - 6}l6 6l-6 6l-6 -6z` },
};
const GRID = "#d0d7de";
/** Divergences are drawn on a logarithmic scale from here on. */
const LEAST_KL = 1e-6;

/** A series of a line panel. */
interface Line {
  readonly policy: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

interface Axis {
  readonly from: number;
  readonly to: number;
  readonly ticks: readonly number[];
  readonly isLog?: boolean;
  label(value: number): string;
}

/** `title`: what was measured, in a line above the panels. */
export function qualityChart(report: QualityReport, title: string): string {
  const kv = report.results[0]?.kv ?? "f16";
  const sparse = report.results.filter((r) => r.policy !== "dense" && r.kv === kv);
  const dense = report.results.filter((r) => r.policy === "dense");
  const panels: string[] = [];
  if (sparse.length > 0) {
    const budgets = budgetAxis(sparse);
    const kept = lines(sparse, (r) => r.recall!.mean);
    const kl = lines(sparse, (r) => Math.max(r.kl, LEAST_KL));
    panels.push(
      linePanel("Attention kept, mean of heads", "budget, share of the keys", budgets, shareAxis(kept), kept),
      linePanel(`KL to dense f16, nats (KV ${kv})`, "budget, share of the keys", budgets, klAxis(kl), kl),
    );
  }
  if (dense.length > 0) panels.push(barPanel(dense));
  const shown = sparse.find(({ policy }) => policy === "dhsa") ?? sparse[0];
  if (shown?.recall) panels.push(headPanel(shown));
  const columns = Math.min(2, Math.max(1, panels.length));
  const width = columns * PANEL_WIDTH;
  const height = HEADING + Math.ceil(panels.length / columns) * PANEL_HEIGHT;
  const placed = panels.map((panel, i) => {
    const x = (i % columns) * PANEL_WIDTH;
    const y = HEADING + Math.floor(i / columns) * PANEL_HEIGHT;
    return `<g transform="translate(${x} ${y})">${panel}</g>`;
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `font-family="system-ui, sans-serif" font-size="12" fill="#1f2328"><title>${escapeXml(title)}</title>` +
    `<rect width="100%" height="100%" fill="#fff"/>${text(16, 24, title, "start", true)}${placed.join("")}</svg>\n`
  );
}

function lines(results: readonly QualityResult[], y: (r: QualityResult) => number): Line[] {
  const policies = [...new Set(results.map(({ policy }) => policy))];
  return policies.map((policy) => ({
    policy,
    points: results
      .filter((r) => r.policy === policy)
      .map((r) => [r.budget, y(r)] as const)
      .sort(([a], [b]) => a - b),
  }));
}

const percent = (share: number) => `${Number((100 * share).toPrecision(3))} %`;

function budgetAxis(results: readonly QualityResult[]): Axis {
  const ticks = [...new Set(results.map(({ budget }) => budget))].sort((a, b) => a - b);
  const [least, most] = [ticks[0]!, ticks.at(-1)!];
  return { from: least / 1.2, to: most * 1.2, ticks, isLog: true, label: percent };
}

function shareAxis(series: readonly Line[]): Axis {
  const least = Math.min(...series.flatMap(({ points }) => points.map(([, y]) => y)));
  const step = least < 0.8 ? 0.1 : 0.05;
  const from = Math.max(0, Math.floor(least / step) * step);
  const ticks: number[] = [];
  for (let tick = from; tick < 1 + step / 2; tick += step) ticks.push(tick);
  return { from, to: 1, ticks, label: percent };
}

function klAxis(series: readonly Line[]): Axis {
  const values = series.flatMap(({ points }) => points.map(([, y]) => y));
  if (Math.max(...values) < 10 * Math.min(...values)) return linearAxis(Math.max(...values));
  const from = 10 ** Math.floor(Math.log10(Math.min(...values)));
  const to = Math.max(10 ** Math.ceil(Math.log10(Math.max(...values))), from * 10);
  const ticks: number[] = [];
  for (let tick = from; tick <= to * 1.01; tick *= 10) ticks.push(tick);
  return {
    from,
    to,
    ticks,
    isLog: true,
    label: (x) => (x < 0.001 ? x.toExponential(0) : String(Number(x.toPrecision(1)))),
  };
}

/** From 0 to the next round number above `most`, in four or five steps. */
function linearAxis(most: number): Axis {
  const unit = 10 ** Math.floor(Math.log10(most));
  const step = [0.2, 0.5, 1, 2].map((x) => x * unit).find((x) => most / x <= 5) ?? 2 * unit;
  const ticks = Array.from({ length: Math.ceil(most / step) + 1 }, (_, i) => i * step);
  return { from: 0, to: ticks.at(-1)!, ticks, label: (x) => String(Number(x.toPrecision(2))) };
}

/** Where a value lies on an axis, 0 to 1. */
function place({ from, to, isLog = false }: Axis, value: number): number {
  return isLog ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from);
}

function linePanel(
  heading: string,
  below: string,
  xAxis: Axis,
  yAxis: Axis,
  series: readonly Line[],
): string {
  const at = ([x, y]: readonly [number, number]) =>
    [
      Math.round(PLOT.left + place(xAxis, x) * PLOT.width),
      Math.round(PLOT.top + (1 - place(yAxis, y)) * PLOT.height),
    ] as const;
  const bottom = PLOT.top + PLOT.height;
  const parts = [text(PLOT.left, 18, heading, "start", true)];
  for (const tick of yAxis.ticks) {
    const [, y] = at([xAxis.from, tick]);
    parts.push(
      `<path d="M${PLOT.left} ${y}h${PLOT.width}" stroke="${GRID}"/>`,
      text(PLOT.left - 8, y + 4, yAxis.label(tick), "end"),
    );
  }
  for (const tick of xAxis.ticks)
    parts.push(text(at([tick, yAxis.from])[0], bottom + 18, xAxis.label(tick), "middle"));
  parts.push(text(PLOT.left + PLOT.width / 2, bottom + 36, below, "middle"));
  let legendAt: number = PLOT.left;
  for (const { policy, points } of series) {
    const { color, shape } = MARKS[policy]!;
    const placed = points.map(at);
    parts.push(
      `<path d="M${placed.map(([x, y]) => `${x} ${y}`).join("L")}" fill="none" stroke="${color}" stroke-width="1.5"/>`,
      ...placed.map(([x, y]) => `<path d="${shape(x, y)}" fill="${color}"/>`),
      `<path d="${shape(legendAt + 5, 36)}" fill="${color}"/>`,
      text(legendAt + 14, 40, policy),
    );
    legendAt += 26 + policy.length * 6.4;
  }
  return parts.join("");
}

/** KL of dense attention by KV format. */
function barPanel(results: readonly QualityResult[]): string {
  const values = results.map((r) => [0, Math.max(r.kl, LEAST_KL)] as const);
  const axis = klAxis([{ policy: "dense", points: [[0, LEAST_KL], ...values] }]);
  const bottom = PLOT.top + PLOT.height;
  const parts = [text(PLOT.left, 18, "KL to dense f16, nats; bytes of KV per token", "start", true)];
  for (const tick of axis.ticks) {
    const y = Math.round(PLOT.top + (1 - place(axis, tick)) * PLOT.height);
    parts.push(
      `<path d="M${PLOT.left} ${y}h${PLOT.width}" stroke="${GRID}"/>`,
      text(PLOT.left - 8, y + 4, axis.label(tick), "end"),
    );
  }
  const step = PLOT.width / results.length;
  for (const [i, { kv, kl, kvBytesPerToken }] of results.entries()) {
    const height = Math.round(place(axis, Math.max(kl, LEAST_KL)) * PLOT.height);
    const x = Math.round(PLOT.left + (i + 0.5) * step);
    parts.push(
      `<path d="M${x - 18} ${bottom - height}h36v${height}h-36z" fill="#0550ae"/>`,
      text(x, bottom - height - 6, kl <= LEAST_KL ? "none" : kl.toPrecision(2), "middle"),
      text(x, bottom + 18, kv, "middle"),
      text(x, bottom + 36, `${Math.round(kvBytesPerToken)} B`, "middle"),
    );
  }
  return parts.join("");
}

/** Attention kept by layer (down) and head (across). */
function headPanel({ policy, budget, recall }: QualityResult): string {
  const table = recall!.meanByHead;
  const nHeads = table[0]!.length;
  const cell = { x: PLOT.width / nHeads, y: Math.min(24, PLOT.height / table.length) };
  const parts = [
    text(PLOT.left, 18, `Attention kept by ${policy} at ${percent(budget)}, by head`, "start", true),
    text(PLOT.left, 40, "rows are layers, columns are heads"),
  ];
  const labelEvery = Math.ceil(14 / cell.y);
  for (const [layer, heads] of table.entries()) {
    const y = PLOT.top + layer * cell.y;
    if (layer % labelEvery === 0) parts.push(text(PLOT.left - 8, y + cell.y / 2 + 4, String(layer), "end"));
    for (const [head, kept] of heads.entries()) {
      const x = PLOT.left + head * cell.x;
      parts.push(
        `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${(cell.x - 1).toFixed(1)}" height="${(cell.y - 1).toFixed(1)}" fill="${shade(kept)}"/>`,
      );
      if (cell.x >= 28 && cell.y >= 14)
        parts.push(text(x + cell.x / 2, y + cell.y / 2 + 4, (100 * kept).toFixed(0), "middle"));
    }
  }
  return parts.join("");
}

/** White at 1, ever deeper red down to one half. */
function shade(kept: number): string {
  const loss = Math.min(1, Math.max(0, (1 - kept) * 2));
  return `hsl(12 80% ${Math.round(96 - 46 * loss)}%)`;
}

function text(x: number, y: number, content: string, anchor = "start", isBold = false): string {
  const weight = isBold ? ' font-weight="600"' : "";
  return `<text x="${Math.round(x)}" y="${Math.round(y)}" text-anchor="${anchor}"${weight}>${escapeXml(content)}</text>`;
}

function escapeXml(content: string): string {
  return content.replace(/[&<>"]/g, (c) => `&#${c.codePointAt(0)};`);
}
