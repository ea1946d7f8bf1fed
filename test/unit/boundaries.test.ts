/** The boundary detector and the features of chunks (algorithms.md A.4, A.9, tests of A.11). */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { BoundaryDetector, MAX_CHUNK } from "../../src/attention/boundaries.ts";
import { KeyFeatures } from "../../src/attention/key-features.ts";
import { KeyNovelty } from "../../src/attention/key-novelty.ts";
import { PagedCache, SlotPool, type SlotStore } from "../../src/kv/paged-cache.ts";
import { poolRows } from "../fixtures/policy-case.ts";
import { normals, uniform } from "../fixtures/random.ts";

const N_KV_HEADS = 2;
const HEAD_DIM = 16;
const WIDTH = N_KV_HEADS * HEAD_DIM;

/** Keys of a text with topics: a direction per topic, a constant all share, and noise. Returns where topics begin. */
function topicalKeys(nTokens: number, seed: number): { keys: Float32Array; starts: number[] } {
  const next = uniform(seed);
  const keys = normals(nTokens * WIDTH, seed, 0.5);
  const constant = normals(WIDTH, seed + 1, 10);
  const starts: number[] = [];
  for (let t = 0; t < nTokens; ) {
    const topic = normals(WIDTH, seed + 100 + t, 2);
    const end = Math.min(nTokens, t + 20 + Math.floor(next() * 30));
    starts.push(t);
    for (; t < end; t++) for (let c = 0; c < WIDTH; c++) keys[t * WIDTH + c]! += topic[c]! + constant[c]!;
  }
  return { keys, starts };
}

function detect(keys: Float32Array, parts: readonly number[], granule: number): BoundaryDetector {
  const detector = new BoundaryDetector(N_KV_HEADS * HEAD_DIM, granule, new KeyNovelty(N_KV_HEADS, HEAD_DIM));
  let from = 0;
  for (const n of parts) {
    detector.append(keys.subarray(from * WIDTH, (from + n) * WIDTH));
    from += n;
  }
  return detector;
}

describe("boundaries", () => {
  for (const granule of [1, 8, 32])
    test(`are ascending multiples of ${granule}, at most ${MAX_CHUNK} and at least 9 apart`, () => {
      for (const seed of [1, 2, 3])
        for (const keys of [topicalKeys(3000, seed).keys, normals(3000 * WIDTH, seed)]) {
          const { ends, knownAt, lookahead } = detect(keys, [3000], granule);
          for (const [c, end] of ends.entries()) {
            const from = ends[c - 1] ?? 0;
            assert.equal(end % granule, 0);
            assert.ok(end - from <= MAX_CHUNK, `chunk [${from}, ${end})`);
            if (c > 0) assert.ok(end - from >= (granule === 1 ? 9 : granule), `chunk [${from}, ${end})`);
            assert.ok(end <= knownAt[c]! && knownAt[c]! <= end + MAX_CHUNK + 2 * lookahead);
            assert.ok(c === 0 || knownAt[c]! >= knownAt[c - 1]!);
            assert.ok(c < Math.ceil(knownAt[c]! / 16), "chunks have 16 tokens on average");
          }
          assert.ok(3000 - ends.at(-1)! <= MAX_CHUNK + 2 * lookahead, "the tail is short");
        }
    });

  test("are found where topics change, in spite of a large constant", () => {
    const { keys, starts } = topicalKeys(3000, 7);
    const { ends } = detect(keys, [3000], 1);
    const inside = starts.filter((t) => t >= 16 && t < 2960);
    const found = inside.filter((t) => ends.some((end) => Math.abs(end - t) <= 2));
    assert.ok(found.length >= 0.9 * inside.length, `${found.length} of ${inside.length} topics`);
  });

  test("of a text in parts are those of the whole", () => {
    const { keys } = topicalKeys(2000, 5);
    const whole = detect(keys, [2000], 8);
    for (const parts of [[512, 512, 512, 464], [1, 2, 3, 994, 1000], new Array<number>(400).fill(5)]) {
      const { ends, knownAt } = detect(keys, parts, 8);
      assert.deepEqual([ends, knownAt], [whole.ends, whole.knownAt]);
    }
  });

  test("after truncating, and in a fork, are those of the shorter text", () => {
    const { keys } = topicalKeys(1000, 6);
    const detector = detect(keys, [1000], 8);
    const fork = detector.fork();
    detector.truncate(333);
    assert.deepEqual(detector.ends, detect(keys, [333], 8).ends);
    detector.append(keys.subarray(333 * WIDTH));
    assert.deepEqual(detector.ends, fork.ends);
  });

  test("constant keys have none but those that length forces", () => {
    const { ends } = detect(new Float32Array(1000 * WIDTH).fill(1), [1000], 1);
    assert.deepEqual(ends.slice(0, 3), [64, 128, 192]);
  });
});

