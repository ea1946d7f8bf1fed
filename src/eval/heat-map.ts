/** A needle report as an SVG: one panel for each task, lengths from left to right, depths from top to bottom. */

import type { NeedleReport } from "./needle.ts";

const CELL = { width: 64, height: 26 };
const LEFT = 64;
const TOP = 30;
const GAP = 26;

/** Red at 0, yellow at one half, green at 1: lightness is about the same, and the number stands in the cell. */
function color(accuracy: number): string {
  return `hsl(${Math.round(accuracy * 120)} 60% 72%)`;
}

const percent = (accuracy: number) => `${Math.round(accuracy * 100)} %`;

function escapeXml(text: string): string {
  return text.replace(/[&<>"]/g, (c) => `&#${c.codePointAt(0)};`);
}

/** `title`: what was measured, in a line above the panels. */
export function heatMap(report: NeedleReport, title: string): string {
  const panels: string[] = [];
  let y = TOP;
  let width = 0;
  for (const [task, lengths] of Object.entries(report.byDepth)) {
    const columns = Object.entries(lengths).sort(([a], [b]) => Number(a) - Number(b));
    const depths = Object.keys(columns[0]?.[1] ?? {}).sort((a, b) => Number(a) - Number(b));
    const { accuracy, right, total } = report.byTask[task]!;
    panels.push(text(LEFT, y + 14, `${task}: ${right} of ${total}, ${percent(accuracy)}`, "start", true));
    columns.forEach(([length, cells], column) => {
      const x = LEFT + column * CELL.width;
      panels.push(text(x + CELL.width / 2, y + 34, length, "middle"));
      depths.forEach((depth, row) => {
        const cell = cells[depth];
        if (!cell) return;
        const top = y + 40 + row * CELL.height;
        panels.push(
          `<rect x="${x}" y="${top}" width="${CELL.width - 2}" height="${CELL.height - 2}" rx="3" fill="${color(cell.accuracy)}"/>`,
          text(x + CELL.width / 2 - 1, top + 16, `${cell.right}/${cell.total}`, "middle"),
        );
      });
    });
    depths.forEach((depth, row) => {
      panels.push(text(LEFT - 8, y + 56 + row * CELL.height, percent(Number(depth)), "end"));
    });
    width = Math.max(width, LEFT + columns.length * CELL.width + 16, LEFT + 220);
    y += 40 + depths.length * CELL.height + GAP;
  }
  const heading = `${title}: ${report.overall.right} of ${report.overall.total} right`;
  width = Math.max(width, heading.length * 7 + 24);
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${y}" viewBox="0 0 ${width} ${y}" ` +
    `font-family="system-ui, sans-serif" font-size="12" fill="#222"><title>${escapeXml(heading)}</title>` +
    `<rect width="100%" height="100%" fill="#fff"/>${text(12, 20, heading, "start", true)}${panels.join("")}</svg>\n`
  );
}

function text(
  x: number,
  y: number,
  content: string,
  anchor: "start" | "middle" | "end",
  isBold = false,
): string {
  const weight = isBold ? ' font-weight="600"' : "";
  return `<text x="${x}" y="${y}" text-anchor="${anchor}"${weight}>${escapeXml(content)}</text>`;
}
