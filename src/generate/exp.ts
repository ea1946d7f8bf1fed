/**
 * exp for probabilities, with the same bits in every engine.
 *
 * ECMAScript leaves Math.exp's last bits to the engine, so a seed could give another token in another browser.
 * This uses only operations that IEEE 754 fixes: + - * and comparisons, and sqrt for the tables.
 *
 *     x = (32 e + j) ln2 / 32 + r     exp(x) = 2^e * 2^(j/32) * exp(r)     |r| <= ln2 / 64
 *
 * exp(r) is its Taylor polynomial of degree 6 (remainder below 2^-58). Relative error under 4 * 2^-52.
 */

const STEPS_PER_OCTAVE = 32;
const STEPS_PER_NEPER = STEPS_PER_OCTAVE / Math.LN2;

/** ln2 / 32 in two parts; the high part has 24 significant bits, so its product with a step is exact. */
const STEP_HIGH = Math.fround(Math.LN2) / STEPS_PER_OCTAVE;
const STEP_LOW = -1.904654299957768e-9 / STEPS_PER_OCTAVE;

/** Below this the result is 0: exp(-745.14) is under half the smallest double. */
const UNDERFLOW = -745.14;

/** 2^(j/32) for j in [0, 32), as products of repeated square roots of 2. */
const FRACTION_POWERS = fractionPowers();
/** 2^-n for n in [0, 1075]; the last ones are subnormal. */
const OCTAVE_POWERS = octavePowers();

function fractionPowers(): Float64Array {
  const powers = new Float64Array(STEPS_PER_OCTAVE).fill(1);
  let root = 2;
  for (let bit = STEPS_PER_OCTAVE / 2; bit >= 1; bit /= 2) {
    root = Math.sqrt(root);
    for (let j = 0; j < STEPS_PER_OCTAVE; j++) if (j & bit) powers[j]! *= root;
  }
  return powers;
}

function octavePowers(): Float64Array {
  const powers = new Float64Array(1076);
  for (let n = 0, power = 1; n < powers.length; n++, power /= 2) powers[n] = power;
  return powers;
}

/** exp(x) for x <= 0; -Infinity gives 0. Not for positive x or NaN. */
export function expNonPositive(x: number): number {
  if (x < UNDERFLOW) return 0;
  const step = Math.floor(x * STEPS_PER_NEPER + 0.5);
  const r = x - step * STEP_HIGH - step * STEP_LOW;
  const poly = 1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720))))));
  return FRACTION_POWERS[step & (STEPS_PER_OCTAVE - 1)]! * poly * OCTAVE_POWERS[-(step >> 5)]!;
}
