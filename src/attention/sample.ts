/**
 * SampleAttention (arXiv:2406.15486; algorithms.md D.1): attention of a few sampled query rows, computed exactly over all
 * keys, says which pages matter.
 *
 * The rows are strided over the call, and its last ones are among them: in a call that ends the prompt, the question.
 * Their probabilities are summed per page (columns) and per distance in pages (slashes), per KV head. As many columns
 * are kept as hold a share ALPHA of the mass, and as many slashes; what the budget does not allow is left out. Rows
 * choose for earlier ones: `lookahead`.
 */

import { internalError } from "../errors.ts";
import { PageRows } from "./page-rows.ts";
import {
  type AttentionShape,
  type Budget,
  headBudget,
  type LayerView,
  type PolicyNeeds,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "./policy.ts";
import { Ranking } from "./ranking.ts";
import { addLineRows } from "./vertical-slash.ts";

/** Share of the sampled mass that columns, and slashes, must hold (the paper's near-lossless setting). */
const ALPHA = 0.95;
/** Share of the rows that is sampled. */
const ROW_SHARE = 0.05;
/** The last rows of the call, always sampled. */
const LAST_ROWS = 4;

/** Rows of the call that are sampled: every 20th, and the last ones. */
export function sampledRows({ qLen }: QueryBlocks): Uint32Array {
  const stride = Math.round(1 / ROW_SHARE);
  const rows: number[] = [];
  for (let row = 0; row < qLen; row++)
    if (row % stride === stride - 1 || row >= qLen - LAST_ROWS) rows.push(row);
  return Uint32Array.from(rows);
}

export class SamplePolicy implements SelectionPolicy {
  readonly name = "sample";
  readonly phases = ["prefill"] as const;
  readonly lookahead = true;
  readonly needs: PolicyNeeds = { sampleRows: sampledRows };
  readonly #ranking = new Ranking();

  constructor(private readonly shape: AttentionShape) {}

  select(layer: number, blocks: QueryBlocks, budget: Budget, { masses }: LayerView = {}): Selection[] {
    if (!masses) throw internalError("sample without sampled rows");
    const { nPages } = masses;
    const rows = new PageRows(blocks.qStart + blocks.qLen);
    for (let h = 0; h < this.shape.nKvHeads; h++) {
      const columns = this.#heaviest(masses.columns.subarray(h * nPages, (h + 1) * nPages));
      const slashes = this.#heaviest(masses.diagonals.subarray(h * nPages, (h + 1) * nPages));
      const own = headBudget(budget, this.shape, layer, h);
      addLineRows(rows, this.#ranking, { columns, slashes }, blocks, own, this.shape.window[layer]);
    }
    return [rows.finish(layer, this.shape, blocks, false)];
  }

  /** The fewest lines that hold ALPHA of the mass; the others have none. */
  #heaviest(masses: Float32Array): Float32Array {
    const total = masses.reduce((sum, mass) => sum + mass, 0);
    const kept = new Float32Array(masses.length);
    this.#ranking.clear();
    for (const [i, mass] of masses.entries()) this.#ranking.add(i, mass);
    let sum = 0;
    for (const i of this.#ranking.descending()) {
      if (sum >= ALPHA * total) break;
      kept[i] = masses[i]!;
      sum += masses[i]!;
    }
    return kept;
  }
}
