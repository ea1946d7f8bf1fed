/** The kernel that tries what coding costs a head's attention, beside f64. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { outputErrors } from "../../src/backend/wasm/output-error.ts";
import { PageConverter } from "../../src/backend/wasm/page-converter.ts";
import { PAGE_TOKENS } from "../../src/kv/page.ts";
import { randomRows, seeded } from "../fixtures/attention-case.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { outputErrorReference } from "../reference/output-error.ts";

/** Keys and values of f32 pages, K (headDim, 32) then V (32, headDim), as rows. */
function rowsOf(pages: Uint8Array<ArrayBuffer>, headDim: number) {
  const x = new Float32Array(pages.slice().buffer);
  const nKeys = x.length / (2 * headDim);
  const k = new Float32Array(nKeys * headDim);
  const v = new Float32Array(nKeys * headDim);
  for (let key = 0; key < nKeys; key++)
    for (let c = 0; c < headDim; c++) {
      const page = Math.floor(key / PAGE_TOKENS) * 2 * PAGE_TOKENS * headDim;
      k[key * headDim + c] = x[page + c * PAGE_TOKENS + (key % PAGE_TOKENS)]!;
      v[key * headDim + c] = x[page + (PAGE_TOKENS + (key % PAGE_TOKENS)) * headDim + c]!;
    }
  return { k, v };
}

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`output errors equal f64, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const [name, headDim, nPages, nRows, qScale] of [
      ["one row and page", 16, 1, 1, 1],
      ["a whole tile of rows", 8, 5, 4, 1],
      ["one past the tile", 64, 9, 5, 1],
      ["an odd number of rows", 80, 3, 7, 1],
      ["sharp scores", 128, 4, 6, 20],
    ] as const)
      test(name, async () => {
        const wasm = await instantiate(variant);
        const converter = new PageConverter(wasm, headDim);
        const random = seeded(3);
        const exact = new Uint8Array(
          randomRows(nPages * 2 * PAGE_TOKENS * headDim, random).buffer as ArrayBuffer,
        );
        const coded = converter.convert(converter.convert(exact, "f32", "q2"), "q2", "f32");
        const q = randomRows(nRows * headDim, random).map((x) => x * qScale);
        // Pages that are left out lie between, and rows see parts of the last ones, or nothing of them.
        const first = Int32Array.from({ length: nPages }, (_, page) => 64 * page);
        const positions = Int32Array.from({ length: nRows }, (_, row) => 64 * (nPages - 1) + 31 - 13 * row);
        for (const [row, position] of positions.entries()) positions[row] = Math.max(position, 3);
        const bias = Float32Array.from({ length: nPages }, (_, page) => Math.log(1 + (page % 3)));
        const scale = headDim ** -0.5;
        const actual = outputErrors(wasm, { exact, coded, bias, first, q, positions }, headDim, scale);
        const ofKey = (numbers: ArrayLike<number>) =>
          Array.from({ length: nPages * PAGE_TOKENS }, (_, key) => numbers[Math.floor(key / PAGE_TOKENS)]!);
        const expected = outputErrorReference({
          exact: rowsOf(exact, headDim),
          coded: rowsOf(coded, headDim),
          keyPositions: ofKey(first).map((at, key) => at + (key % PAGE_TOKENS)),
          bias: ofKey(bias),
          q,
          positions: Array.from(positions),
          headDim,
          scale,
        });
        for (const which of ["difference", "energy"] as const) {
          assert.ok(expected[which] > 0);
          // Sums of f32 whose terms are right to about 1e-6, of scores up to some hundreds to 1e-5.
          const off = Math.abs(actual[which] / expected[which] - 1);
          assert.ok(off < 1e-3, `${which}: ${actual[which]} instead of ${expected[which]}`);
        }
      });
  });

test("pages that are the same differ by nothing", async () => {
  const wasm = await instantiate("simd");
  const pages = new Uint8Array(randomRows(2 * 2 * 32 * 16, seeded(5)).buffer as ArrayBuffer);
  const bias = new Float32Array(2);
  const first = Int32Array.of(0, 32);
  const q = randomRows(16, seeded(6));
  const positions = Int32Array.of(63);
  const { difference, energy } = outputErrors(
    wasm,
    { exact: pages, coded: pages, bias, first, q, positions },
    16,
    0.25,
  );
  assert.equal(difference, 0);
  assert.ok(energy > 0);
});
