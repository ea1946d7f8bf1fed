/** Types of random.mjs, for those who need only seeded numbers. */

export type { Random } from "./model.mjs";
export { seededRandom } from "./model.mjs";

/** A seed for the part of a model called `name`, so that parts do not depend on each other's order. */
export function seedFor(seed: number, name: string): number;
