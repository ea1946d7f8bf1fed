/** Counts how much of the cache a request's queries read, for `usage.extra`. */

import { PAGE_TOKENS } from "../kv/page.ts";
import { type AttentionShape, blockCount, lastQuery, type QueryBlocks, type Selection } from "./policy.ts";

export class AttentionTally {
  #read = 0;
  #visible = 0;

  /** Share of the pages before the queries that they read, 0 to 1; undefined before the first call. */
  get fraction(): number | undefined {
    return this.#visible === 0 ? undefined : this.#read / this.#visible;
  }

  /** Counts one layer's selections: pages times queries times KV heads. */
  count(selections: readonly Selection[], blocks: QueryBlocks, { nKvHeads, window }: AttentionShape): void {
    const nBlocks = blockCount(blocks);
    for (let b = 0; b < nBlocks; b++) {
      const first = blocks.qStart + b * blocks.blockSize;
      const last = lastQuery(blocks, b);
      const reach = window[selections[0]?.layer ?? 0];
      const oldest = reach === undefined ? 0 : Math.max(0, first - reach + 1);
      const nQueries = last + 1 - first;
      const pages = Math.floor(last / PAGE_TOKENS) - Math.floor(oldest / PAGE_TOKENS) + 1;
      this.#visible += nQueries * nKvHeads * pages;
      for (const { rowPtr, headShared } of selections)
        for (let h = 0; h < (headShared ? 1 : nKvHeads); h++) {
          const row = h * nBlocks + b;
          this.#read += nQueries * (headShared ? nKvHeads : 1) * (rowPtr[row + 1]! - rowPtr[row]!);
        }
    }
  }
}
