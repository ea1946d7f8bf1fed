// @ts-check
/** Scales for a run of numbers that shares one. */

/** How far the extreme number may be clipped or spared, in levels: a smaller scale serves the many small numbers. */
const TRIALS = [-0.5, -0.25, 0, 0.25, 0.5, 0.75];

/**
 * The scale d, of either sign, for levels [low, high] (-low is the larger side): the number of largest magnitude
 * goes near `low`, and the trial with the least squared error wins.
 * @param {Float32Array} x
 * @param {number} from
 * @param {number} count
 * @param {number} low
 * @param {number} high
 * @returns {number}
 */
export function bestSymmetric(x, from, count, low, high) {
  let extreme = 0;
  for (let i = from; i < from + count; i++) if (Math.abs(x[i]) > Math.abs(extreme)) extreme = x[i];
  if (extreme === 0) return 0;
  let best = extreme / low;
  let least = Infinity;
  for (const trial of TRIALS) {
    const d = extreme / (low + trial);
    let error = 0;
    for (let i = from; i < from + count; i++) {
      const q = Math.min(high, Math.max(low, Math.round(x[i] / d)));
      error += (x[i] - q * d) ** 2;
    }
    if (error < least) {
      least = error;
      best = d;
    }
  }
  return best;
}

/**
 * Scale and minimum for levels [0, nLevels] that cover all numbers.
 * @param {Float32Array} x
 * @param {number} from
 * @param {number} count
 * @param {number} nLevels
 * @returns {{ d: number, min: number }}
 */
export function bestAffine(x, from, count, nLevels) {
  let min = x[from];
  let max = x[from];
  for (let i = from + 1; i < from + count; i++) {
    if (x[i] < min) min = x[i];
    if (x[i] > max) max = x[i];
  }
  return { d: (max - min) / nLevels, min };
}
