/** How far attention outputs are off when keys and values are replaced by others, in f64. */

/** Keys or values of one KV head: (nKeys, headDim). */
type Rows = Float32Array;

export interface OutputErrorProblem {
  readonly exact: { readonly k: Rows; readonly v: Rows };
  readonly coded: { readonly k: Rows; readonly v: Rows };
  /** (nKeys): position, and what is added to the key's scores. */
  readonly keyPositions: readonly number[];
  readonly bias: readonly number[];
  /** (nRows, headDim) */
  readonly q: Rows;
  /** (nRows): a row sees the keys at or before its position. */
  readonly positions: readonly number[];
  readonly headDim: number;
  readonly scale: number;
}

/** Squared lengths, summed over the rows, of the outputs' difference and of the exact outputs. */
export function outputErrorReference(problem: OutputErrorProblem): { difference: number; energy: number } {
  const { q, positions, headDim } = problem;
  const sums = { difference: 0, energy: 0 };
  for (let row = 0; row < positions.length; row++) {
    const query = q.subarray(row * headDim, (row + 1) * headDim);
    const exact = attend(problem, "exact", query, positions[row]!);
    const coded = attend(problem, "coded", query, positions[row]!);
    exact.forEach((x, c) => {
      sums.difference += (x - coded[c]!) ** 2;
      sums.energy += x ** 2;
    });
  }
  return sums;
}

function attend(
  { keyPositions, bias, headDim, scale, ...rows }: OutputErrorProblem,
  which: "exact" | "coded",
  query: Rows,
  position: number,
): number[] {
  const { k, v } = rows[which];
  const seen = keyPositions.flatMap((at, key) => (at <= position ? [key] : []));
  const scores = seen.map((key) => {
    let dot = 0;
    for (let c = 0; c < headDim; c++) dot += query[c]! * k[key * headDim + c]!;
    return scale * dot + bias[key]!;
  });
  const max = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - max));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return Array.from({ length: headDim }, (_, c) =>
    seen.reduce((sum, key, i) => sum + (weights[i]! / total) * v[key * headDim + c]!, 0),
  );
}
