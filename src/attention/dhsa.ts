/**
 * Dynamic hierarchical sparse attention (DHSA, arXiv:2510.24606), training-free: algorithms.md A.2-A.6 with the boundary
 * detector of A.9.
 *
 * The text before a query block is cut into chunks of variable length. A chunk is scored by its feature (sqrt(length)
 * times its mean key) times the block's summed queries: one small dot product for up to 64 tokens. The best chunks are
 * read until the budget is spent. The first tokens, the tokens before the block, and those that no chunk has yet are
 * always read.
 *
 * A chunk counts for a block only if it was known at the block's last query, so a prompt that comes in parts is
 * attended to as a whole one is (invariant I9).
 */

import { internalError } from "../errors.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import type { ChunkTable } from "./boundaries.ts";
import type { KeyFeatures } from "./key-features.ts";
import { PageRows, type RowBounds, rowBounds } from "./page-rows.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  headBudget,
  type LayerView,
  type PolicyNeeds,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "./policy.ts";
import { dot, Ranking, sumHeads } from "./ranking.ts";

/** How DHSA-TF is set up. */
export interface DhsaOptions {
  /** Chunks end at multiples of this. PAGE_TOKENS: pages are read whole; less: in parts, by masks. */
  readonly granule: number;
  /** The layer whose keys cut the text for all layers from it on; undefined = chunks of 32 tokens everywhere. */
  readonly boundaryLayer: number | undefined;
  /** "kvGroup": each KV head reads what its own query heads want; "layer": one list for all heads (the paper's). */
  readonly headMode: "layer" | "kvGroup";
  /** Decoding keeps its lists for this many tokens, or until the query has turned. 1 = chooses for every token. */
  readonly refreshEvery: number;
}

export const DHSA_DEFAULTS: DhsaOptions = {
  granule: PAGE_TOKENS,
  boundaryLayer: 0,
  headMode: "kvGroup",
  refreshEvery: 8,
};

/** Lists are chosen anew when the cosine to the query that chose them falls below this (algorithms.md A.6). */
const TURNED = 0.8;

/** Token ranges: from, to, from, to, … */
type Ranges = number[];

/** What decoding keeps between tokens of one sequence and layer. */
interface Remembered {
  /** Position of the last query. */
  readonly position: number;
  /** Queries that used the lists. */
  readonly age: number;
  /** The query that chose them. */
  readonly query: Float32Array;
  /** Per list, the chunks that were chosen. */
  readonly chosen: Ranges[];
}

/** The chunks of one layer as one list of heads sees them. */
interface Candidates {
  readonly chunks: ChunkTable;
  /** (nBlocks, nLists, headDim). */
  readonly queries: Float32Array;
  /** (nChunks, nLists, headDim). */
  readonly features: Float32Array;
}

export class DhsaPolicy implements SelectionPolicy {
  readonly name = "dhsa";
  readonly phases = ["prefill", "decode"] as const;
  readonly lookahead = false;
  readonly needs: PolicyNeeds;
  readonly #options: DhsaOptions;
  readonly #nLists: number;
  readonly #ranking = new Ranking();
  readonly #remembered = new WeakMap<KeyFeatures, Map<number, Remembered>>();

  constructor(
    private readonly shape: AttentionShape,
    options: Partial<DhsaOptions> = {},
  ) {
    this.#options = { ...DHSA_DEFAULTS, ...options };
    const { granule, boundaryLayer, headMode } = this.#options;
    this.needs = { pooled: { granule, boundaryLayer } };
    this.#nLists = headMode === "layer" ? 1 : shape.nKvHeads;
  }

