/**
 * Vertical-slash selection from block means (algorithms.md A.8, "vertical-slash-blockwise").
 *
 * Attention mass lies in columns (keys that everyone reads) and slashes (keys at a fixed distance). The newest query
 * blocks of the call are scored against the mean key of every page; the softmax over pages, summed per page and per
 * distance in pages, ranks columns and slashes. Half the budget goes to each, and every block reads the selected lines
 * that cross it. The newest rows choose for earlier ones: `lookahead`.
 */

import { internalError } from "../errors.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import { PageRows, rowBounds } from "./page-rows.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  headBudget,
  type LayerView,
  lastQuery,
  type PolicyNeeds,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "./policy.ts";
import { dot, Ranking, sumHeads } from "./ranking.ts";

/** Queries that are scored: the paper's last query block. */
const SAMPLED_QUERIES = 128;

export class VerticalSlashPolicy implements SelectionPolicy {
  readonly name = "vertical-slash";
  readonly phases = ["prefill", "decode"] as const;
  readonly lookahead = true;
  readonly needs: PolicyNeeds = { pooled: { granule: PAGE_TOKENS } };
  readonly #ranking = new Ranking();

  /** `scale` of the attention scores. @default 1 / sqrt(headDim) */
  constructor(
    private readonly shape: AttentionShape,
    private readonly scale = shape.headDim ** -0.5,
  ) {}

  select(
    layer: number,
    blocks: QueryBlocks,
    budget: Budget,
    { querySums, keys }: LayerView = {},
  ): Selection[] {
    if (!querySums || !keys) throw internalError("vertical-slash without pooled queries and keys");
    const { nKvHeads } = this.shape;
    const rows = new PageRows(blocks.qStart + blocks.qLen);
    const nPages = Math.ceil((blocks.qStart + blocks.qLen) / PAGE_TOKENS);
    const sums = keys.granuleSums(layer);
    const queries = sumHeads(querySums, this.shape.headDim, this.shape.nHeads / nKvHeads);
    for (let h = 0; h < nKvHeads; h++) {
      const columns = new Float32Array(nPages);
      const slashes = new Float32Array(nPages);
      this.#addMasses(blocks, queries, sums, h, columns, slashes);
      const own = headBudget(budget, this.shape, layer, h);
      addLineRows(rows, this.#ranking, { columns, slashes }, blocks, own, this.shape.window[layer]);
    }
    return [rows.finish(layer, this.shape, blocks, false)];
  }

  /** Softmax over page means of the newest blocks of KV head h, per page and per distance in pages. */
  #addMasses(
    blocks: QueryBlocks,
    queries: Float32Array,
    keySums: Float32Array,
    h: number,
    columns: Float32Array,
    slashes: Float32Array,
  ): void {
    const { nHeads, nKvHeads, headDim } = this.shape;
    const nBlocks = blockCount(blocks);
    const nTokens = blocks.qStart + blocks.qLen;
    const oldest = Math.max(0, nBlocks - Math.ceil(SAMPLED_QUERIES / blocks.blockSize));
    for (let b = oldest; b < nBlocks; b++) {
      const last = lastQuery(blocks, b);
      const nQueries = last + 1 - blocks.qStart - b * blocks.blockSize;
      const own = Math.floor(last / PAGE_TOKENS);
      const logits = new Float32Array(own + 1);
      const meanScale = (this.scale * nKvHeads) / (nQueries * nHeads);
      for (let page = 0; page <= own; page++) {
        const nKeys = Math.min(PAGE_TOKENS, nTokens - page * PAGE_TOKENS);
        const at = (page * nKvHeads + h) * headDim;
        logits[page] = (dot(queries, (b * nKvHeads + h) * headDim, keySums, at, headDim) * meanScale) / nKeys;
      }
      const top = logits.reduce((a, x) => Math.max(a, x), -Infinity);
      let total = 0;
      for (let page = 0; page <= own; page++) total += logits[page] = Math.exp(logits[page]! - top);
      for (let page = 0; page <= own; page++) {
        columns[page]! += logits[page]! / total;
        slashes[own - page]! += logits[page]! / total;
      }
    }
  }
}

/** Mass per page, and per distance in pages between query and key. */
export interface LineMasses {
  readonly columns: Float32Array;
  readonly slashes: Float32Array;
}

/**
 * One row per block: what is forced, then half of the rest of the budget in columns and half in slashes, in pages,
 * by mass. A page that is already there costs nothing, so the halves do not depend on each other's order.
 */
export function addLineRows(
  rows: PageRows,
  ranking: Ranking,
  { columns, slashes }: LineMasses,
  blocks: QueryBlocks,
  budget: Budget,
  window: number | undefined,
): void {
  const order = (masses: Float32Array): number[] => {
    ranking.clear();
    for (const [i, mass] of masses.entries()) if (mass > 0) ranking.add(i, mass);
    return [...ranking.descending()];
  };
  const columnOrder = order(columns);
  const slashOrder = order(slashes);
  for (let b = 0; b < blockCount(blocks); b++) {
    const row = rowBounds(blocks, b, budget, window);
    let rest = row.keys - rows.force(row);
    if (!row.isDense) {
      const own = Math.floor((row.end - 1) / PAGE_TOKENS);
      const first = Math.floor(row.oldest / PAGE_TOKENS);
      const take = (pages: Iterable<number>, limit: number): void => {
        let left = limit;
        for (const page of pages) {
          if (left < PAGE_TOKENS) break;
          if (page < first || page > own) continue;
          left -= rows.add(page * PAGE_TOKENS, Math.min((page + 1) * PAGE_TOKENS, row.end));
        }
        rest -= limit - left;
      };
      take(columnOrder, rest / 2);
      take(
        mapped(slashOrder, (distance) => own - distance),
        rest,
      );
      take(columnOrder, rest);
    }
    rows.close(row.end);
  }
}

function* mapped(list: Iterable<number>, f: (x: number) => number): Generator<number> {
  for (const x of list) yield f(x);
}
