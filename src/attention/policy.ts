/**
 * The one selection interface: which pages of the KV cache does a block of queries read?
 *
 * Every attention method of Inlay (dense, window, DHSA, Squeezed, ...) is a `SelectionPolicy`. It returns
 * page lists; the arithmetic afterwards is always exact softmax attention over exactly those keys, done by
 * one kernel per backend. A policy knows shapes, positions and pooled numbers, never devices.
 *
 * A selection is a set: a page listed twice would double its softmax weight and is a bug.
 */

import type { KeyFeatures } from "./key-features.ts";

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
  /** Blocks with a query at or after this position read everything: the end of the prompt, where the question is. @default none */
  readonly denseFrom?: number | undefined;
}

/** How much a query block may read. Keys that the block cannot miss (sinks, local, its own) are counted in. */
export interface Budget {
  /** Keys per query block and KV head, at least. */
  readonly tokens: number;
  /** Share of the keys at or before the block, if that is more than `tokens`. 0 <= fraction <= 1. @default 0 */
  readonly fraction?: number | undefined;
  /**
   * (nLayers, nKvHeads): multiplies `fraction` for the lists of one KV head; a list that heads share is not touched. With
   * a mean of 1 as much is read as without. @default all 1
   */
  readonly perKvHead?: Float32Array | undefined;
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
  /** Estimated attention probability of the keys that are left out, mean over the rows; undefined: not estimated. */
  readonly missing?: number | undefined;
}

/** What a policy looks at, so that nothing is computed for those that look at nothing. */
export interface PolicyNeeds {
  /** Pooled queries and keys, the keys in runs of `granule` tokens (a divisor of PAGE_TOKENS). */
  readonly pooled?: { readonly granule: number; readonly boundaryLayer?: number | undefined };
  /** Exact attention of sampled rows. Only where keys are in WASM memory. */
  readonly sampleRows?: ((blocks: QueryBlocks) => Uint32Array) | undefined;
}

/** What a policy sees of one layer in one call: plain numbers, f32, made by the backend. */
export interface LayerView {
  /**
   * Queries after RoPE, summed over each block's tokens: (nBlocks, nHeads, headDim).
   */
  readonly querySums?: Float32Array | undefined;
  /** Keys of the sequence up to this call's last token, pooled. */
  readonly keys?: KeyFeatures | undefined;
  readonly masses?: SampledMasses | undefined;
  readonly clusters?: ClusterScores | undefined;
}

/** Estimated probabilities of the entries of a ClusterIndex. */
export interface ClusterScores {
  /** (nBlocks, stride): of one key of an entry, mean over the block's queries and the KV head's query heads. */
  readonly sigma: Float32Array;
  readonly stride: number;
  /** Where the entries of each KV head begin in a row. */
  readonly starts: readonly number[];
  /** Queries of a block, the last one's possibly fewer. */
  readonly blockQueries: number;
}

/** Attention probabilities of sampled query rows, summed over rows and the query heads of each KV head. */
export interface SampledMasses {
  readonly nPages: number;
  /** (nKvHeads, nPages): mass on page p. */
  readonly columns: Float32Array;
  /** (nKvHeads, nPages): mass on the page d pages before the row's own. */
  readonly diagonals: Float32Array;
}

/** Chooses, per layer and query block, what is read. Deterministic: ties go to the lower token index. */
export interface SelectionPolicy {
  readonly name: string;
  readonly phases: readonly ("prefill" | "decode")[];
  /** true: looks at later queries of the call to choose keys (never at later values); see invariant I9. */
  readonly lookahead: boolean;
  /** @default nothing */
  readonly needs?: PolicyNeeds | undefined;
  /** One selection per segment. `view` has what `needs` asks for. */
  select(layer: number, blocks: QueryBlocks, budget: Budget, view?: LayerView): Selection[];
}

/** Number of query blocks. */
export function blockCount(blocks: QueryBlocks): number {
  return Math.ceil(blocks.qLen / blocks.blockSize);
}

/** Position of the last query of block `b`. */
export function lastQuery(blocks: QueryBlocks, b: number): number {
  return blocks.qStart + Math.min((b + 1) * blocks.blockSize, blocks.qLen) - 1;
}

/** Keys that block `b` may read out of `visible`; all of them where the budget says dense. */
export function keysToRead(budget: Budget, blocks: QueryBlocks, b: number, visible: number): number {
  if (visible <= budget.denseBelow || lastQuery(blocks, b) >= (blocks.denseFrom ?? Infinity)) return visible;
  return Math.min(visible, Math.max(budget.tokens, Math.ceil((budget.fraction ?? 0) * visible)));
}

/** The budget of one KV head's own list. */
export function headBudget(
  budget: Budget,
  { nKvHeads }: Pick<AttentionShape, "nKvHeads">,
  layer: number,
  kvHead: number,
): Budget {
  const { perKvHead, fraction = 0 } = budget;
  if (!perKvHead) return budget;
  return { ...budget, fraction: Math.min(1, fraction * perKvHead[layer * nKvHeads + kvHead]!) };
}
