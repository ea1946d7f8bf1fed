/**
 * Budgets for single heads, from what they lose at equal ones: a head that looks at few places keeps everything with
 * little, one that looks everywhere needs more (retrieval heads, algorithms.md D).
 */

import type { Recall } from "./quality.ts";

/** A head has at least a quarter of the mean, and at most four times of it before they are made to average 1. */
const LEAST = 0.25;
const MOST = 4;

/** `attention.headBudgets`, [layer][KV head]: proportional to the attention that was lost, mean 1. */
export function headBudgets({ meanByHead }: Recall, nKvHeads: number): number[][] {
  const lost = meanByHead.map((heads) => {
    const group = heads.length / nKvHeads;
    return Array.from({ length: nKvHeads }, (_, kvHead) =>
      heads.slice(kvHead * group, (kvHead + 1) * group).reduce((sum, kept) => sum + (1 - kept) / group, 0),
    );
  });
  const meanLost = mean(lost.flat());
  if (!(meanLost > 0)) return lost.map((heads) => heads.map(() => 1));
  const bounded = lost.map((heads) => heads.map((x) => Math.min(MOST, Math.max(LEAST, x / meanLost))));
  const scale = mean(bounded.flat());
  return bounded.map((heads) => heads.map((x) => Number((x / scale).toFixed(3))));
}

function mean(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0) / values.length;
}
