/** Clustering keys and scoring clusters in WASM, beside f64 references. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  type ClusterIndex,
  coarseEntries,
  entryCounts,
  SINK_ENTRIES,
} from "../../src/attention/cluster-index.ts";
import { WasmClusterScorer } from "../../src/backend/wasm/cluster-scorer.ts";
import { KeyClusters, type KeyClustersResult } from "../../src/backend/wasm/key-clusters.ts";
import type { WasmVariant } from "../../src/backend/wasm/variant.ts";
import { assertClose } from "../fixtures/close.ts";
import { normals, uniform } from "../fixtures/random.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { clusterScores, meanCosine, sphericalKMeans } from "../reference/clustering.ts";

type Rows = Float32Array<ArrayBuffer>;

/** f32 pages of one KV head: K (dim, 32), then V (32, dim). */
function pagesOf(k: Rows, v: Rows, dim: number): Uint8Array<ArrayBuffer> {
  const pages = new Float32Array(2 * k.length);
  for (let t = 0; t < k.length / dim; t++)
    for (let c = 0; c < dim; c++) {
      const page = Math.floor(t / 32) * 64 * dim;
      pages[page + c * 32 + (t % 32)] = k[t * dim + c]!;
      pages[page + 32 * dim + (t % 32) * dim + c] = v[t * dim + c]!;
    }
  return new Uint8Array(pages.buffer);
}

async function sort(
  variant: WasmVariant,
  keys: Rows,
  dim: number,
  nFine: number,
  nCoarse = Math.ceil(nFine / 5),
) {
  const values = Float32Array.from(keys, (_, i) => i);
  const pages = pagesOf(keys, values, dim);
  const clusters = new KeyClusters(await instantiate(variant), dim);
  const result = clusters.sort(pages, { nFine, nCoarse, passes: 10 });
  return { pages, values, ...result };
}

/** What holds of every clustering. */
function assertPartition(
  { order, ends, coarseEnds, means, spreads }: KeyClustersResult,
  keys: Rows,
  dim: number,
): void {
  const n = keys.length / dim;
  assert.deepEqual(
    [...order].sort((a, b) => a - b),
    Array.from({ length: n }, (_, i) => i),
    "each key once",
  );
  assert.equal(ends.at(-1), n);
  assert.equal(coarseEnds.at(-1), ends.length);
  for (const [i, end] of coarseEnds.entries())
    assert.ok(end > (coarseEnds[i - 1] ?? 0), `coarse cluster ${i} is empty`);
  for (const [c, end] of ends.entries()) {
    const members = order.subarray(ends[c - 1] ?? 0, end);
    assert.ok(members.length > 0, `cluster ${c} is empty`);
    for (let i = 1; i < members.length; i++)
      assert.ok(members[i]! > members[i - 1]!, `cluster ${c} is not sorted`);
    const mean = new Float64Array(dim);
    for (const key of members)
      for (let d = 0; d < dim; d++) mean[d]! += keys[key * dim + d]! / members.length;
    const most = keys.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
    assertClose(means.subarray(c * dim, (c + 1) * dim), mean, 1e-30 + 1e-5 * most, `mean of cluster ${c}`);
    let spread = 0;
    for (const key of members)
      for (let d = 0; d < dim; d++) spread += (keys[key * dim + d]! - mean[d]!) ** 2 / (members.length * dim);
    assertClose([spreads[c]!], [spread], 1e-30 + 1e-5 * most ** 2, `spread of cluster ${c}`);
  }
}

function labelsOf({ order, ends }: KeyClustersResult): number[] {
  const labels = new Array<number>(order.length);
  for (const [c, end] of ends.entries())
    for (const key of order.subarray(ends[c - 1] ?? 0, end)) labels[key] = c;
  return labels;
}

