/** Sliding-window attention with sinks: the first pages and the last tokens before each block (StreamingLLM, Xiao et al. 2023, arXiv:2309.17453). */

import { PAGE_TOKENS } from "../kv/page.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  keysToRead,
  lastQuery,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "./policy.ts";

/** Reads what the budget allows per block: the sinks, and the rest from the block's end backwards; always the block itself. */
export class WindowPolicy implements SelectionPolicy {
  readonly name = "window";
  readonly phases = ["prefill", "decode"] as const;
  readonly lookahead = false;

  constructor(private readonly shape: AttentionShape) {}

  select(layer: number, blocks: QueryBlocks, budget: Budget): Selection[] {
    const nBlocks = blockCount(blocks);
    const window = this.shape.window[layer];
    const rowPtr = new Uint32Array(nBlocks + 1);
    const pages: number[] = [];
    for (let b = 0; b < nBlocks; b++) {
      const first = blocks.qStart + b * blocks.blockSize;
      const last = lastQuery(blocks, b);
      const oldest = window === undefined ? 0 : Math.max(0, first - window + 1);
      const visible = last + 1 - oldest;
      const keys = keysToRead(budget, blocks, b, visible);
      const wanted = keys >= visible ? 0 : last + 1 - (keys - budget.sinks);
      const local = Math.min(wanted, Math.max(0, first - budget.local));
      for (let p = Math.floor(oldest / PAGE_TOKENS); p * PAGE_TOKENS <= last; p++) {
        const isSink = p * PAGE_TOKENS < budget.sinks;
        const isLocal = (p + 1) * PAGE_TOKENS > local;
        if (isSink || isLocal) pages.push(p);
      }
      rowPtr[b + 1] = pages.length;
    }
    const { nKvHeads } = this.shape;
    const page = Uint32Array.from(pages);
    return [{ layer, nKvHeads, nBlocks, headShared: true, rowPtr, page, segment: "tail" }];
  }
}
