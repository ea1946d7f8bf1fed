/** What every selection must keep to, whatever policy made it. */

import { PAGE_TOKENS } from "../kv/page.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  headBudget,
  keysToRead,
  lastQuery,
  type QueryBlocks,
  type Selection,
} from "./policy.ts";

/**
 * Asserts the invariants of algorithms.md F.2 that hold for every policy on the causal tail: page ids strictly
 * increasing and in range, masks non-zero and inside the segment (I1), no page wholly after its block (I2), the
 * block's own pages and the local window present (I3), the sinks (I4), no page wholly before a sliding window (I5),
 * no empty row (I6), everything where the budget reaches (I8). Throws a plain Error naming layer, row and page: it
 * is for tests and debug builds.
 */
export function assertSelection(
  s: Selection,
  shape: AttentionShape,
  blocks: QueryBlocks,
  budget: Budget,
): void {
  const fail = (what: string): never => {
    throw new Error(`selection of layer ${s.layer}: ${what}`);
  };
  const nBlocks = blockCount(blocks);
  const rows = (s.headShared ? 1 : s.nKvHeads) * nBlocks;
  if (s.nBlocks !== nBlocks) fail(`nBlocks is ${s.nBlocks}, expected ${nBlocks}`);
  if (s.rowPtr.length !== rows + 1 || s.rowPtr[0] !== 0)
    fail(`rowPtr has ${s.rowPtr.length} entries for ${rows} rows`);
  if (s.rowPtr[rows] !== s.page.length) fail(`rowPtr ends at ${s.rowPtr[rows]}, page has ${s.page.length}`);
  if (s.mask && s.mask.length !== s.page.length)
    fail(`mask has ${s.mask.length} entries for ${s.page.length} pages`);
  if (s.segment !== "tail") return;

  const nTokens = blocks.qStart + blocks.qLen;
  const window = shape.window[s.layer];
  for (let row = 0; row < rows; row++) {
    const b = row % nBlocks;
    const first = blocks.qStart + b * blocks.blockSize;
    const last = lastQuery(blocks, b);
    const from = s.rowPtr[row]!;
    const to = s.rowPtr[row + 1]!;
    if (to <= from) fail(`row ${row} is empty`);
    const listed = new Map<number, number>();
    for (let i = from; i < to; i++) {
      const page = s.page[i]!;
      const mask = s.mask ? s.mask[i]! >>> 0 : 0xffffffff;
      if (i > from && page <= s.page[i - 1]!) fail(`row ${row}: page ${page} after page ${s.page[i - 1]}`);
      if (page * PAGE_TOKENS >= nTokens) fail(`row ${row}: page ${page} lies past token ${nTokens}`);
      if (page * PAGE_TOKENS > last)
        fail(`row ${row}: page ${page} lies after the block's last query ${last}`);
      if (mask === 0) fail(`row ${row}: page ${page} has an empty mask`);
      if (s.mask && (page + 1) * PAGE_TOKENS > nTokens && mask >>> (nTokens - page * PAGE_TOKENS) !== 0)
        fail(`row ${row}: mask of page ${page} has bits past token ${nTokens}`);
      if (window !== undefined && (page + 1) * PAGE_TOKENS <= first - window + 1)
        fail(`row ${row}: page ${page} lies before the sliding window of ${window}`);
      listed.set(page, mask);
    }
    const oldest = window === undefined ? 0 : Math.max(0, first - window + 1);
    const visible = last + 1 - oldest;
    const own = s.headShared ? budget : headBudget(budget, s, s.layer, Math.floor(row / nBlocks));
    const isDense = keysToRead(own, blocks, b, visible) >= visible;
    const mustFrom = isDense ? oldest : Math.max(oldest, first - budget.local);
    for (let t = mustFrom; t <= last; t++) {
      const mask = listed.get(Math.floor(t / PAGE_TOKENS)) ?? 0;
      if (((mask >>> (t % PAGE_TOKENS)) & 1) === 0)
        fail(`row ${row}: ${isDense ? "dense" : "local"} token ${t} is missing`);
    }
    for (let t = 0; t < Math.min(budget.sinks, last + 1); t++) {
      if (window !== undefined && t <= first - window) continue;
      const mask = listed.get(Math.floor(t / PAGE_TOKENS)) ?? 0;
      if (((mask >>> (t % PAGE_TOKENS)) & 1) === 0) fail(`row ${row}: sink token ${t} is missing`);
    }
  }
}

/**
 * Asserts that rows about to be cached are finite: (nTokens, width) values whose first token stands at `position`.
 * Throws a plain Error naming layer, page and token.
 */
export function assertFiniteRows(
  layer: number,
  what: "keys" | "values",
  rows: Float32Array,
  width: number,
  position: number,
): void {
  const bad = rows.findIndex((x) => !Number.isFinite(x));
  if (bad < 0) return;
  const token = position + Math.floor(bad / width);
  throw new Error(
    `${what} of layer ${layer}, page ${Math.floor(token / PAGE_TOKENS)}: ${rows[bad]} at token ${token}, column ${bad % width}`,
  );
}

/**
 * The same where only the sums over each page's rows are at hand, (nPages, width), the first page being `firstPage`: a
 * value that is not finite makes its page's sum so.
 */
export function assertFinitePages(
  layer: number,
  what: "keys" | "values",
  sums: Float32Array,
  width: number,
  firstPage: number,
): void {
  const bad = sums.findIndex((x) => !Number.isFinite(x));
  if (bad < 0) return;
  throw new Error(
    `${what} of layer ${layer}, page ${firstPage + Math.floor(bad / width)}: ${sums[bad]} in the sum of column ${bad % width}`,
  );
}