describe("chunk features", () => {
  const features = (granule: number, boundaryLayer?: number) =>
    new KeyFeatures({ nLayers: 2, nKvHeads: N_KV_HEADS, headDim: HEAD_DIM, granule, boundaryLayer });
  const feed = (f: KeyFeatures, keys: Float32Array, from: number, to: number) => {
    const part = keys.subarray(from * WIDTH, to * WIDTH);
    f.appendBoundaryKeys(part);
    for (const layer of [0, 1]) f.append(layer, to - from, (ends, sums) => poolRows(part, WIDTH, ends, sums));
  };

  test("are sums over sqrt(length), whatever the parts", () => {
    const { keys } = topicalKeys(700, 3);
    for (const granule of [8, 32])
      for (const parts of [[700], [100, 1, 1, 598], new Array<number>(70).fill(10)]) {
        const f = features(granule, 0);
        let at = 0;
        for (const n of parts) {
          feed(f, keys, at, at + n);
          at += n;
        }
        const { ends } = f.chunks(0);
        const actual = f.chunkFeatures(0);
        assert.ok(ends.length > 8);
        for (const [c, end] of ends.entries()) {
          const from = ends[c - 1] ?? 0;
          for (let i = 0; i < WIDTH; i++) {
            let sum = 0;
            for (let t = from; t < end; t++) sum += keys[t * WIDTH + i]!;
            const expected = sum / Math.sqrt(end - from);
            assert.ok(Math.abs(actual[c * WIDTH + i]! - expected) < 1e-3, `chunk ${c}: ${expected}`);
          }
        }
      }
  });

  test("of a constant chunk grow with the square root of its length", () => {
    const keys = new Float32Array(128 * WIDTH).fill(0.5);
    const f = features(32);
    feed(f, keys, 0, 128);
    const short = f.chunkFeatures(0)[0]!;
    const long = 0.5 * Math.sqrt(64);
    assert.ok(Math.abs(long / short - Math.SQRT2) < 1e-6);
  });

  test("layers before the boundary layer have fixed chunks", () => {
    const { keys } = topicalKeys(300, 3);
    const f = features(8, 1);
    feed(f, keys, 0, 300);
    assert.deepEqual(f.chunks(0).ends, [32, 64, 96, 128, 160, 192, 224, 256, 288]);
    assert.notDeepEqual(f.chunks(1).ends, f.chunks(0).ends);
  });

  test("follow the cache: a failed call, a fork, a shorter prefix", () => {
    let slots = 0;
    // No page is read or written here.
    const store: SlotStore = {
      slotBytes: 1,
      format: "f32",
      allocate: () => slots++,
      release: () => {},
      copy: () => {},
      layerBytes: () => 0,
      read: () => new Uint8Array(),
      write: () => {},
    };
    const cache = new PagedCache(new SlotPool(store));
    const { keys } = topicalKeys(600, 9);
    const f = features(8, 0);
    cache.attach(f);
    const run = (c: PagedCache, from: number, to: number, commits = true) => {
      c.reserve(to - from);
      feed(c.companion(KeyFeatures)!, keys, from, to);
      if (commits) c.commit(to - from);
      else c.truncate(from);
    };
    const fresh = (n: number) => {
      const g = features(8, 0);
      feed(g, keys, 0, n);
      return [g.chunks(0).ends, [...g.chunkFeatures(1)], [...g.granuleSums(1)]];
    };
    const state = (c: PagedCache) => {
      const g = c.companion(KeyFeatures)!;
      return [g.chunks(0).ends, [...g.chunkFeatures(1)], [...g.granuleSums(1)]];
    };
    run(cache, 0, 203);
    run(cache, 203, 400, false);
    assert.equal(cache.nTokens, 203, "a failed call leaves exactly what was committed");
    assert.deepEqual(state(cache), fresh(203));
    run(cache, 203, 500);
    assert.deepEqual(state(cache), fresh(500));
    const fork = cache.fork();
    fork.truncate(333);
    assert.equal(fork.nTokens, 328, "whole granules");
    assert.deepEqual(state(fork), fresh(328));
    run(fork, 328, 600);
    assert.deepEqual(state(fork), fresh(600));
    assert.deepEqual(state(cache), fresh(500));
  });
});
