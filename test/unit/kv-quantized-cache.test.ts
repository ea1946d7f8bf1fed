/** A cache whose old pages are quantized: what attention reads of it, and what forks and truncation do to it. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { FORMAT_CODES } from "../../src/backend/wasm/page-converter.ts";
import { WasmAttention } from "../../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { InlayError } from "../../src/errors.ts";
import { PAGE_TOKENS, pageBytes } from "../../src/kv/page.ts";
import type { PagedCache } from "../../src/kv/paged-cache.ts";
import { CLIP, type QuantizedFormat, settledPages, wholePageBytes } from "../../src/kv/quantize.ts";
import {
  type AttentionCase,
  attendChunk,
  type Backend,
  makeSelection,
  type Rows,
  randomSequence,
  relativeError,
  seeded,
} from "../fixtures/attention-case.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { pagedAttention } from "../reference/paged-attention.ts";

const FORMATS: readonly QuantizedFormat[] = ["q8", "q4", "q2"];

/** As for unquantized pages: see wasm-attention.test.ts. */
const TOLERANCE = 1e-5;

const BASE: AttentionCase = {
  name: "",
  nHeads: 4,
  nKvHeads: 2,
  headDim: 16,
  format: "f32",
  chunks: [],
  blockSize: 32,
  lists: "per-head masked",
};

type Variant = (typeof SINGLE_THREAD_VARIANTS)[number];

interface QuantizedBackend extends Backend {
  readonly ops: WasmOps;
  readonly attention: WasmAttention;
}

async function openBackend(c: AttentionCase, cold: QuantizedFormat, variant: Variant = "simd") {
  const ops = new WasmOps(await instantiate(variant));
  const { nHeads, nKvHeads, headDim } = c;
  const attention = new WasmAttention(ops, { nLayers: 1, nHeads, nKvHeads, headDim, format: "f32", cold });
  const host = {
    of(elements: Float32Array, width: number) {
      const tensor = ops.heap.create(elements.length / width, width);
      tensor.view.set(elements);
      return tensor;
    },
    view: (tensor: Parameters<typeof ops.heap.view>[0]) => ops.heap.view(tensor),
  };
  return { ops, attention, host } satisfies QuantizedBackend;
}

/** Feeds `n` tokens; returns their attended rows, and the call for the reference. */
async function feed(backend: Backend, c: AttentionCase, cache: PagedCache, rows: Rows, n: number, seed = 1) {
  const blocks = { qStart: cache.nTokens, qLen: n, blockSize: n === 1 ? 1 : c.blockSize };
  const lists = makeSelection(c, blocks, seeded(seed));
  const out = await attendChunk(backend, c, cache, rows, lists, blocks);
  return { out, call: { blocks, lists } };
}

/** Keys or values of one page, (32, nKvHeads, headDim), coded and decoded in pages of one head each. */
function throughCodec(
  ops: WasmOps,
  c: AttentionCase,
  format: QuantizedFormat,
  k: Float32Array,
  v: Float32Array,
) {
  const { nKvHeads, headDim } = c;
  const { wasm } = ops;
  const half = PAGE_TOKENS * headDim;
  const hot = wasm.alloc(8 * half, "test");
  const cold = wasm.alloc(wholePageBytes(format, headDim), "test");
  for (let head = 0; head < nKvHeads; head++) {
    const at = (t: number, i: number) => (t * nKvHeads + head) * headDim + i;
    const page = wasm.f32(hot, 2 * half);
    for (let t = 0; t < PAGE_TOKENS; t++)
      for (let i = 0; i < headDim; i++) {
        page[i * PAGE_TOKENS + t] = k[at(t, i)]!;
        page[half + t * headDim + i] = v[at(t, i)]!;
      }
    assert.equal(
      wasm.call(
        "kv_convert_pages",
        hot,
        FORMAT_CODES.f32,
        1,
        headDim,
        CLIP[format],
        FORMAT_CODES[format],
        cold,
      ),
      0,
    );
    assert.equal(
      wasm.call("kv_convert_pages", cold, FORMAT_CODES[format], 1, headDim, 1, FORMAT_CODES.f32, hot),
      0,
    );
    for (let t = 0; t < PAGE_TOKENS; t++)
      for (let i = 0; i < headDim; i++) {
        k[at(t, i)] = page[i * PAGE_TOKENS + t]!;
        v[at(t, i)] = page[half + t * headDim + i]!;
      }
  }
  wasm.free(hot);
  wasm.free(cold);
}

