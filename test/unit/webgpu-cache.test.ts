import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { Selection } from "../../src/attention/policy.ts";
import { GpuAttention } from "../../src/backend/webgpu/attention.ts";
import { HybridAttention } from "../../src/backend/webgpu/hybrid-attention.ts";
import { GpuPageStore } from "../../src/backend/webgpu/page-store.ts";
import { selfTest } from "../../src/backend/webgpu/self-test.ts";
import { InlayError } from "../../src/errors.ts";
import type { PageFormat } from "../../src/kv/page.ts";
import type { PagedCache } from "../../src/kv/paged-cache.ts";
import {
  ArrayTensors,
  type AttentionCase,
  attendChunk,
  makeSelection,
  type Rows,
  randomSequence,
  relativeError,
  seeded,
} from "../fixtures/attention-case.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";
import { pagedAttention } from "../reference/paged-attention.ts";

const found = await nodeDevice();
const { skip } = found;

const CASE: AttentionCase = {
  name: "cache",
  nHeads: 4,
  nKvHeads: 2,
  headDim: 16,
  format: "f32",
  chunks: [],
  blockSize: 32,
};
const SHAPE = { nLayers: 2, nHeads: 4, nKvHeads: 2, headDim: 16 };

/** The first `n` tokens of `rows`. */
function firstTokens(rows: Rows, n: number): Rows {
  const { nHeads, nKvHeads, headDim } = CASE;
  const kv = n * nKvHeads * headDim;
  return { q: rows.q.slice(0, n * nHeads * headDim), k: rows.k.slice(0, kv), v: rows.v.slice(0, kv) };
}

/** The first `n` tokens of `a`, then those of `b` from there on. */
function spliceTokens(a: Rows, b: Rows, n: number): Rows {
  const head = firstTokens(a, n);
  const join = (x: Float32Array, y: Float32Array) => Float32Array.from([...x, ...y.slice(x.length)]);
  return { q: join(head.q, b.q), k: join(head.k, b.k), v: join(head.v, b.v) };
}

