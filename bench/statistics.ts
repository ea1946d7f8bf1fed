/** Medians, and how a measurement is compared with another one of the same round. */

import type { BenchResult } from "./report.ts";

/** Which direction of a unit is the good one. */
const LOWER_IS_BETTER: ReadonlySet<string> = new Set([
  "s",
  "ms",
  "MB",
  "KB",
  "bytes",
  "mnats",
  "ppl",
  "bits",
]);

/** The middle value; of an even number of values, the mean of the two middle ones. Throws RangeError without values. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("the median of no values");
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** How many times better `value` is than `baseline`: above 1 means better, whichever way the unit counts. */
export function betterBy(unit: string, value: number, baseline: number): number {
  return LOWER_IS_BETTER.has(unit) ? baseline / value : value / baseline;
}

/**
 * Two things measured in turn: `values[i]` and `baselines[i]` come from the same round. The ratio is the median of
 * the rounds' ratios, since what slows the machine for a while slows both halves of a round; min and max are those
 * of the ratio.
 */
export function pairedResult(
  id: string,
  unit: string,
  values: readonly number[],
  baselines: readonly number[],
): BenchResult {
  if (values.length !== baselines.length)
    throw new RangeError(`${id}: ${values.length} values and ${baselines.length} baselines`);
  const ratios = values.map((value, i) => betterBy(unit, value, baselines[i]!));
  return {
    id,
    value: median(values),
    unit,
    baseline: median(baselines),
    ratio: median(ratios),
    n: values.length,
    min: Math.min(...ratios),
    max: Math.max(...ratios),
  };
}

/** Something measured beside a fixed number: a limit of the hardware, a target, a size. */
export function limitResult(id: string, unit: string, values: readonly number[], limit: number): BenchResult {
  return pairedResult(
    id,
    unit,
    values,
    values.map(() => limit),
  );
}
