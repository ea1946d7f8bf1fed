/**
 * The one selection interface: which pages of the KV cache does a block of queries read?
 *
 * Every attention method of Inlay (dense, window, DHSA, Squeezed, ...) is a `SelectionPolicy`. It returns
 * page lists; the arithmetic afterwards is always exact softmax attention over exactly those keys, done by
 * one kernel per backend. A policy knows shapes and positions, never devices.
 *
 * A selection is a set: a page listed twice would double its softmax weight and is a bug.
 */

import { PAGE_TOKENS } from "../kv/page.ts";

/** Shape facts a policy may need. */
export interface AttentionShape {
  readonly nLayers: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  /** Sliding window of each layer in tokens; undefined = the layer sees everything before it. */
  readonly window: readonly (number | undefined)[];
}

/** The queries of one forward call of one sequence: positions [qStart, qStart + qLen), cut into blocks. */
export interface QueryBlocks {
  readonly qStart: number;
  readonly qLen: number;
  /** Queries per block; the last block may be shorter. 1 in decode. */
  readonly blockSize: number;
}

/** How much a query block may read. */
export interface Budget {
  /** Keys per query block and KV head. */
  readonly tokens: number;
  /** The first `sinks` tokens are always read. */
  readonly sinks: number;
  /** The last `local` tokens before a block are always read. */
  readonly local: number;
  /** At or below this many keys everything is read. */
  readonly denseBelow: number;
}

/** Which part of the cache page ids refer to: a frozen prefix (may be reordered) or the causal tail. */
export type Segment = "prefix" | "tail";

/**
 * Page lists in CSR form. Row = kvHead * nBlocks + block, or just block when `headShared`.
 */
export interface Selection {
  readonly layer: number;
  readonly nKvHeads: number;
  readonly nBlocks: number;
  /** true: rows are stored once and used by all KV heads. */
  readonly headShared: boolean;
  /** Length rows + 1, rowPtr[0] = 0, non-decreasing. */
  readonly rowPtr: Uint32Array;
  /** Logical page ids, strictly increasing inside a row. */
  readonly page: Uint32Array;
  /** Bit r set = token page * PAGE_TOKENS + r is kept; absent = all tokens of the page. */
  readonly mask?: Uint32Array;
  readonly segment: Segment;
}

/** Chooses, per layer and query block, what is read. Deterministic: ties go to the lower token index. */
export interface SelectionPolicy {
  readonly name: string;
  readonly phases: readonly ("prefill" | "decode")[];
  /** true: looks at later queries of the chunk to choose keys (never at later values); see invariant I9. */
  readonly lookahead: boolean;
  /** One selection per segment. */
  select(layer: number, blocks: QueryBlocks, budget: Budget): Selection[];
}

/** Number of query blocks. */
export function blockCount(blocks: QueryBlocks): number {
  return Math.ceil(blocks.qLen / blocks.blockSize);
}

/** Position of the last query of block `b`. */
export function lastQuery(blocks: QueryBlocks, b: number): number {
  return blocks.qStart + Math.min((b + 1) * blocks.blockSize, blocks.qLen) - 1;
}

/**
 * Asserts the invariants of algorithms.md F.2 that hold for every policy on the causal tail: page ids strictly
 * increasing and in range, masks non-zero and inside the segment (I1), no page wholly after its block (I2), the
 * block's own pages and the local window present (I3), no page wholly before a sliding window (I5), no empty
 * row (I6). Throws a plain Error naming layer, row and page: it is for tests and debug builds.
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
    let mustFrom = Math.max(0, first - budget.local);
    if (window !== undefined) mustFrom = Math.max(mustFrom, first - window + 1);
    for (let t = mustFrom; t <= last; t++) {
      const mask = listed.get(Math.floor(t / PAGE_TOKENS)) ?? 0;
      if (((mask >>> (t % PAGE_TOKENS)) & 1) === 0) fail(`row ${row}: local token ${t} is missing`);
    }
    for (let t = 0; t < Math.min(budget.sinks, last + 1); t++) {
      if (window !== undefined && t <= first - window) continue;
      const mask = listed.get(Math.floor(t / PAGE_TOKENS)) ?? 0;
      if (((mask >>> (t % PAGE_TOKENS)) & 1) === 0) fail(`row ${row}: sink token ${t} is missing`);
    }
  }
}