/** The rows with keys and values of pages [1, settled) as the codec leaves them. */
function withColdPages(ops: WasmOps, c: AttentionCase, format: QuantizedFormat, rows: Rows, settled: number) {
  const [k, v] = [rows.k.slice(), rows.v.slice()];
  const width = PAGE_TOKENS * c.nKvHeads * c.headDim;
  for (let page = 1; page < settled; page++) {
    const [from, to] = [page * width, (page + 1) * width];
    throughCodec(ops, c, format, k.subarray(from, to), v.subarray(from, to));
  }
  return { ...rows, k, v };
}

const SHAPES: readonly (Partial<AttentionCase> & { chunks: readonly number[] })[] = [
  // Some 200 keys: the exact kernel, which takes over from the flash kernel below 256.
  { chunks: [200, 1] },
  { chunks: [200, 30] },
  { chunks: [300, 1] },
  { chunks: [300, 1, 1, 70] },
  { chunks: [150, 150, 150, 33] },
  { headDim: 8, nHeads: 8, nKvHeads: 4, chunks: [400, 1] },
  { headDim: 64, nHeads: 9, nKvHeads: 3, chunks: [400, 40] },
  { headDim: 80, nHeads: 2, nKvHeads: 1, chunks: [300, 1] },
  { headDim: 128, chunks: [333, 40] },
  { window: 90, chunks: [333, 40] },
  { softcap: 5, chunks: [333, 1] },
];

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`attention over hot and cold pages equals f64, ${variant} build`, {
    skip: cannotRun(variant),
  }, () => {
    for (const format of FORMATS)
      for (const shape of SHAPES)
        test(`${format}, ${JSON.stringify(shape)}`, async () => {
          const c = { ...BASE, ...shape };
          const backend = await openBackend(c, format, variant);
          const nTokens = c.chunks.reduce((a, b) => a + b, 0);
          const rows = randomSequence(c, nTokens, seeded(3));
          const cache = backend.attention.createCache();
          for (const n of c.chunks) {
            const before = cache.nTokens;
            const { out, call } = await feed(backend, c, cache, rows, n);
            // What a call reads is what was cold when it began.
            const seen = withColdPages(backend.ops, c, format, rows, settledPages(before));
            const expected = pagedAttention({ ...c, ...seen, calls: [call], scale: c.headDim ** -0.5 });
            const width = c.nHeads * c.headDim;
            const error = relativeError(out, expected.slice(before * width, (before + n) * width), c.headDim);
            assert.ok(error <= TOLERANCE, `relative error ${error} after ${before} tokens`);
          }
        });
  });

/**
 * With keys off by at most e_k, scores move by at most d = scale * |q|_1 * e_k, weights by factors of at most e^(2d), and
 * the output by (e^(2d) - 1) * max |v| + e_v.
 */
