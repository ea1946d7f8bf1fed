/**
 * Caches whose quantized pages have 2 bits in some heads and 4 in others. A head's attention does not depend on the other
 * heads, so that of a mixed cache is, head by head, to the last bit that of a cache with 2 bits or with 4.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { PageConverter } from "../../src/backend/wasm/page-converter.ts";
import { WasmAttention } from "../../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { type ColdFormat, headFormats, layerPageBytes, MixedFormat } from "../../src/kv/mixed-format.ts";
import { pageBytes } from "../../src/kv/page.ts";
import type { PagedCache } from "../../src/kv/paged-cache.ts";
import { SINK_PAGES, settledPages, wholePageBytes } from "../../src/kv/quantize.ts";
import { convertLayer, LayerPages } from "../../src/prompts/layer-pages.ts";
import {
  type AttentionCase,
  makeSelection,
  type Rows,
  randomSequence,
  seeded,
} from "../fixtures/attention-case.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";

const N_LAYERS = 3;
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
/** Heads of layers 0 to 2. */
const MIXES = [[1], [0, 3], [2, 3, 4], [0, 1, 2, 3, 4, 5]];

interface Setup {
  readonly c: AttentionCase;
  readonly ops: WasmOps;
  readonly attention: WasmAttention;
  /** Of each layer. */
  readonly layers: readonly Rows[];
}

async function open(c: AttentionCase, variant: (typeof SINGLE_THREAD_VARIANTS)[number] = "simd") {
  const ops = new WasmOps(await instantiate(variant));
  const { nHeads, nKvHeads, headDim, format } = c;
  const attention = new WasmAttention(ops, { nLayers: N_LAYERS, nHeads, nKvHeads, headDim, format });
  const layers = Array.from({ length: N_LAYERS }, (_, layer) => randomSequence(c, 1000, seeded(5 + layer)));
  return { c, ops, attention, layers } satisfies Setup;
}

/** Feeds `n` tokens to all layers; the attended rows of each. */
function feed({ c, ops, attention, layers }: Setup, cache: PagedCache, n: number): Float32Array[] {
  const blocks = { qStart: cache.nTokens, qLen: n, blockSize: n === 1 ? 1 : c.blockSize };
  const selection = makeSelection(c, blocks, seeded(1));
  cache.reserve(n);
  const rows = layers.map((all, layer) => {
    const tensor = (x: Float32Array, heads: number) => {
      const width = heads * c.headDim;
      const made = ops.heap.create(n, width);
      made.view.set(x.subarray(blocks.qStart * width, (blocks.qStart + n) * width));
      return made;
    };
    using q = tensor(all.q, c.nHeads);
    using k = tensor(all.k, c.nKvHeads);
    using v = tensor(all.v, c.nKvHeads);
    const scale = c.headDim ** -0.5;
    const selections = [{ ...selection, layer }];
    const { softcap, window } = c;
    using out = attention.attend({ layer, q, k, v, cache, blocks, selections, scale, softcap, window });
    return ops.heap.view(out).slice();
  });
  cache.commit(n);
  return rows;
}

/** A cache of `n` tokens, coded. */
function coded(setup: Setup, n: number, format: ColdFormat): PagedCache {
  const cache = setup.attention.createCache();
  for (let left = n; left > 0; left -= 100) feed(setup, cache, Math.min(100, left));
  cache.quantize(format);
  return cache;
}

/** Of each layer the rows of the caches that each KV head is coded as. */
function expected({ c }: Setup, mixed: MixedFormat, of: Readonly<Record<"q2" | "q4", Float32Array[]>>) {
  const group = c.nHeads / c.nKvHeads;
  return of.q2.map((narrow, layer) =>
    narrow.map((_, i) => {
      const kvHead = Math.floor((Math.floor(i / c.headDim) % c.nHeads) / group);
      return of[mixed.formatOf(layer * c.nKvHeads + kvHead)][layer]![i]!;
    }),
  );
}