describe("KV pages on WebGPU", { skip }, () => {
  if (found.skip !== false) return;
  const { device } = found;
  after(() => device.dispose());

  /** An attention object, and what feeds and checks its caches. */
  async function setUp(format: PageFormat = "f32") {
    const host = new ArrayTensors();
    const attention = await HybridAttention.create(device, host, { ...SHAPE, format }, { initialPages: 1 });
    /** Appends tokens [cache.nTokens, end) and checks their attention. */
    const feed = async (cache: PagedCache, rows: Rows, end: number) => {
      const qStart = cache.nTokens;
      const blocks = { qStart, qLen: end - qStart, blockSize: 32 };
      const selection = makeSelection(CASE, blocks, seeded(1));
      const actual = await attendChunk({ attention, host }, CASE, cache, rows, selection, blocks);
      const all = { qStart: 0, qLen: end, blockSize: 32 };
      const problem = { ...CASE, ...firstTokens(rows, end), scale: CASE.headDim ** -0.5 };
      const expected = pagedAttention({
        ...problem,
        calls: [{ blocks: all, lists: makeSelection(CASE, all, seeded(1)) }],
      });
      const width = CASE.nHeads * CASE.headDim;
      const error = relativeError(actual, expected.subarray(qStart * width), CASE.headDim);
      assert.ok(
        error <= (format === "f32" ? 1e-4 : 5e-3),
        `tokens ${qStart} to ${end}: relative error ${error}`,
      );
    };
    return { host, attention, feed };
  }

  test("a fork and its parent go separate ways inside a shared page", async () => {
    for (const format of ["f32", "f16"] as const) {
      const { attention, feed } = await setUp(format);
      const [a, b] = [randomSequence(CASE, 150, seeded(2)), randomSequence(CASE, 150, seeded(3))];
      const parent = attention.createCache();
      await feed(parent, a, 45);
      const fork = parent.fork();
      const rows = spliceTokens(a, b, 45);
      // The fork writes first: it copies the page that both hold. Then both in turns.
      await feed(fork, rows, 46);
      await feed(parent, a, 47);
      await feed(fork, rows, 100);
      await feed(parent, a, 150);
      await feed(fork, rows, 101);
      // A fork of a fork, whose parent is gone.
      const last = fork.fork();
      fork.dispose();
      await feed(last, rows, 150);
      parent.dispose();
      last.dispose();
      assert.equal(attention.memory().kv, 0);
      attention.dispose();
    }
  });

  test("truncated tokens are overwritten, on even and odd positions", async () => {
    const { attention, feed } = await setUp("f16");
    const rows = randomSequence(CASE, 120, seeded(4));
    const cache = attention.createCache();
    await feed(cache, rows, 101);
    for (const nTokens of [97, 64, 63, 33, 32, 1, 0]) {
      cache.truncate(nTokens);
      await feed(cache, rows, 120);
    }
    attention.dispose();
  });

  test("a copy made before the original is overwritten keeps the old tokens", async () => {
    const { attention, feed } = await setUp();
    const [a, b] = [randomSequence(CASE, 60, seeded(5)), randomSequence(CASE, 60, seeded(6))];
    const original = attention.createCache();
    await feed(original, a, 40);
    const fork = original.fork();
    fork.reserve(1); // the copy is asked for here, and made later
    original.truncate(33);
    await feed(original, spliceTokens(a, b, 33), 60);
    await feed(fork, a, 60);
    attention.dispose();
  });

  test("pages grow, are reused, and are counted", async () => {
    const { attention, feed } = await setUp();
    const rows = randomSequence(CASE, 300, seeded(7));
    const slotBytes = 2 * SHAPE.nLayers * SHAPE.nKvHeads * 32 * SHAPE.headDim * 4;
    const totals = [];
    for (let i = 0; i < 4; i++) {
      const cache = attention.createCache();
      for (const end of [20, 64, 65, 300]) await feed(cache, rows, end);
      assert.equal(attention.memory().kv, 10 * slotBytes);
      cache.dispose();
      const { kv, scratch } = attention.memory();
      assert.equal(kv, 0);
      totals.push(scratch);
    }
    assert.equal(totals[3], totals[2]);
    attention.dispose();
  });

  test("layers keep their own pages", async () => {
    const { host, attention } = await setUp();
    const cache = attention.createCache();
    const blocks = { qStart: 0, qLen: 40, blockSize: 32 };
    const selection = makeSelection(CASE, blocks, seeded(1));
    const layers = [randomSequence(CASE, 40, seeded(8)), randomSequence(CASE, 40, seeded(9))];
    cache.reserve(40);
    const tensors = layers.map(({ q, k, v }) => ({
      q: host.of(q, 64),
      k: host.of(k, 32),
      v: host.of(v, 32),
    }));
    const attend = (layer: number) => {
      const call = { cache, blocks, selections: [selection], scale: 0.25 };
      return attention.attend({ ...call, ...tensors[layer]!, layer });
    };
    // Both at once: calls may overlap.
    const outputs = await Promise.all([attend(0), attend(1)]);
    outputs.forEach((out, layer) => {
      const expected = pagedAttention({
        ...CASE,
        ...layers[layer]!,
        calls: [{ blocks, lists: selection }],
        scale: 0.25,
      });
      assert.ok(relativeError(host.view(out), expected, CASE.headDim) <= 1e-4);
    });
    attention.dispose();
  });

  test("a prefix and a tail selection are one softmax over both", async () => {
    const { host, attention, feed } = await setUp();
    const rows = randomSequence(CASE, 170, seeded(10));
    const cache = attention.createCache();
    await feed(cache, rows, 130);
    for (const [qLen, blockSize] of [
      [1, 1],
      [39, 16],
    ] as const) {
      const blocks = { qStart: cache.nTokens, qLen, blockSize };
      const whole = makeSelection(CASE, blocks, seeded(1));
      // Pages 0, 2, 4.. are the prefix's, which is read without a look at positions: all lie before the queries.
      const isPrefix = (page: number) => page % 2 === 0 && page < 4;
      const selections = [
        filterPages(whole, isPrefix, "prefix"),
        filterPages(whole, (p) => !isPrefix(p), "tail"),
      ];
      const slice = (all: Float32Array, width: number) =>
        host.of(all.slice(blocks.qStart * width, (blocks.qStart + qLen) * width), width);
      cache.reserve(qLen);
      const out = await attention.attend({
        layer: 0,
        q: slice(rows.q, 64),
        k: slice(rows.k, 32),
        v: slice(rows.v, 32),
        cache,
        blocks,
        selections,
        scale: 0.25,
      });
      cache.commit(qLen);
      const end = blocks.qStart + qLen;
      const all = { qStart: 0, qLen: end, blockSize: 32 };
      const expected = pagedAttention({
        ...CASE,
        ...firstTokens(rows, end),
        calls: [{ blocks: all, lists: makeSelection(CASE, all, seeded(1)) }],
        scale: 0.25,
      });
      const error = relativeError(host.view(out), expected.subarray(blocks.qStart * 64), CASE.headDim);
      assert.ok(error <= 1e-4, `relative error ${error}`);
    }
    attention.dispose();
  });

  test("an empty prefix row adds nothing", async () => {
    const { host, attention, feed } = await setUp();
    const rows = randomSequence(CASE, 50, seeded(11));
    const cache = attention.createCache();
    await feed(cache, rows, 49);
    const blocks = { qStart: 49, qLen: 1, blockSize: 1 };
    const tail = makeSelection(CASE, blocks, seeded(1));
    const call = {
      layer: 0,
      q: host.of(rows.q.slice(-64), 64),
      k: host.of(rows.k.slice(-32), 32),
      v: host.of(rows.v.slice(-32), 32),
      cache,
      blocks,
      scale: 0.25,
    };
    cache.reserve(1);
    const alone = await attention.attend({ ...call, selections: [tail] });
    const empty = filterPages(tail, () => false, "prefix");
    const both = await attention.attend({ ...call, selections: [empty, tail] });
    assert.ok(relativeError(host.view(both), host.view(alone), CASE.headDim) <= 1e-6);
    const nothing = await attention.attend({ ...call, selections: [empty] });
    assert.ok(host.view(nothing).every((x) => x === 0));
    attention.dispose();
  });

  test("scratch memory does not grow with the number of calls", async () => {
    const { host, attention, feed } = await setUp();
    const rows = randomSequence(CASE, 200, seeded(12));
    const cache = attention.createCache();
    await feed(cache, rows, 60);
    for (let n = 61; n <= 96; n++) await feed(cache, rows, n);
    const total = () => attention.memory().kv + attention.memory().scratch;
    const before = total();
    for (let n = 97; n <= 128; n++) await feed(cache, rows, n);
    assert.equal(total(), before);
    assert.equal(host.live.size, 0);
    const { uploads, readbacks } = attention.crossings;
    assert.deepEqual({ uploads, readbacks }, { uploads: 3 * 69, readbacks: 69 });
    attention.dispose();
    assert.deepEqual(attention.memory(), { kv: 0, scratch: 0 });
  });

  test("the cache ends where the device's buffers end", () => {
    const shape = { nLayers: 1, nKvHeads: 1024, headDim: 256, format: "f32" } as const;
    const store = new GpuPageStore(device, shape, 1);
    for (let i = 0; i < store.maxSlots; i++) store.allocate();
    assert.throws(
      () => store.allocate(),
      (e) =>
        e instanceof InlayError &&
        e.code === "out-of-memory" &&
        e.message.includes(`${store.maxSlots} pages`),
    );
    store.release(3);
    assert.equal(store.allocate(), 3);
    store.dispose();
  });

  test("disposing during a call rejects it and frees everything", async () => {
    const { host, attention } = await setUp();
    const cache = attention.createCache();
    const rows = randomSequence(CASE, 64, seeded(13));
    const blocks = { qStart: 0, qLen: 64, blockSize: 32 };
    const selection = makeSelection(CASE, blocks, seeded(1));
    const pending = attendChunk({ attention, host }, CASE, cache, rows, selection, blocks);
    await Promise.resolve();
    attention.dispose();
    attention.dispose();
    await assert.rejects(pending, (e) => e instanceof InlayError && e.code === "disposed");
    assert.deepEqual(attention.memory(), { kv: 0, scratch: 0 });
    const late = attendChunk({ attention, host }, CASE, cache, rows, selection, blocks);
    await assert.rejects(late, (e) => e instanceof InlayError && e.code === "disposed");
  });

  test("a result that the host cannot take leaves nothing mapped", async () => {
    const { host, attention, feed } = await setUp();
    const rows = randomSequence(CASE, 90, seeded(14));
    const cache = attention.createCache();
    await feed(cache, rows, 40);
    const create = host.create;
    host.create = () => {
      throw new InlayError("out-of-memory", "no room");
    };
    await assert.rejects(feed(cache, rows, 90), (e) => e instanceof InlayError && e.code === "out-of-memory");
    host.create = create;
    assert.equal(cache.nTokens, 40);
    await feed(cache, rows, 90);
    attention.dispose();
  });

  test("many layers in one pass and one submit", async () => {
    const nLayers = 30;
    const attention = await GpuAttention.create(device, { ...SHAPE, nLayers, format: "f32" });
    const cache = attention.createCache();
    const blocks = { qStart: 0, qLen: 40, blockSize: 16 };
    const rows = randomSequence(CASE, 40, seeded(15));
    const buffer = (words: Float32Array<ArrayBuffer>) => {
      const made = device.handle.createBuffer({ size: words.byteLength, usage: 0x80 | 0x04 | 0x08 });
      device.handle.queue.writeBuffer(made, 0, words);
      return made;
    };
    const [q, k, v] = [rows.q, rows.k, rows.v].map((x) => buffer(Float32Array.from(x)));
    const out = Array.from({ length: nLayers }, () => buffer(new Float32Array(rows.q.length)));
    // A selection of its own for every layer: more than the upload cache keeps.
    const selections = out.map((_, layer) => ({
      ...makeSelection({ ...CASE, lists: "subset" }, blocks, seeded(layer)),
      layer,
    }));
    cache.reserve(40);
    await attention.prepare();
    await device.guarded("test pass", {}, () => {
      const encoder = device.handle.createCommandEncoder();
      const pass = encoder.beginComputePass();
      out.forEach((target, layer) => {
        const call = { layer, q: q!, k: k!, v: v!, out: target, cache, blocks, scale: 0.25 };
        attention.encode(pass, { ...call, selections: [selections[layer]!] });
      });
      pass.end();
      device.handle.queue.submit([encoder.finish()]);
      attention.submitted();
    });
    cache.commit(40);
    const readable = device.handle.createBuffer({ size: rows.q.byteLength, usage: 0x01 | 0x08 });
    for (const [layer, source] of out.entries()) {
      const encoder = device.handle.createCommandEncoder();
      encoder.copyBufferToBuffer(source, 0, readable, 0, rows.q.byteLength);
      device.handle.queue.submit([encoder.finish()]);
      await readable.mapAsync(1);
      const actual = new Float32Array(readable.getMappedRange()).slice();
      readable.unmap();
      const expected = pagedAttention({
        ...CASE,
        ...rows,
        calls: [{ blocks, lists: selections[layer]! }],
        scale: 0.25,
      });
      assert.ok(relativeError(actual, expected, CASE.headDim) <= 1e-4, `layer ${layer}`);
    }
    attention.dispose();
    assert.deepEqual(attention.memory().scratch, 0);
  });

  test("the self-test passes", async () => {
    for (const format of ["f32", "f16"] as const) {
      for (const [nHeads, nKvHeads, headDim] of [
        [9, 3, 64],
        [8, 8, 16],
      ] as const) {
        const { ok, maxError } = await selfTest(device, { nLayers: 3, nHeads, nKvHeads, headDim, format });
        assert.ok(ok && maxError > 0 && maxError < 1e-4, `${format}, ${nHeads}:${nKvHeads}: ${maxError}`);
      }
    }
  });
});

/** The pages of `selection` for which `isIn` holds. */
function filterPages(
  selection: Selection,
  isIn: (page: number) => boolean,
  segment: Selection["segment"],
): Selection {
  const rowPtr = [0];
  const pages: number[] = [];
  for (let row = 1; row < selection.rowPtr.length; row++) {
    const list = selection.page.subarray(selection.rowPtr[row - 1], selection.rowPtr[row]);
    pages.push(...list.filter(isIn));
    rowPtr.push(pages.length);
  }
  return { ...selection, rowPtr: Uint32Array.from(rowPtr), page: Uint32Array.from(pages), segment };
}
