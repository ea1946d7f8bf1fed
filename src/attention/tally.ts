/** Counts how much of the cache a request's queries read, for `usage.extra`. */

import { PAGE_TOKENS } from "../kv/page.ts";
import { bitCount } from "./page-rows.ts";
import { type AttentionShape, blockCount, lastQuery, type QueryBlocks, type Selection } from "./policy.ts";

export class AttentionTally {
  #policy: string | undefined;
  #read = 0;
  #visible = 0;
  #missing = 0;
  #estimated = 0;

  /** The policy that chose, or the last of several; undefined before the first call. */
  get policy(): string | undefined {
    return this.#policy;
  }

  /** Share of the keys before the queries that they read, 0 to 1; undefined before the first call. */
  get fraction(): number | undefined {
    return this.#visible === 0 ? undefined : this.#read / this.#visible;
  }

  /** Mean of the estimated attention probability that was left out, 0 to 1; undefined where no policy estimated it. */
  get missing(): number | undefined {
    return this.#estimated === 0 ? undefined : this.#missing / this.#estimated;
  }

  /** Counts one layer's selections: tokens (of whole pages where they have no masks) times queries times KV heads. */
  count(
    policy: string,
    selections: readonly Selection[],
    blocks: QueryBlocks,
    { nKvHeads, window }: AttentionShape,
  ): void {
    this.#policy = policy;
    const nBlocks = blockCount(blocks);
    for (let b = 0; b < nBlocks; b++) {
      const { nQueries, last } = this.#see(blocks, b, nKvHeads, window[selections[0]?.layer ?? 0]);
      for (const selection of selections)
        for (let h = 0; h < (selection.headShared ? 1 : nKvHeads); h++)
          this.#read +=
            nQueries * (selection.headShared ? nKvHeads : 1) * tokensOf(selection, h * nBlocks + b, last);
    }
    for (const { missing } of selections) {
      if (missing === undefined) continue;
      this.#missing += missing * blocks.qLen;
      this.#estimated += blocks.qLen;
    }
  }

  /** Counts what a device selected in `nLayers` layers without a sliding window: `DeviceClusters.counters` after them. */
  countOnDevice(
    policy: string,
    counters: Float32Array,
    nLayers: number,
    blocks: QueryBlocks,
    { nKvHeads }: Pick<AttentionShape, "nKvHeads">,
  ): void {
    this.#policy = policy;
    const nBlocks = blockCount(blocks);
    for (let b = 0; b < nBlocks; b++) {
      const { nQueries } = this.#see(blocks, b, nLayers * nKvHeads, undefined);
      for (let h = 0; h < nKvHeads; h++) {
        const at = 2 * (h * nBlocks + b);
        this.#read += nQueries * counters[at]!;
        this.#missing += (counters[at + 1]! * blocks.qLen) / (nKvHeads * nBlocks);
      }
    }
    this.#estimated += nLayers * blocks.qLen;
  }

  /** Counts the keys that `nLists` lists of a block could read. */
  #see(blocks: QueryBlocks, b: number, nLists: number, reach: number | undefined) {
    const first = blocks.qStart + b * blocks.blockSize;
    const last = lastQuery(blocks, b);
    const oldest = reach === undefined ? 0 : Math.max(0, first - reach + 1);
    const nQueries = last + 1 - first;
    const pages = Math.floor(last / PAGE_TOKENS) - Math.floor(oldest / PAGE_TOKENS) + 1;
    this.#visible += nQueries * nLists * pages * PAGE_TOKENS;
    return { nQueries, last };
  }
}

/** Tokens of a row; the page of the last query counts as a whole, as what is visible does. */
function tokensOf({ rowPtr, page, mask }: Selection, row: number, last: number): number {
  const from = rowPtr[row]!;
  const to = rowPtr[row + 1]!;
  if (!mask) return (to - from) * PAGE_TOKENS;
  let tokens = 0;
  for (let i = from; i < to; i++)
    tokens += (page[i]! + 1) * PAGE_TOKENS > last ? PAGE_TOKENS : bitCount(mask[i]!);
  return tokens;
}
