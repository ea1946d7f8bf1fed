// @ts-check
/**
 * Seeded random numbers, so that a generated model is named by its seed. Integers are the same everywhere; normal
 * numbers go through Math.log and Math.cos, whose last bit engines may round differently.
 */

/** A 32-bit avalanche: every input bit changes about half of the output bits (the finalizer of MurmurHash3). */
function mix(/** @type {number} */ x) {
  let h = x >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** A seed for the part of a model called `name`, so that parts do not depend on each other's order. */
export function seedFor(/** @type {number} */ seed, /** @type {string} */ name) {
  let hash = mix(seed ^ 0x9e3779b9);
  for (const char of name) hash = mix(hash + Math.imul(char.codePointAt(0) ?? 0, 0x01000193));
  return hash;
}

/**
 * A counter passed through the avalanche twice; good enough for weights and fuzzing.
 * @param {number} seed
 * @returns {import("./model.mjs").Random}
 */
export function seededRandom(seed) {
  const key = mix(seed + 0x6a09e667);
  let counter = 0;
  let spare = Number.NaN;
  const uint32 = () => {
    counter = (counter + 0x9e3779b9) >>> 0;
    return mix(mix(counter) ^ key);
  };
  const uniform = () => uint32() / 2 ** 32;
  const gauss = () => {
    // Box-Muller makes two at a time.
    if (!Number.isNaN(spare)) {
      const second = spare;
      spare = Number.NaN;
      return second;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
  return { uint32, uniform, gauss };
}
