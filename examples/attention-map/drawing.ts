/** The picture of one head: which pages every block read, and how much of its attention that kept. */

import type { AttentionMap } from "inlay";

/** Width of the bars, in cells of a map with as many cells. */
const BAR_SHARE = 0.18;
const GAP = 6;
/** CSS pixels. */
const MAX_CELL = 24;
const MAX_BAR = 120;

/** Where a head's rows begin in the arrays of a map. */
export function headOffset({ nKvHeads, nPages }: AttentionMap, layer: number, head: number): number {
  return (layer * nKvHeads + head) * nPages;
}

/** Draws a head, `chosen` being the block to point out. Colours are those of the page. */
export function drawPages(
  canvas: HTMLCanvasElement,
  map: AttentionMap,
  layer: number,
  head: number,
  chosen: number,
): void {
  const context = canvas.getContext("2d");
  if (!context) return;
  const { nPages, isRead, kept } = map;
  const width = canvas.clientWidth || 320;
  const { cell, height } = layout(width, nPages);
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  canvas.style.blockSize = `${height}px`;
  context.scale(devicePixelRatio, devicePixelRatio);
  const styles = getComputedStyle(canvas);
  const color = (name: string) => styles.getPropertyValue(name);
  const first = headOffset(map, layer, head);
  const line = Math.max(0, Math.min(1, cell * 0.1));
  for (let block = 0; block < nPages; block++) {
    const y = block * cell;
    for (let page = 0; page <= block; page++) {
      const wasRead = isRead[(first + block) * nPages + page] === 1;
      context.fillStyle = color(page === block ? "--own" : wasRead ? "--accent" : "--line");
      context.globalAlpha = wasRead ? 1 : 0.5;
      context.fillRect(page * cell, y, cell - line, cell - line);
    }
    context.globalAlpha = 1;
    const bar = kept[first + block]!;
    const left = nPages * cell + GAP;
    const full = Math.min(MAX_BAR, width - left);
    context.fillStyle = color("--line");
    context.fillRect(left, y, full, cell - line);
    context.fillStyle = color(bar < 0.9 ? "--lost" : "--accent");
    context.fillRect(left, y, full * bar, cell - line);
  }
  context.strokeStyle = color("--text");
  context.lineWidth = 2;
  const right = Math.min(width, nPages * cell + GAP + MAX_BAR);
  context.strokeRect(1, Math.max(1, chosen * cell), right - 2, Math.min(cell, height - chosen * cell - 1));
}

/** The block at a height of the canvas, in CSS pixels. */
export function blockAt(canvas: HTMLCanvasElement, { nPages }: AttentionMap, y: number): number {
  const { cell } = layout(canvas.clientWidth || 320, nPages);
  return Math.max(0, Math.min(nPages - 1, Math.floor(y / cell)));
}

function layout(width: number, nPages: number): { cell: number; height: number } {
  const cell = Math.min(MAX_CELL, (width * (1 - BAR_SHARE)) / nPages);
  return { cell, height: Math.ceil(cell * nPages) + 2 };
}
