/**
 * Dynamic hierarchical sparse attention (DHSA, arXiv:2510.24606), training-free: algorithms.md A.2-A.6 with the boundary
 * detector of A.9.
 *
 * The text before a query block is cut into chunks of variable length. From each chunk's mean key the attention that the
 * block pays to it is estimated (estimate.ts), and the chunks with the most attention for their length are read until the
 * budget is spent. The first tokens, the tokens before the block, and those that no chunk has yet are always read.
 *
 * The budget is a mean: the lists of a layer share it, so a head that looks at one place leaves its part to those that
 * look around, and what a layer does not spend on a block, because little attention is left, the next layers may.
 *
 * A chunk counts for a block only if it was known at the block's last query, so a prompt that comes in parts is
 * attended to as a whole one is (invariant I9).
 */

import { internalError } from "../errors.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import type { ChunkTable } from "./boundaries.ts";
import type { KeyRuns, RunMasses } from "./estimate.ts";
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

/** How DHSA is set up. */
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

/**
 * A chunk whose tokens get less than this part of an even share of the attention is not read: the budget does more good
 * in a later layer.
 */
const LEAST_SHARE = 0.1;

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
  /** Per list, the chunks that were chosen; undefined until they are. */
  chosen: Ranges[] | undefined;
}

/** One block of queries in one list: what it may see and must read, and the chunks it can choose among. */
interface Row extends RowBounds {
  /** The page of the oldest visible token begins here. */
  readonly firstPage: number;
  /** Chunks [firstChunk, nKnown) have visible tokens and had ended when the block's last query was there. */
  readonly firstChunk: number;
  readonly nKnown: number;
  /** Where the last of them ends. */
  readonly tail: number;
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
  /** Of a call's blocks, the tokens that its layers so far could have read and did not. */
  readonly #unspent = new WeakMap<QueryBlocks, Float64Array>();

  constructor(
    private readonly shape: AttentionShape,
    options: Partial<DhsaOptions> = {},
  ) {
    this.#options = { ...DHSA_DEFAULTS, ...options };
    const { granule, boundaryLayer, headMode } = this.#options;
    this.needs = { pooled: { granule, boundaryLayer }, estimates: true };
    this.#nLists = headMode === "layer" ? 1 : shape.nKvHeads;
  }

