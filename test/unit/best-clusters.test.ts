/** The clusters that a head reads whatever the threshold, beside sorting them all. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { BestClusters } from "../../src/attention/best-clusters.ts";
import { uniform } from "../fixtures/random.ts";

/** The entries that sorting finds: with those as likely as the last that is needed. */
function bestBySorting(sigma: readonly number[], counts: readonly number[], floor: number): number[] {
  const order = [...sigma.keys()].filter((e) => sigma[e]! > 0).sort((a, b) => sigma[b]! - sigma[a]!);
  let keys = 0;
  let least = Infinity;
  for (const e of order) {
    if (keys >= floor) break;
    least = sigma[e]!;
    keys += counts[e]!;
  }
  return [...sigma.keys()].filter((e) => sigma[e]! >= least);
}

describe("the best clusters", () => {
  const best = new BestClusters();

  for (const [name, draw] of [
    ["of every size", (u: number) => u],
    ["over twenty orders of magnitude", (u: number) => 10 ** (-20 * u)],
    ["many alike", (u: number) => Math.round(4 * u) / 4],
    ["many without any probability", (u: number) => (u < 0.7 ? 0 : u)],
    ["the least f32, and 1 but for rounding", (u: number) => (u < 0.5 ? 2 ** -149 : 1 + 2 ** -23)],
  ] as const)
    for (const n of [1, 2, 33, 800])
      test(`are those that sorting finds: ${n} estimates, ${name}`, () => {
        const random = uniform(n);
        const [offset, from] = [5, 3];
        const all = Float32Array.from({ length: offset + from + n }, () => draw(random()));
        const counts = Float32Array.from({ length: from + n }, () => 1 + Math.floor(40 * random()));
        const own = [...all.subarray(offset + from)];
        const ownCounts = [...counts.subarray(from)];
        const total = ownCounts.reduce((a, b) => a + b);
        for (const floor of [1, 0.1 * total, 0.5 * total, total - 1, total, 2 * total]) {
          const least = best.least(all, offset, counts, [from, from + n], floor);
          const found = [...own.keys()].filter((e) => own[e]! >= least);
          assert.deepEqual(found, bestBySorting(own, ownCounts, floor), `${floor} of ${total} keys`);
        }
      });

  test("are none where nothing is to be read anyway", () => {
    const [sigma, counts] = [Float32Array.of(0.5, 0.25), Float32Array.of(1, 2)];
    assert.equal(best.least(sigma, 0, counts, [0, 2], 0), Infinity);
  });
});