  select(
    layer: number,
    blocks: QueryBlocks,
    budget: Budget,
    { querySums, keys }: LayerView = {},
  ): Selection[] {
    if (!querySums || !keys) throw internalError("dhsa without pooled queries and keys");
    const { nHeads, nKvHeads, headDim } = this.shape;
    const window = this.shape.window[layer];
    // Per list, the bounds of each block.
    const bounds = Array.from({ length: this.#nLists }, (_, list) => {
      const own = this.#nLists === 1 ? budget : headBudget(budget, this.shape, layer, list);
      return Array.from({ length: blockCount(blocks) }, (_, b) => rowBounds(blocks, b, own, window));
    });
    const rows = new PageRows(blocks.qStart + blocks.qLen);
    const isNeeded = bounds.flat().some(({ isDense }) => !isDense);
    const candidates: Candidates = {
      chunks: keys.chunks(layer),
      queries: sumHeads(querySums, headDim, nHeads / this.#nLists),
      features: isNeeded
        ? sumHeads(keys.chunkFeatures(layer), headDim, nKvHeads / this.#nLists)
        : NO_FEATURES,
    };
    const remembered =
      blocks.qLen === 1 && isNeeded ? this.#recall(keys, layer, blocks.qStart, candidates) : undefined;
    for (let list = 0; list < this.#nLists; list++)
      for (const [b, row] of bounds[list]!.entries()) {
        const chosen = this.#fillRow(rows, row, b, list, candidates, remembered?.chosen[list]);
        if (remembered) remembered.chosen[list] = chosen;
        rows.close(row.end);
      }
    return [rows.finish(layer, this.shape, blocks, this.#nLists === 1)];
  }

  /** Puts block b's tokens into the row; returns the chunks among them that were chosen, now or when `known` was. */
  #fillRow(
    rows: PageRows,
    row: RowBounds,
    b: number,
    list: number,
    candidates: Candidates,
    known: Ranges | undefined,
  ): Ranges {
    const { ends, knownAt } = candidates.chunks;
    const nKnown = countAtMost(knownAt, row.end);
    const tail = nKnown === 0 ? 0 : ends[nKnown - 1]!;
    const firstPage = row.oldest - (row.oldest % PAGE_TOKENS);
    const forcedFrom = Math.max(firstPage, Math.min(row.forcedFrom, tail - (tail % PAGE_TOKENS)));
    let rest = row.keys - rows.force({ ...row, forcedFrom });
    if (row.isDense) return [];
    if (known) {
      for (let i = 0; i < known.length; i += 2) rows.add(known[i]!, known[i + 1]!);
      return known;
    }
    const chosen: Ranges = [];
    for (const c of this.#rank(candidates, b, list, nKnown, firstPage, forcedFrom)) {
      // The best chunk is read whatever it costs: a budget that is all neighbourhood would find nothing.
      const isBest = chosen.length === 0;
      if (rest < this.#options.granule && !isBest) break;
      const from = Math.max(firstPage, c === 0 ? 0 : ends[c - 1]!);
      const to = ends[c]!;
      const cost = rows.countNew(from, to);
      if (cost === 0 || (cost > rest && !isBest)) continue;
      rest -= rows.add(from, to);
      chosen.push(from, to);
    }
    return chosen;
  }

  /** The chunks with tokens in [from, to), best first. */
  #rank(
    { chunks: { ends }, queries, features }: Candidates,
    b: number,
    list: number,
    nKnown: number,
    from: number,
    to: number,
  ): Iterable<number> {
    const { headDim } = this.shape;
    const stride = this.#nLists * headDim;
    this.#ranking.clear();
    for (let c = countAtMost(ends, from); c < nKnown && (c === 0 ? 0 : ends[c - 1]!) < to; c++)
      this.#ranking.add(
        c,
        dot(queries, b * stride + list * headDim, features, c * stride + list * headDim, headDim),
      );
    return this.#ranking.descending();
  }

  /** The lists of the token before, if they still serve; else none, to be filled. */
  #recall(
    keys: KeyFeatures,
    layer: number,
    position: number,
    { queries }: Candidates,
  ): Remembered | undefined {
    if (this.#options.refreshEvery <= 1) return undefined;
    const layers = this.#remembered.get(keys) ?? new Map<number, Remembered>();
    this.#remembered.set(keys, layers);
    const last = layers.get(layer);
    const serves =
      last !== undefined &&
      last.position === position - 1 &&
      last.age < this.#options.refreshEvery &&
      cosine(last.query, queries) >= TURNED;
    const now: Remembered = serves
      ? { ...last, position, age: last.age + 1 }
      : { position, age: 1, query: queries.slice(), chosen: [] };
    layers.set(layer, now);
    return now;
  }
}

const NO_FEATURES = new Float32Array(0);

/** How many entries of an ascending list are at most `x`. */
function countAtMost(list: readonly number[], x: number): number {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (list[middle]! <= x) low = middle + 1;
    else high = middle;
  }
  return low;
}

function cosine(a: Float32Array, b: Float32Array): number {
  const n = a.length;
  return dot(a, 0, b, 0, n) / Math.max(Math.sqrt(dot(a, 0, a, 0, n) * dot(b, 0, b, 0, n)), 1e-30);
}