test("attention differs from unquantized attention by what the codec's errors allow", async () => {
  for (const format of FORMATS) {
    const c: AttentionCase = { ...BASE, lists: "dense", qScale: 0.1 };
    const backend = await openBackend(c, format);
    const rows = randomSequence(c, 401, seeded(11));
    const cache = backend.attention.createCache();
    await feed(backend, c, cache, rows, 400);
    const { out, call } = await feed(backend, c, cache, rows, 1);
    const coded = withColdPages(backend.ops, c, format, rows, settledPages(400));
    const largestError = (a: Float32Array, b: Float32Array) =>
      a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);
    const keyError = largestError(rows.k, coded.k);
    const valueError = largestError(rows.v, coded.v);
    const largestValue = rows.v.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    const exact = pagedAttention({ ...c, ...rows, calls: [call], scale: c.headDim ** -0.5 });
    let seen = 0;
    for (let head = 0; head < c.nHeads; head++) {
      const at = (400 * c.nHeads + head) * c.headDim;
      const size = rows.q.subarray(at, at + c.headDim).reduce((sum, x) => sum + Math.abs(x), 0);
      const shift = c.headDim ** -0.5 * size * keyError;
      const allowed = Math.expm1(2 * shift) * largestValue + valueError + 1e-5;
      for (let i = 0; i < c.headDim; i++) {
        const error = Math.abs(out[head * c.headDim + i]! - exact[at + i]!);
        assert.ok(error <= allowed, `${format}: ${error} of ${allowed}`);
        seen = Math.max(seen, error);
      }
    }
    // And the pages are quantized: an f32 cache is within 1e-5.
    assert.ok(seen > 2e-5, `${format}: ${seen}`);
  }
});

describe("pages leave the window", () => {
  test("cold pages take the codec's bytes; sinks and window stay", async () => {
    for (const format of FORMATS) {
      const backend = await openBackend(BASE, format);
      const rows = randomSequence(BASE, 700, seeded(5));
      const cache = backend.attention.createCache();
      const hotBytes = BASE.nKvHeads * 2 * pageBytes("f32", BASE.headDim);
      const coldBytes = BASE.nKvHeads * wholePageBytes(format, BASE.headDim);
      for (const [n, nCold] of [
        [160, 0],
        [31, 0],
        [1, 1],
        [32, 2],
        [476, 16],
      ] as const) {
        await feed(backend, BASE, cache, rows, n);
        const nHot = Math.ceil(cache.nTokens / PAGE_TOKENS) - nCold;
        assert.equal(cache.bytes, nHot * hotBytes + nCold * coldBytes, `${cache.nTokens} tokens`);
        assert.equal(backend.attention.memory().kv, cache.bytes);
      }
      cache.dispose();
      assert.equal(backend.attention.memory().kv, 0);
    }
  });

  test("the same pages, whatever calls they came in", async () => {
    const c: AttentionCase = { ...BASE, lists: "dense" };
    const rows = randomSequence(c, 401, seeded(5));
    const results: Float32Array[] = [];
    for (const chunks of [[400], [100, 200, 100], new Array<number>(400).fill(1)]) {
      const backend = await openBackend(c, "q2");
      const cache = backend.attention.createCache();
      for (const n of chunks) await feed(backend, c, cache, rows, n);
      results.push((await feed(backend, c, cache, rows, 1)).out);
    }
    assert.deepEqual(results[1], results[0]);
    assert.deepEqual(results[2], results[0]);
  });

  test("a value that is not finite is named by layer and page, and the cache goes back", async () => {
    const backend = await openBackend(BASE, "q4");
    const rows = randomSequence(BASE, 400, seeded(5));
    const cache = backend.attention.createCache();
    await feed(backend, BASE, cache, rows, 150);
    // Token 70 is in page 2; element 20 belongs to KV head 1.
    rows.v[70 * 32 + 20] = Number.NaN;
    cache.truncate(64);
    await feed(backend, BASE, cache, rows, 100);
    await assert.rejects(feed(backend, BASE, cache, rows, 100), (error) => {
      assert.ok(error instanceof InlayError && error.code === "invalid-model");
      assert.match(
        error.message,
        /the values of layer 0, KV head 1 are not finite in page 2 \(tokens 64 to 95\)/,
      );
      assert.deepEqual(error.details, { what: "values", layer: 0, kvHead: 1, page: 2 });
      return true;
    });
    cache.truncate(64);
    cache.dispose();
    assert.equal(backend.attention.memory().kv, 0);
  });
});

