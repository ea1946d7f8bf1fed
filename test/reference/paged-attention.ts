/**
 * What attention over pages adds to test/reference/attention.ts: which keys a selection lets a query read, and what
 * f16 pages do to keys and values. Written for reading; shares no code with src/.
 */

import { attention } from "./attention.ts";

/** A selection in CSR form; see src/attention/policy.ts. */
interface PageLists {
  readonly nBlocks: number;
  readonly headShared: boolean;
  readonly rowPtr: ArrayLike<number>;
  readonly page: ArrayLike<number>;
  readonly mask?: ArrayLike<number>;
}

/** The queries of one call: positions [qStart, qStart + qLen), in blocks of blockSize. */
interface Call {
  readonly blocks: { readonly qStart: number; readonly qLen: number; readonly blockSize: number };
  readonly lists: PageLists;
}

/** A sequence that was fed in one or more calls. */
export interface PagedProblem {
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  /** (nTokens, nHeads, headDim). */
  readonly q: ArrayLike<number>;
  /** (nTokens, nKvHeads, headDim). */
  readonly k: ArrayLike<number>;
  readonly v: ArrayLike<number>;
  readonly calls: readonly Call[];
  readonly scale: number;
  readonly window?: number | undefined;
  readonly softcap?: number | undefined;
}

/** The attended rows of all calls, (nTokens, nHeads, headDim). */
export function pagedAttention(problem: PagedProblem): Float64Array {
  const isKept = (query: number, key: number, kvHead: number): boolean => {
    const call = problem.calls.find(
      ({ blocks }) => query >= blocks.qStart && query < blocks.qStart + blocks.qLen,
    );
    return call !== undefined && isListed(call, query, key, kvHead);
  };
  return attention({ ...problem, qStart: 0, isKept }).out;
}

function isListed({ blocks, lists }: Call, query: number, key: number, kvHead: number): boolean {
  const block = Math.floor((query - blocks.qStart) / blocks.blockSize);
  const row = lists.headShared ? block : kvHead * lists.nBlocks + block;
  for (let i = lists.rowPtr[row]!; i < lists.rowPtr[row + 1]!; i++) {
    if (lists.page[i] !== Math.floor(key / 32)) continue;
    return lists.mask === undefined || ((lists.mask[i]! >>> (key % 32)) & 1) === 1;
  }
  return false;
}

/** The nearest f16, ties to even, as a number; saturates at 65504 as the pages do. */
export function roundToF16(x: number): number {
  const magnitude = Math.abs(x);
  if (magnitude === 0) return x;
  if (magnitude >= 65504) return Math.sign(x) * 65504;
  // Distance of neighbouring f16 around x: 2^-10 of its binade, 2^-24 below the normal range.
  const step = 2 ** (Math.max(-14, Math.floor(Math.log2(magnitude))) - 10);
  const down = Math.floor(magnitude / step);
  const rest = magnitude / step - down;
  const isUp = rest > 0.5 || (rest === 0.5 && down % 2 === 1);
  return Math.sign(x) * (down + (isUp ? 1 : 0)) * step;
}