for (const variant of SINGLE_THREAD_VARIANTS)
  describe(`clusters, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const { n, dim, nFine } of [
      { n: 32, dim: 8, nFine: 1 },
      { n: 32, dim: 64, nFine: 32 },
      { n: 96, dim: 24, nFine: 9 },
      { n: 1024, dim: 64, nFine: 51 },
    ])
      test(`${n} keys of ${dim} in about ${nFine} clusters: a partition, and as good as flat K-means`, async () => {
        const keys = normals(n * dim, n);
        const made = await sort(variant, keys, dim, nFine);
        assertPartition(made, keys, dim);
        const flat = meanCosine(keys, dim, sphericalKMeans(keys, dim, made.ends.length, 10));
        const own = meanCosine(keys, dim, labelsOf(made));
        assert.ok(own >= 0.9 * flat - 1e-6, `mean cosine ${own}, flat K-means has ${flat}`);
      });

    test("pages hold their tokens in the clusters' order, keys and values alike", async () => {
      const keys = normals(64 * 16, 1);
      const { pages, values, order } = await sort(variant, keys, 16, 7);
      const sorted = (rows: Rows) =>
        Float32Array.from(order).reduce((out, key, i) => {
          out.set(rows.subarray(key * 16, (key + 1) * 16), i * 16);
          return out;
        }, new Float32Array(rows.length));
      assert.deepEqual(pages, pagesOf(sorted(keys), sorted(values), 16));
    });

    test("planted clusters are found, and the result is the same every time", async () => {
      const next = uniform(3);
      const topics = Array.from({ length: 12 }, (_, i) => normals(32, 100 + i));
      const planted = Array.from({ length: 512 }, () => Math.floor(next() * 12));
      const noise = normals(512 * 32, 5, 0.02);
      const keys = Float32Array.from(
        noise,
        (x, i) => topics[planted[Math.floor(i / 32)]!]![i % 32]! * (1 + next()) + x,
      );
      const made = await sort(variant, keys, 32, 24, 12);
      assertPartition(made, keys, 32);
      for (const [c, end] of made.ends.entries()) {
        const members = made.order.subarray(made.ends[c - 1] ?? 0, end);
        assert.equal(
          new Set(Array.from(members, (key) => planted[key])).size,
          1,
          `cluster ${c} mixes topics`,
        );
      }
      assert.deepEqual(await sort(variant, keys, 32, 24, 12), made);
    });

    test("equal keys, and keys of zeros, are split by number", async () => {
      for (const value of [0, 1]) {
        const keys = new Float32Array(640 * 8).fill(value);
        const made = await sort(variant, keys, 8, 64);
        assertPartition(made, keys, 8);
        for (const [c, end] of made.ends.entries())
          assert.ok(end - (made.ends[c - 1] ?? 0) <= 80, `cluster ${c}`);
      }
    });

    test("a cluster of 60 % of the keys is split", async () => {
      const topic = normals(16, 1);
      const noise = normals(640 * 16, 2);
      const keys = Float32Array.from(noise, (x, i) => (i < 384 * 16 ? 10 * topic[i % 16]! + 0.1 * x : x));
      const made = await sort(variant, keys, 16, 64, 16);
      assertPartition(made, keys, 16);
      for (const [c, end] of made.ends.entries())
        assert.ok(end - (made.ends[c - 1] ?? 0) <= 80, `cluster ${c}`);
    });

    for (const { name, scaleQ, blockSize, softcap } of [
      { name: "ordinary logits, one query a block", scaleQ: 1, blockSize: 1 },
      { name: "blocks of 8, the last shorter", scaleQ: 1, blockSize: 8 },
      { name: "logits of ±1000", scaleQ: 300, blockSize: 3 },
      { name: "soft-capped", scaleQ: 5, blockSize: 2, softcap: 20 },
    ])
      test(`scores equal f64: ${name}`, async () => {
        const { index, counts, centroids, spreads } = madeUpIndex(41);
        const shape = { nHeads: 6, nKvHeads: 2, headDim: 16 };
        const blocks = { qStart: 2000, qLen: 11, blockSize };
        const q = normals(11 * 6 * 16, 9, scaleQ);
        const scorer = new WasmClusterScorer(await instantiate(variant), index);
        const { sigma, stride, starts } = scorer.fine(0, { q, shape, blocks, scale: 0.25, softcap })!;
        const expected = clusterScores({
          q,
          centroids,
          spreads,
          counts,
          ...shape,
          blockSize,
          scale: 0.25,
          softcap,
        });
        for (const [b, heads] of expected.entries())
          for (const [h, mean] of heads.entries()) {
            const at = b * stride + starts[h]!;
            const own = sigma.subarray(at, at + mean.length);
            // A logit of 1000 has 24 bits: its last is 6e-5, and so is the relative error of its exponential.
            assertClose(own, mean, (e) => 1e-6 + 2e-4 * Math.abs(mean[e]!), `block ${b}, head ${h}`);
            const total = own.reduce((sum, s, e) => sum + s * counts[h]![e]!, 0);
            assert.ok(Math.abs(total - 1) < 1e-5, `the probabilities of head ${h} add up to ${total}`);
          }
        scorer.dispose();
      });

    test("the same constant on all logits changes nothing", async () => {
      const { index } = madeUpIndex(17);
      const shape = { nHeads: 2, nKvHeads: 2, headDim: 16 };
      const blocks = { qStart: 0, qLen: 1, blockSize: 1 };
      // Every centroid gets the same number in the one channel that shifts.
      const shifted: ClusterIndex = {
        ...index,
        layers: [
          index.layers[0]!.map((head) => ({
            ...head,
            centroids: head.centroids.map((x, i) => (i % 16 === 0 ? 1 : x)),
            // The shift makes queries longer, which would make wide clusters likelier.
            spreads: head.spreads.fill(0),
          })),
        ],
      };
      const q = normals(32, 4);
      const at = async (shift: number) => {
        q[0] = q[16] = shift;
        const scorer = new WasmClusterScorer(await instantiate(variant), shifted);
        return scorer.fine(0, { q, shape, blocks, scale: 1 })!.sigma;
      };
      const plain = await at(0);
      assertClose(await at(64), plain, (i) => 1e-7 + 1e-4 * plain[i]!, "shifted by 64");
    });

    test("two levels: nothing but members of coarse clusters above the threshold; all of them at -Infinity", async () => {
      const { index, counts } = madeUpIndex(41);
      const shape = { nHeads: 6, nKvHeads: 2, headDim: 16 };
      const blocks = { qStart: 0, qLen: 5, blockSize: 2 };
      const queries = { q: normals(5 * 96, 11), shape, blocks, scale: 0.25 };
      const scorer = new WasmClusterScorer(await instantiate(variant), index);
      const fine = scorer.fine(0, queries)!;
      assert.deepEqual(scorer.twoLevel(0, queries, -Infinity)!.sigma, fine.sigma);
      const coarse = scorer.coarse(0, queries)!;
      const threshold = 0.002;
      const both = scorer.twoLevel(0, queries, threshold)!;
      for (let b = 0; b < 3; b++)
        for (const [h, { coarseEnds }] of index.layers[0]!.entries()) {
          let total = 0;
          for (const [e, n] of counts[h]!.entries()) {
            const sigma = both.sigma[b * both.stride + both.starts[h]! + e]!;
            total += n * sigma;
            if (e < SINK_ENTRIES) continue;
            const parent = coarseEnds.findIndex((end) => e - SINK_ENTRIES < end);
            const isKept =
              coarse.sigma[b * coarse.stride + coarse.starts[h]! + SINK_ENTRIES + parent]! > threshold;
            assert.equal(sigma > 0, isKept, `block ${b}, head ${h}, entry ${e}`);
          }
          assert.ok(Math.abs(total - 1) < 1e-5);
        }
      scorer.dispose();
    });
  });

/** One layer of two KV heads of 16 channels, with different numbers of clusters. */
function madeUpIndex(nClusters: number): {
  index: ClusterIndex;
  counts: Float32Array[];
  centroids: Float32Array[];
  spreads: Float32Array[];
} {
  const layer = [nClusters, nClusters + 30].map((n, h) => {
    const nEntries = SINK_ENTRIES + n;
    let end = 0;
    const ends = Uint32Array.from(
      { length: nEntries },
      (_, e) => (end += e < SINK_ENTRIES ? 1 : 1 + ((e * 7 + h) % 5)),
    );
    const coarseEnds = Uint32Array.from({ length: Math.ceil(n / 4) }, (_, i) => Math.min(n, 4 * (i + 1)));
    const spread = uniform(30 + h);
    const spreads = Float32Array.from({ length: nEntries }, (_, e) => (e < SINK_ENTRIES ? 0 : 2 * spread()));
    return { ends, coarseEnds, centroids: normals(nEntries * 16, 20 + h), spreads };
  });
  assert.equal(
    coarseEntries(layer[0]!, 16).ends.at(-1),
    layer[0]!.ends.at(-1),
    "the coarse level covers all slots",
  );
  const index = { headDim: 16, clusteredEnd: 0, layers: [layer] };
  return {
    index,
    counts: layer.map(entryCounts),
    centroids: layer.map(({ centroids }) => centroids),
    spreads: layer.map(({ spreads }) => spreads),
  };
}
