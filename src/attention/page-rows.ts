/** Builds a selection row by row from runs of tokens: pages, and masks where a page is not read whole. */

import { PAGE_TOKENS } from "../kv/page.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  keysToRead,
  lastQuery,
  type QueryBlocks,
  type Selection,
} from "./policy.ts";

/** What a query block may see and must read. Tokens [oldest, end); `forcedFrom` on and `sinksEnd` before are read. */
export interface RowBounds {
  readonly oldest: number;
  /** Past the block's last query. */
  readonly end: number;
  /** Keys that may be read. */
  readonly keys: number;
  readonly isDense: boolean;
  readonly sinksEnd: number;
  readonly forcedFrom: number;
}

/** Bounds of block `b`. Forced tokens are rounded to whole pages, and end at the block's last query. */
export function rowBounds(
  blocks: QueryBlocks,
  b: number,
  budget: Budget,
  window: number | undefined,
): RowBounds {
  const first = blocks.qStart + b * blocks.blockSize;
  const end = lastQuery(blocks, b) + 1;
  const oldest = window === undefined ? 0 : Math.max(0, first - window + 1);
  const keys = keysToRead(budget, blocks, b, end - oldest);
  const local = Math.max(oldest, first - budget.local);
  return {
    oldest,
    end,
    keys,
    isDense: keys >= end - oldest,
    sinksEnd: Math.min(end, Math.ceil(budget.sinks / PAGE_TOKENS) * PAGE_TOKENS),
    forcedFrom: Math.max(0, local - (local % PAGE_TOKENS)),
  };
}

export class PageRows {
  readonly #rowPtr = [0];
  readonly #pages: number[] = [];
  readonly #masks: number[] = [];
  #hasMasks = false;
  /** Tokens of the row being built: a mask per page. */
  readonly #row: Uint32Array;

  /** For selections over the first `nTokens` tokens. */
  constructor(nTokens: number) {
    this.#row = new Uint32Array(Math.ceil(nTokens / PAGE_TOKENS));
  }

  /** Adds tokens [from, to) to the row; returns how many of them are new. */
  add(from: number, to: number): number {
    let added = 0;
    for (let page = Math.floor(from / PAGE_TOKENS); page * PAGE_TOKENS < to; page++) {
      const base = page * PAGE_TOKENS;
      const bits = maskOf(Math.max(from - base, 0), Math.min(to - base, PAGE_TOKENS));
      added += bitCount(bits & ~this.#row[page]!);
      this.#row[page]! |= bits;
    }
    return added;
  }

  /** How many tokens of [from, to) are not in the row yet. */
  countNew(from: number, to: number): number {
    let count = 0;
    for (let page = Math.floor(from / PAGE_TOKENS); page * PAGE_TOKENS < to; page++) {
      const base = page * PAGE_TOKENS;
      const bits = maskOf(Math.max(from - base, 0), Math.min(to - base, PAGE_TOKENS));
      count += bitCount(bits & ~this.#row[page]!);
    }
    return count;
  }

  /** Starts the row with what its bounds force; returns how many tokens that is. A dense row is then complete. */
  force({ oldest, end, isDense, sinksEnd, forcedFrom }: RowBounds): number {
    const from = oldest - (oldest % PAGE_TOKENS);
    if (isDense) return this.add(from, end);
    const sinks = from < sinksEnd ? this.add(from, sinksEnd) : 0;
    return sinks + this.add(forcedFrom, end);
  }

  /** Ends the row of a block whose last query is at `end` - 1. */
  close(end: number): void {
    const nPages = Math.ceil(end / PAGE_TOKENS);
    for (let page = 0; page < nPages; page++) {
      const mask = this.#row[page]!;
      if (mask === 0) continue;
      this.#row[page] = 0;
      this.#pages.push(page);
      this.#masks.push(mask);
      // Tokens after the block are not seen anyway: a page that is whole up to them needs no mask.
      if (mask !== maskOf(0, Math.min(PAGE_TOKENS, end - page * PAGE_TOKENS))) this.#hasMasks = true;
    }
    this.#rowPtr.push(this.#pages.length);
  }

  /** The selection of all closed rows. */
  finish(layer: number, shape: AttentionShape, blocks: QueryBlocks, headShared: boolean): Selection {
    return {
      layer,
      nKvHeads: shape.nKvHeads,
      nBlocks: blockCount(blocks),
      headShared,
      rowPtr: Uint32Array.from(this.#rowPtr),
      page: Uint32Array.from(this.#pages),
      ...(this.#hasMasks && { mask: Uint32Array.from(this.#masks) }),
      segment: "tail",
    };
  }
}

/** Bits [from, to) of a page, 0 <= from < to <= 32, as an unsigned number. */
function maskOf(from: number, to: number): number {
  const upTo = to >= 32 ? 0xffffffff : (1 << to) - 1;
  return (upTo & ~((1 << from) - 1)) >>> 0;
}

/** Bits that are set. */
export function bitCount(bits: number): number {
  let n = bits - ((bits >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return (((n + (n >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}
