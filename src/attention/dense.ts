/** Dense attention: every page at or before the block (every in-window page on sliding-window layers). */

import { PAGE_TOKENS } from "../kv/page.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  lastQuery,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "./policy.ts";

/** The policy that reads everything. Layers with the same window share one selection per forward call. */
export class DensePolicy implements SelectionPolicy {
  readonly name = "dense";
  readonly phases = ["prefill", "decode"] as const;
  readonly lookahead = false;
  /** Selections of the current call by window. */
  readonly #made = new Map<number | undefined, Selection[]>();
  #blocks: QueryBlocks | undefined;

  constructor(private readonly shape: AttentionShape) {}

  select(layer: number, blocks: QueryBlocks, _budget: Budget): Selection[] {
    if (blocks !== this.#blocks) this.#made.clear();
    this.#blocks = blocks;
    const window = this.shape.window[layer];
    let made = this.#made.get(window);
    if (!made) {
      made = [selectAll(this.shape, layer, blocks, window)];
      this.#made.set(window, made);
    }
    return made;
  }
}

/** One row per block, shared by all heads: the pages from the window's first to that of the block's last query. */
function selectAll(
  shape: AttentionShape,
  layer: number,
  blocks: QueryBlocks,
  window: number | undefined,
): Selection {
  const nBlocks = blockCount(blocks);
  const rowPtr = new Uint32Array(nBlocks + 1);
  const pages: number[] = [];
  for (let b = 0; b < nBlocks; b++) {
    const oldest = window === undefined ? 0 : Math.max(0, blocks.qStart + b * blocks.blockSize - window + 1);
    const newest = lastQuery(blocks, b);
    for (let p = Math.floor(oldest / PAGE_TOKENS); p * PAGE_TOKENS <= newest; p++) pages.push(p);
    rowPtr[b + 1] = pages.length;
  }
  const page = Uint32Array.from(pages);
  return { layer, nKvHeads: shape.nKvHeads, nBlocks, headShared: true, rowPtr, page, segment: "tail" };
}