const SHAPES: readonly Partial<AttentionCase>[] = [
  {},
  { headDim: 8, nHeads: 8, nKvHeads: 4 },
  { headDim: 64, nHeads: 9, nKvHeads: 3 },
  { headDim: 80, nHeads: 2, nKvHeads: 1 },
  { headDim: 128, lists: "dense" },
  { window: 190 },
  { softcap: 5 },
  { format: "f16" },
];

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`attention over mixed pages, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const shape of SHAPES)
      for (const [before, n] of [
        [200, 1], // the exact kernel, which takes over from the flash kernel below 256 keys
        [333, 1],
        [400, 40],
      ] as const)
        test(`${JSON.stringify(shape)}, ${n} after ${before} tokens`, async () => {
          const setup = await open({ ...BASE, ...shape }, variant);
          const [q2, q4] = (["q2", "q4"] as const).map((format) =>
            feed(setup, coded(setup, before, format), n),
          );
          const of = { q2: q2!, q4: q4! };
          assert.notDeepEqual(of.q2, of.q4);
          for (const wide of MIXES.map((heads) => heads.filter((h) => h < N_LAYERS * setup.c.nKvHeads))) {
            const mixed = new MixedFormat(wide);
            const actual = feed(setup, coded(setup, before, mixed), n);
            assert.deepEqual(actual, expected(setup, mixed, of), `wide heads ${wide}`);
          }
        });
  });

describe("a cache of mixed pages", () => {
  const mixed = new MixedFormat([0, 3]);
  const hotBytes = N_LAYERS * BASE.nKvHeads * 2 * pageBytes("f32", 16);
  /** With the table that says where heads lie, in whole 16 bytes. */
  const mixedBytes = 32 + 2 * wholePageBytes("q4", 16) + 4 * wholePageBytes("q2", 16);

  test("takes 4 bits for the wide heads only", async () => {
    const setup = await open(BASE);
    const cache = coded(setup, 400, mixed);
    const nCold = settledPages(400) - SINK_PAGES;
    assert.equal(cache.bytes, (13 - nCold) * hotBytes + nCold * mixedBytes);
    assert.equal(setup.attention.memory().kv, cache.bytes);
    cache.dispose();
    assert.equal(setup.attention.memory().kv, 0);
  });

  test("its pages are those of the codec, head by head, and can be written back", async () => {
    const setup = await open(BASE);
    const hot = setup.attention.createCache();
    for (let i = 0; i < 4; i++) feed(setup, hot, 100);
    const cold = hot.fork();
    cold.quantize(mixed);
    const converter = new PageConverter(setup.ops.wasm, 16);
    const to = settledPages(400);
    const copy = setup.attention.createCache();
    copy.reserveCoded(400, new MixedFormat([0, 3]));
    for (let layer = 0; layer < N_LAYERS; layer++) {
      const formats = headFormats(mixed, layer, 2);
      const pages = await cold.readPages(layer, 1, to);
      assert.equal(pages.byteLength, (to - 1) * layerPageBytes(mixed, layer, BASE));
      const exact = await hot.readPages(layer, 1, to);
      assert.deepEqual(convertLayer(converter, 16, exact, ["f32", "f32"], formats), pages);
      for (const head of [0, 1]) {
        const own = new LayerPages(exact, ["f32", "f32"], 16).gather(head);
        const alone = converter.convert(own, "f32", formats[head]!);
        assert.deepEqual(new LayerPages(pages, formats, 16).gather(head), alone);
      }
      await copy.writePages(layer, 0, 1, await cold.readPages(layer, 0, 1));
      await copy.writePages(layer, 1, to, pages);
      await copy.writePages(layer, to, 13, await cold.readPages(layer, to, 13));
    }
    copy.commit(400);
    assert.deepEqual(feed(setup, copy, 3), feed(setup, cold, 3));
  });

  test("forks share its pages, also those that they code in the same way later", async () => {
    const setup = await open(BASE);
    const cache = setup.attention.createCache();
    for (let i = 0; i < 3; i++) feed(setup, cache, 100);
    const fork = cache.fork();
    cache.quantize(mixed);
    fork.quantize(new MixedFormat([0, 3]));
    assert.deepEqual(fork.slots, cache.slots);
    const other = cache.fork();
    other.quantize(new MixedFormat([1]));
    assert.deepEqual(other.slots, cache.slots, "what is coded stays as it is");
    assert.equal(setup.attention.memory().kv, cache.bytes);
    feed(setup, other, 100);
    other.quantize(new MixedFormat([1]));
    feed(setup, cache, 100);
    assert.notDeepEqual(
      feed(setup, other, 1),
      feed(setup, cache, 1),
      "pages of two mixed formats in one call",
    );
    for (const each of [cache, fork, other]) each.dispose();
    assert.equal(setup.attention.memory().kv, 0);
  });

  test("a cut page is decoded, written on, and coded again; a fork sees nothing of it", async () => {
    const setup = await open(BASE);
    const cache = coded(setup, 400, mixed);
    const untouched = cache.fork();
    cache.truncate(110);
    const held = cache.slots[3]!;
    const narrow = coded(setup, 400, "q2");
    const wide = coded(setup, 400, "q4");
    for (const other of [narrow, wide]) other.truncate(110);
    const [actual, q2, q4] = [cache, narrow, wide].map((each) => feed(setup, each, 30));
    assert.notEqual(cache.slots[3], held, "a private, writable copy");
    assert.deepEqual(actual, expected(setup, mixed, { q2: q2!, q4: q4! }));
    for (let left = 260; left > 0; left -= 100) feed(setup, cache, Math.min(100, left));
    cache.quantize(mixed);
    assert.equal(cache.bytes, untouched.bytes);
    assert.deepEqual(feed(setup, untouched, 1), feed(setup, coded(setup, 400, mixed), 1));
  });

  test("a value that is not finite is named by layer, head and page, and nothing is kept of the page", async () => {
    const setup = await open(BASE);
    const cache = setup.attention.createCache();
    // Token 70 is in page 2; element 20 belongs to KV head 1.
    setup.layers[2]!.v[70 * 32 + 20] = Number.NaN;
    for (let i = 0; i < 4; i++) feed(setup, cache, 100);
    const before = setup.attention.memory().kv;
    assert.throws(() => cache.quantize(mixed), {
      code: "invalid-model",
      message: /the values of layer 2, KV head 1 are not finite in page 2 \(tokens 64 to 95\)/,
    });
    // Page 1 was coded before.
    assert.equal(setup.attention.memory().kv, before - hotBytes + mixedBytes);
    cache.dispose();
    assert.equal(setup.attention.memory().kv, 0);
  });
});
