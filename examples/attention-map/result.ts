/** The part of the page that shows a map: heads to choose from, pages, text and bytes. */

import type { AttentionMap } from "inlay";
import { create, element } from "../shared/elements.ts";
import { bytesText } from "../shared/format.ts";
import { blockAt, drawPages, headOffset } from "./drawing.ts";

const canvas = element("pages", HTMLCanvasElement);
const block = element("block", HTMLInputElement);
const heads = element("heads", HTMLTableElement);
const words = element("words", HTMLElement);

/** What is shown: a map, the text of each page, and the head that was chosen. */
let shown:
  | { readonly map: AttentionMap; readonly texts: readonly string[]; layer: number; head: number }
  | undefined;

/** The space does not break. */
const percent = (share: number) => `${(100 * share).toFixed(1)}\u00a0%`;

function mean(values: Float32Array): number {
  return values.reduce((sum, x) => sum + x, 0) / values.length;
}

/** Shows a map. `texts` has the text of each page. */
export function showMap(map: AttentionMap, texts: readonly string[], policy: string): void {
  shown = { map, texts, layer: 0, head: 0 };
  const { tokenIds, nPages, isRead, kept, nLayers, nKvHeads } = map;
  const readShare =
    isRead.reduce((sum, x) => sum + x, 0) / ((nLayers * nKvHeads * nPages * (nPages + 1)) / 2);
  element("summary", HTMLParagraphElement).textContent =
    `${tokenIds.length.toLocaleString("en")} tokens on ${nPages} pages: ${policy} reads ${percent(readShare)} of the pages ` +
    `and keeps ${percent(mean(kept))} of the attention, at least ${percent(Math.min(...kept))}.`;
  element("result", HTMLElement).hidden = false;
  block.max = String(nPages - 1);
  block.value = String(nPages - 1);
  showHeads();
  showWords();
  showBytes(map);
  goToBlock();
}

export function hideMap(): void {
  shown = undefined;
  element("result", HTMLElement).hidden = true;
}

/** A button for every head, darker where more attention is lost. */
function showHeads(): void {
  if (!shown) return;
  const { map, layer: chosenLayer, head: chosenHead } = shown;
  const { nLayers, nKvHeads, nPages, kept } = map;
  const top = create("tr");
  top.append(create("th", "", "layer"));
  for (let head = 0; head < nKvHeads; head++) top.append(create("th", "", `head ${head}`));
  const rows = Array.from({ length: nLayers }, (_, layer) => {
    const row = create("tr");
    row.append(create("th", "", String(layer)));
    for (let head = 0; head < nKvHeads; head++) {
      const from = headOffset(map, layer, head);
      const share = mean(kept.subarray(from, from + nPages));
      const button = create("button", "", percent(share));
      button.type = "button";
      button.style.setProperty("--loss", `${Math.round(Math.min(60, 120 * (1 - share)))}%`);
      button.setAttribute("aria-pressed", String(layer === chosenLayer && head === chosenHead));
      button.setAttribute("aria-label", `layer ${layer}, head ${head}: ${percent(share)} kept`);
      button.addEventListener("click", () => choose(layer, head));
      const cell = create("td");
      cell.append(button);
      row.append(cell);
    }
    return row;
  });
  const body = create("tbody");
  body.append(...rows);
  const head = create("thead");
  head.append(top);
  heads.replaceChildren(head, body);
}

function choose(layer: number, head: number): void {
  if (!shown) return;
  shown.layer = layer;
  shown.head = head;
  for (const button of heads.querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
  heads.querySelectorAll("button")[layer * shown.map.nKvHeads + head]?.setAttribute("aria-pressed", "true");
  showBlock();
}

/** The text, page by page, with the joints of chunks. */
function showWords(): void {
  if (!shown) return;
  const ends = new Set(shown.map.chunkEnds);
  const { pageTokens } = shown.map;
  words.replaceChildren(
    ...shown.texts.map((text, page) =>
      create("span", ends.has((page + 1) * pageTokens) ? "joint" : "", text),
    ),
  );
}

/** The chosen block of the chosen head: its pages in the picture, in words, and in the text. */
function showBlock(): void {
  if (!shown) return;
  const { map, layer, head } = shown;
  const { nPages, pageTokens, isRead, kept, tokenIds } = map;
  const chosen = Number(block.value);
  drawPages(canvas, map, layer, head, chosen);
  const row = headOffset(map, layer, head) + chosen;
  const pages = Array.from({ length: chosen + 1 }, (_, page) => page).filter(
    (page) => isRead[row * nPages + page] === 1,
  );
  const last = Math.min(tokenIds.length, (chosen + 1) * pageTokens) - 1;
  const about =
    `Layer ${layer}, head ${head}, block ${chosen} (tokens ${chosen * pageTokens} to ${last}) reads ` +
    `${pages.length} of ${chosen + 1} pages: ${ranges(pages)}. It keeps ${percent(kept[row]!)} of its attention.`;
  element("block-about", HTMLParagraphElement).textContent = about;
  block.setAttribute("aria-valuetext", about);
  for (const [page, span] of [...words.children].entries()) {
    const isOwn = page === chosen;
    span.classList.toggle("own", isOwn);
    span.classList.toggle("read", !isOwn && isRead[row * nPages + page] === 1);
    span.classList.toggle("later", page > chosen);
  }
}

/** 0, 1, 2, 5 → "0–2, 5" */
function ranges(sorted: readonly number[]): string {
  const parts: string[] = [];
  for (let i = 0; i < sorted.length; i++) {
    const from = sorted[i]!;
    while (sorted[i + 1] === sorted[i]! + 1) i++;
    parts.push(sorted[i] === from ? `${from}` : `${from}–${sorted[i]}`);
  }
  return parts.join(", ");
}

function showBytes({ kvBytes, tokenIds }: AttentionMap): void {
  const head = create("tr");
  for (const title of ["format", "all", "per token", "of f16"]) head.append(create("th", "", title));
  const rows = Object.entries(kvBytes).map(([format, bytes]) => {
    const row = create("tr");
    row.append(
      create("th", "", format),
      create("td", "", bytesText(bytes)),
      create("td", "", bytesText(Math.round(bytes / tokenIds.length))),
      create("td", "", percent(bytes / kvBytes.f16)),
    );
    return row;
  });
  element("bytes", HTMLTableElement).replaceChildren(head, ...rows);
}

/** Shows the block that the slider stands at, its words in the middle of the text. */
function goToBlock(): void {
  showBlock();
  const own = words.children[Number(block.value)];
  if (own instanceof HTMLElement) words.scrollTop = own.offsetTop - words.clientHeight / 2;
}

block.addEventListener("input", goToBlock);
canvas.addEventListener("click", ({ offsetY }) => {
  if (!shown) return;
  block.value = String(blockAt(canvas, shown.map, offsetY));
  goToBlock();
});
new ResizeObserver(showBlock).observe(element("result", HTMLElement));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showBlock);