  select(layer: number, blocks: QueryBlocks, budget: Budget, view: LayerView = {}): Selection[] {
    const { querySums, keys, estimate } = view;
    if (!querySums || !keys || !estimate) throw internalError("dhsa without pooled queries and keys");
    const table = this.#rows(layer, blocks, budget, keys.chunks(layer));
    const isNeeded = table.some(({ isDense }) => !isDense);
    const remembered =
      blocks.qLen === 1 && isNeeded ? this.#recall(keys, layer, blocks.qStart, querySums) : undefined;
    let chosen = remembered?.chosen;
    if (!chosen) {
      chosen = table.map((): Ranges => []);
      if (isNeeded) this.#choose(chosen, table, keys, layer, blocks, estimate);
      if (remembered) remembered.chosen = chosen;
    }
    const rows = new PageRows(blocks.qStart + blocks.qLen);
    for (const [i, row] of table.entries()) {
      rows.force(row);
      const ranges = chosen[i]!;
      for (let j = 0; j < ranges.length; j += 2) {
        // A sliding window may have moved on since they were chosen.
        const from = Math.max(ranges[j]!, row.firstPage);
        if (from < ranges[j + 1]!) rows.add(from, ranges[j + 1]!);
      }
      rows.close(row.end);
    }
    return [rows.finish(layer, this.shape, blocks, this.#nLists === 1)];
  }

  /** (nLists, nBlocks): what each row is bound to. */
  #rows(layer: number, blocks: QueryBlocks, budget: Budget, { ends, knownAt }: ChunkTable): Row[] {
    const window = this.shape.window[layer];
    return Array.from({ length: this.#nLists }, (_, list) => {
      const own = this.#nLists === 1 ? budget : headBudget(budget, this.shape, layer, list);
      return Array.from({ length: blockCount(blocks) }, (_, b): Row => {
        const bounds = rowBounds(blocks, b, own, window);
        const nKnown = countAtMost(knownAt, bounds.end);
        const tail = nKnown === 0 ? 0 : ends[nKnown - 1]!;
        const firstPage = bounds.oldest - (bounds.oldest % PAGE_TOKENS);
        const forcedFrom = Math.max(firstPage, Math.min(bounds.forcedFrom, tail - (tail % PAGE_TOKENS)));
        const firstChunk = Math.min(countAtMost(ends, firstPage), nKnown);
        return { ...bounds, forcedFrom, firstPage, firstChunk, nKnown, tail };
      });
    }).flat();
  }

  /** Fills `chosen`, (nLists, nBlocks), with the chunks that rows read beyond what they are forced to. */
  #choose(
    chosen: Ranges[],
    table: readonly Row[],
    keys: KeyFeatures,
    layer: number,
    blocks: QueryBlocks,
    estimate: (runs: KeyRuns) => RunMasses,
  ): void {
    const nBlocks = blockCount(blocks);
    const { ends } = keys.chunks(layer);
    // What a block sees is the same in all lists, but a list with a budget for everything does not choose.
    const rows = table.slice(0, nBlocks).map((first, b) => {
      let row = first;
      for (let i = b; row.isDense && i < table.length; i += nBlocks) row = table[i]!;
      return row;
    });
    const runs = this.#keyRuns(rows, keys, layer);
    const masses = estimate(runs);
    let unspent = this.#unspent.get(blocks);
    if (!unspent) {
      unspent = new Float64Array(nBlocks);
      this.#unspent.set(blocks, unspent);
    }
    for (let b = 0; b < nBlocks; b++) {
      const lists = Array.from({ length: this.#nLists }, (_, list) => list).filter(
        (list) => !table[list * nBlocks + b]!.isDense,
      );
      if (lists.length === 0) continue;
      const rowOf = (list: number) => table[list * nBlocks + b]!;
      const take = (list: number, c: number): number => {
        const [from, to] = unforced(rowOf(list), c === 0 ? 0 : ends[c - 1]!, ends[c]!);
        chosen[list * nBlocks + b]!.push(from, to);
        return to - from;
      };
      const meanKeys = lists.reduce((sum, list) => sum + rowOf(list).keys, 0) / lists.length;
      const least = LEAST_SHARE / (rowOf(lists[0]!).end - rowOf(lists[0]!).oldest);
      let purse = unspent[b]!;
      this.#ranking.clear();
      for (const list of lists) {
        const row = rowOf(list);
        purse += row.keys - forcedTokens(row);
        // A list with a larger budget of its own counts for more.
        const weight = row.keys / meanKeys;
        let best = -1;
        let bestShare = -Infinity;
        for (let c = row.firstChunk; c < row.nKnown; c++) {
          const start = c === 0 ? 0 : ends[c - 1]!;
          const [from, to] = unforced(row, start, ends[c]!);
          if (from >= to) continue;
          const share = weight * this.#massOf(masses, runs.nRuns, b, list, c) * perToken(ends[c]! - start);
          if (share >= least) this.#ranking.add(c * this.#nLists + list, share);
          if (share > bestShare) [best, bestShare] = [c, share];
        }
        // The best chunk is read whatever it costs: a budget that is all neighbourhood would find nothing.
        if (best >= 0) purse -= take(list, best);
      }
      for (const index of this.#ranking.descending()) {
        if (purse < this.#options.granule) break;
        const list = index % this.#nLists;
        const c = Math.floor(index / this.#nLists);
        const [from, to] = unforced(rowOf(list), c === 0 ? 0 : ends[c - 1]!, ends[c]!);
        const isTaken = chosen[list * nBlocks + b]![0] === from;
        if (to - from > purse || isTaken) continue;
        purse -= take(list, c);
      }
      unspent[b] = Math.max(0, purse);
    }
  }

  /** The chunks of a layer, and in granules what no chunk had when the blocks' last queries were there. */
  #keyRuns(rows: readonly Row[], keys: KeyFeatures, layer: number): KeyRuns {
    const { granule } = this.#options;
    const { ends } = keys.chunks(layer);
    const chunks = keys.chunkFeatures(layer);
    const choosing = rows.filter(({ isDense }) => !isDense);
    const tailFrom = Math.min(...choosing.map((row) => Math.max(row.tail, row.firstPage))) / granule;
    const tailTo = Math.floor(Math.max(...choosing.map(({ end }) => end)) / granule);
    const tail = keys.granuleSums(layer).subarray(tailFrom * keys.width, tailTo * keys.width);
    const nRuns = ends.length + Math.max(0, tailTo - tailFrom);
    const features = new Float32Array(nRuns * keys.width);
    features.set(chunks);
    const root = Math.sqrt(granule);
    for (let i = 0; i < tail.length; i++) features[chunks.length + i] = tail[i]! / root;
    const lengths = new Float32Array(nRuns).fill(granule);
    for (const [c, end] of ends.entries()) lengths[c] = end - (c === 0 ? 0 : ends[c - 1]!);
    const visible = new Uint32Array(4 * rows.length);
    const inTail = (token: number) => ends.length + Math.floor(token / granule) - tailFrom;
    for (const [b, row] of rows.entries())
      if (!row.isDense)
        visible.set(
          [row.firstChunk, row.nKnown, inTail(Math.max(row.tail, row.firstPage)), inTail(row.end)],
          4 * b,
        );
    return { nRuns, features, lengths, visible };
  }

  /** Estimated attention of block b on chunk c, of the KV heads of a list. */
  #massOf(masses: RunMasses, nRuns: number, b: number, list: number, c: number): number {
    const { nKvHeads } = this.shape;
    if (this.#nLists > 1) return masses[(b * nKvHeads + list) * nRuns + c]!;
    let sum = 0;
    for (let h = 0; h < nKvHeads; h++) sum += masses[(b * nKvHeads + h) * nRuns + c]!;
    return sum / nKvHeads;
  }

  /** The lists of the token before, if they still serve; else none, to be filled. */
  #recall(
    keys: KeyFeatures,
    layer: number,
    position: number,
    querySums: Float32Array,
  ): Remembered | undefined {
    const { headDim, nHeads } = this.shape;
    const queries = sumHeads(querySums, headDim, nHeads / this.#nLists);
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
      : { position, age: 1, query: queries.slice(), chosen: undefined };
    layers.set(layer, now);
    return now;
  }
}

/**
 * What a chunk's attention is divided by to compare it: its length, but the less the longer it is, as the mean of n keys
 * shows an n-th of one that stands out (sqrt(n), as in algorithms.md A.4). Exact for PAGE_TOKENS.
 */
function perToken(length: number): number {
  return 1 / Math.sqrt(PAGE_TOKENS * length);
}

/** What of tokens [from, to) a row sees and is not forced to read anyway: one range, empty where from >= to. */
function unforced({ firstPage, sinksEnd, forcedFrom }: Row, from: number, to: number): [number, number] {
  return [Math.max(from, firstPage, sinksEnd), Math.min(to, forcedFrom)];
}

/** Tokens that a row is forced to read. */
function forcedTokens({ firstPage, sinksEnd, forcedFrom, end }: Row): number {
  return Math.max(0, Math.min(sinksEnd, forcedFrom) - firstPage) + end - forcedFrom;
}

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
