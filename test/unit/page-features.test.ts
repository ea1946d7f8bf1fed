/** What selection policies remember of keys, computed from stored pages: the same as from a forward pass. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { KeyFeatures } from "../../src/attention/key-features.ts";
import { PageConverter } from "../../src/backend/wasm/page-converter.ts";
import { type CacheFormat, PAGE_TOKENS, pageBytes, pageCount } from "../../src/kv/page.ts";
import { wholePageBytes } from "../../src/kv/quantize.ts";
import { type RopeSpec, ropeTable } from "../../src/model/rope.ts";
import { kvRecords, type PromptShape, storedRuns } from "../../src/prompts/manifest.ts";
import { PageFeatures } from "../../src/prompts/page-features.ts";
import { normals } from "../fixtures/random.ts";
import { instantiate } from "../fixtures/wasm.ts";

const N_TOKENS = 333;
const WIDTH = 2 * 16;

function ropeOf(pairs: RopeSpec["pairs"], nRot: number, magnitude: number): RopeSpec {
  const nPairs = nRot / 2;
  const frequencies = Float64Array.from({ length: nPairs }, (_, i) => 10_000 ** (-i / nPairs));
  return { frequencies, ratio: 10_000 ** (-1 / nPairs), magnitude, pairs };
}

/** Keys of topics that change every 40 tokens, (N_TOKENS, WIDTH), before RoPE. */
function topicalKeys(): Float32Array {
  const topics = normals(9 * WIDTH, 3);
  const noise = normals(N_TOKENS * WIDTH, 4);
  return noise.map((x, i) => 0.3 * x + topics[Math.floor(i / WIDTH / 40) * WIDTH + (i % WIDTH)]!);
}

/** The keys after RoPE, one pair after the other. */
function rotated(keys: Float32Array, rope: RopeSpec): Float32Array {
  const { angles, nRot, pairs } = ropeTable(rope, 0, N_TOKENS);
  const out = keys.slice();
  for (let t = 0; t < N_TOKENS; t++)
    for (let head = 0; head < 2; head++)
      for (let i = 0; i < nRot / 2; i++) {
        const at = t * WIDTH + head * 16;
        const [a, b] = pairs === "adjacent" ? [at + 2 * i, at + 2 * i + 1] : [at + i, at + i + nRot / 2];
        const [cos, sin] = [angles[t * nRot + 2 * i]!, angles[t * nRot + 2 * i + 1]!];
        out[a] = keys[a]! * cos - keys[b]! * sin;
        out[b] = keys[a]! * sin + keys[b]! * cos;
      }
  return out;
}

/** One layer as f32 pages, (pages, KV heads, K then V); V stays zero. */
function pagesOf(keys: Float32Array): Uint8Array<ArrayBuffer> {
  const half = pageBytes("f32", 16) / 4;
  const pages = new Float32Array(pageCount(N_TOKENS) * 2 * 2 * half);
  for (let t = 0; t < N_TOKENS; t++)
    for (let c = 0; c < WIDTH; c++) {
      const page = Math.floor(t / PAGE_TOKENS) * 2 + Math.floor(c / 16);
      pages[page * 2 * half + (c % 16) * PAGE_TOKENS + (t % PAGE_TOKENS)] = keys[t * WIDTH + c]!;
    }
  return new Uint8Array(pages.buffer);
}

/** As a forward pass of chunks makes them. */
function expectedFeatures(keys: Float32Array, after: Float32Array, granule: number): KeyFeatures {
  const features = new KeyFeatures({ nLayers: 2, nKvHeads: 2, headDim: 16, granule, boundaryLayer: 1 });
  features.appendBoundaryKeys(keys);
  for (const layer of [0, 1])
    features.append(layer, N_TOKENS, (ends, sums) => {
      let from = 0;
      for (const [run, to] of ends.entries()) {
        for (let t = from; t < to; t++)
          for (let c = 0; c < WIDTH; c++) sums[run * WIDTH + c]! += after[t * WIDTH + c]!;
        from = to;
      }
    });
  features.commit(N_TOKENS);
  return features;
}