describe("forks and truncation", () => {
  /** A cache of `n` tokens. */
  async function filled(format: QuantizedFormat, n: number) {
    const c: AttentionCase = { ...BASE, lists: "dense" };
    const backend = await openBackend(c, format);
    const rows = randomSequence(c, 1000, seeded(5));
    const cache = backend.attention.createCache();
    await feed(backend, c, cache, rows, n);
    return { c, backend, rows, cache };
  }

  test("forks share cold pages, also those that become cold in both", async () => {
    const { c, backend, rows, cache } = await filled("q4", 300);
    const fork = cache.fork();
    await feed(backend, c, cache, rows, 100);
    const alone = backend.attention.memory().kv;
    assert.ok(alone > cache.bytes, "the fork keeps its window's pages");
    await feed(backend, c, fork, rows, 100);
    const coldPages = settledPages(400);
    assert.deepEqual(fork.slots.slice(0, coldPages), cache.slots.slice(0, coldPages));
    // Page 9, partly filled at the fork, and those after it are each cache's own.
    assert.equal(backend.attention.memory().kv, cache.bytes + 4 * hotSlotBytes(c));
    assert.deepEqual(
      (await feed(backend, c, fork, rows, 1)).out,
      (await feed(backend, c, cache, rows, 1)).out,
    );
    cache.dispose();
    await feed(backend, c, fork, rows, 200);
    fork.dispose();
    assert.equal(backend.attention.memory().kv, 0);
  });

  function hotSlotBytes(c: AttentionCase): number {
    return c.nKvHeads * 2 * pageBytes("f32", c.headDim);
  }

  for (const format of FORMATS)
    test(`${format}: a cut cold page is decoded, written on, and coded again`, async () => {
      const { c, backend, rows, cache } = await filled(format, 400);
      const untouched = cache.fork();
      // Page 3 is cold; its first 14 tokens stay.
      cache.truncate(110);
      const held = cache.slots[3]!;
      const { out, call } = await feed(backend, c, cache, rows, 1);
      assert.notEqual(cache.slots[3], held, "a private, writable copy");
      const seen = withColdPages(backend.ops, c, format, rows, 4);
      // The new token itself is exact.
      const width = c.nKvHeads * c.headDim;
      seen.k.set(rows.k.subarray(110 * width, 111 * width), 110 * width);
      seen.v.set(rows.v.subarray(110 * width, 111 * width), 110 * width);
      const expected = pagedAttention({ ...c, ...seen, calls: [call], scale: c.headDim ** -0.5 });
      const from = 110 * c.nHeads * c.headDim;
      const error = relativeError(out, expected.slice(from, from + c.nHeads * c.headDim), c.headDim);
      assert.ok(error <= TOLERANCE, `relative error ${error}`);
      await feed(backend, c, cache, rows, 289);
      assert.equal(cache.bytes, untouched.bytes, "everything that left the window is cold again");
      const again = (await feed(backend, c, untouched, rows, 1)).out;
      const fresh = await filled(format, 400);
      assert.deepEqual(
        again,
        (await feed(fresh.backend, c, fresh.cache, rows, 1)).out,
        "the fork saw nothing of it",
      );
    });

  test("truncating to the window, to nothing, and to page edges", async () => {
    for (const n of [399, 384, 383, 270, 192, 64, 33, 32, 1, 0]) {
      const { c, backend, rows, cache } = await filled("q8", 400);
      cache.truncate(n);
      await feed(backend, c, cache, rows, 401 - n);
      const nCold = settledPages(401) - 1;
      const expected = nCold * c.nKvHeads * wholePageBytes("q8", c.headDim) + (13 - nCold) * hotSlotBytes(c);
      assert.equal(cache.bytes, expected, `truncated to ${n}`);
      cache.dispose();
      assert.equal(backend.attention.memory().kv, 0);
    }
  });
});
