/**
 * How much attention queries pay to runs of keys, estimated from each run's mean key: a run of n keys with mean m counts
 * as n keys that all are m, so its share is n e^(s q·m) of the sum over all runs. Normalised per query and then averaged
 * over a block and the query heads of a KV head, since a query that looks at one place must not be drowned by one whose
 * scores are larger everywhere.
 *
 * This is the definition in plain loops; `Ops.estimateMasses` is the same on a device.
 */

import { type AttentionShape, blockCount, type QueryBlocks } from "./policy.ts";
import { dot } from "./ranking.ts";

/** Keys in runs, of one layer. */
export interface KeyRuns {
  readonly nRuns: number;
  /** (nRuns, nKvHeads, headDim): the sum of a run's keys / sqrt(length). */
  readonly features: Float32Array;
  /** (nRuns): keys of each run. */
  readonly lengths: Float32Array;
  /** (nBlocks, 4): block b sees runs [0th, 1st) and [2nd, 3rd), ascending. A block that sees none has masses of 0. */
  readonly visible: Uint32Array;
}

/** (nBlocks, nKvHeads, nRuns): each block's attention on each run, 0 to 1; what it does not see has 0. */
export type RunMasses = Float32Array;

/** Queries in the place of single rows. */
export interface QueryRuns {
  /** (nRows, nHeads, headDim): means over some tokens, or single tokens. */
  readonly rows: Float32Array;
  /** (nBlocks): block b has rows [rowEnds[b-1], rowEnds[b]). */
  readonly rowEnds: Uint32Array;
}

/** `scale` is that of the attention scores. */
export function estimateMasses(
  { rows, rowEnds }: QueryRuns,
  { nRuns, features, lengths, visible }: KeyRuns,
  { nHeads, nKvHeads, headDim }: Pick<AttentionShape, "nHeads" | "nKvHeads" | "headDim">,
  scale: number,
): RunMasses {
  const group = nHeads / nKvHeads;
  const masses = new Float32Array(rowEnds.length * nKvHeads * nRuns);
  const logits = new Float32Array(nRuns);
  const meanScale = lengths.map((n) => scale / Math.sqrt(n));
  const logLengths = lengths.map((n) => Math.log(n));
  let row = 0;
  for (const [b, rowEnd] of rowEnds.entries()) {
    const seen = visibleRuns(visible, b);
    const nRows = rowEnd - row;
    for (; row < rowEnd; row++)
      for (let head = 0; head < nHeads; head++) {
        const kvHead = Math.floor(head / group);
        const queryAt = (row * nHeads + head) * headDim;
        let top = -Infinity;
        for (const r of seen) {
          const keys = (r * nKvHeads + kvHead) * headDim;
          logits[r] = dot(rows, queryAt, features, keys, headDim) * meanScale[r]! + logLengths[r]!;
          top = Math.max(top, logits[r]!);
        }
        let total = 0;
        for (const r of seen) total += logits[r] = Math.exp(logits[r]! - top);
        const weight = 1 / (total * nRows * group);
        const at = (b * nKvHeads + kvHead) * nRuns;
        for (const r of seen) masses[at + r]! += logits[r]! * weight;
      }
  }
  return masses;
}

/** Runs that block b sees. */
function visibleRuns(visible: Uint32Array, b: number): number[] {
  const [from, to, from2, to2] = visible.subarray(4 * b, 4 * b + 4);
  const seen: number[] = [];
  for (let r = from!; r < to!; r++) seen.push(r);
  for (let r = from2!; r < to2!; r++) seen.push(r);
  return seen;
}

/** Where runs of at most `length` queries end that do not cross a block's end: (nQueryRuns). */
export function queryRunEnds(
  blocks: QueryBlocks,
  length: number,
): { ends: Uint32Array; rowEnds: Uint32Array } {
  const ends: number[] = [];
  const rowEnds: number[] = [];
  for (let b = 0; b < blockCount(blocks); b++) {
    const last = Math.min((b + 1) * blocks.blockSize, blocks.qLen);
    for (let at = b * blocks.blockSize; at < last; at += length) ends.push(Math.min(at + length, last));
    rowEnds.push(ends.length);
  }
  return { ends: Uint32Array.from(ends), rowEnds: Uint32Array.from(rowEnds) };
}