function assertNear(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  assert.equal(actual.length, expected.length);
  const error = actual.reduce((most, x, i) => Math.max(most, Math.abs(x - expected[i]!)), 0);
  assert.ok(error <= tolerance, `off by ${error}`);
}

/** Sums of 32 keys reach 100, of which an f32 has 8e-6 as its last place, times 32 additions; f16 and 8 bits round each key. */
const TOLERANCE: Readonly<Record<"f32" | "f16" | "q8", number>> = { f32: 3e-4, f16: 0.05, q8: 0.5 };

describe("key features of pages", async () => {
  const converter = new PageConverter(await instantiate("simd"), 16);
  for (const [name, pairs, nRot, magnitude] of [
    ["halves", "halves", 16, 1],
    ["adjacent", "adjacent", 16, 1],
    ["part of a head, with a magnitude", "halves", 8, 1.2],
  ] as const)
    for (const format of ["f32", "f16", "q8"] as const)
      for (const granule of [8, 32])
        test(`equal those of a forward pass: ${name}, ${format}, granules of ${granule}`, () => {
          const rope = ropeOf(pairs, nRot, magnitude);
          const keys = topicalKeys();
          const after = rotated(keys, rope);
          const isCold = format === "q8";
          const shape: PromptShape = {
            ...{ nLayers: 2, nKvHeads: 2, headDim: 16 },
            format: isCold ? "f16" : format,
            cold: isCold ? "q8" : null,
            wide: null,
          };
          const stored = { shape, nTokens: N_TOKENS };
          const built = new PageFeatures({ granule, boundaryLayer: 1 }, stored, rope, converter);
          const f32 = pagesOf(after);
          const pageSize = 2 * wholePageBytes("f32", 16);
          for (const record of kvRecords(shape, N_TOKENS)) {
            const parts = storedRuns(shape, N_TOKENS, record.from, record.to).map((run) => {
              const pages = f32.subarray(run.from * pageSize, run.to * pageSize);
              return converter.convert(pages, "f32", run.format as CacheFormat);
            });
            built.add(record, new Uint8Array(Buffer.concat(parts)));
          }
          const { features } = built;
          features.commit(N_TOKENS);
          const expected = expectedFeatures(keys, after, granule);
          for (const layer of [0, 1]) {
            assertNear(features.granuleSums(layer), expected.granuleSums(layer), TOLERANCE[format]);
            assert.deepEqual(features.chunks(layer).ends, expected.chunks(layer).ends, `layer ${layer}`);
            assertNear(features.chunkFeatures(layer), expected.chunkFeatures(layer), TOLERANCE[format]);
          }
        });

  test("pages go from any format to any other, and back unchanged where nothing is rounded", () => {
    const f16 = converter.convert(pagesOf(topicalKeys()), "f32", "f16");
    assert.deepEqual(converter.convert(converter.convert(f16, "f16", "f32"), "f32", "f16"), f16);
    const formats: readonly CacheFormat[] = ["f32", "f16", "q8", "q4", "q2"];
    for (const from of formats)
      for (const to of formats) {
        const pages = converter.convert(f16, "f16", from);
        const converted = converter.convert(pages, from, to);
        assert.equal(
          converted.byteLength,
          (f16.byteLength / wholePageBytes("f16", 16)) * wholePageBytes(to, 16),
        );
      }
  });

  test("what does not fit a format is refused", () => {
    for (const [value, to] of [
      [1e5, "f16"],
      [Number.NaN, "f16"],
      [Number.POSITIVE_INFINITY, "q4"],
    ] as const) {
      const pages = new Float32Array(2 * 16 * PAGE_TOKENS);
      pages[7] = value;
      assert.throws(() => converter.convert(new Uint8Array(pages.buffer), "f32", to), {
        code: "invalid-model",
        message: /keys of a page/,
      });
    }
  });
});
