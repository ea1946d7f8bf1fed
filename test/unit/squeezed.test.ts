/** Squeezed Attention on a real cache: clustered pages, calibrated thresholds, and what the policy selects (algorithms.md B.8). */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Calibration } from "../../src/attention/calibration.ts";
import { type ClusterIndex, entryCounts, SINK_ENTRIES } from "../../src/attention/cluster-index.ts";
import { DensePolicy } from "../../src/attention/dense.ts";
import { assertSelection } from "../../src/attention/invariants.ts";
import type { QueryBlocks, Selection } from "../../src/attention/policy.ts";
import {
  leastRead,
  SQUEEZED_BUDGET,
  type SqueezedOptions,
  SqueezedPolicy,
} from "../../src/attention/squeezed.ts";
import { WasmClusterScorer } from "../../src/backend/wasm/cluster-scorer.ts";
import { PageConverter } from "../../src/backend/wasm/page-converter.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { Checkpoint } from "../../src/engine/yielding.ts";
import { InlayError } from "../../src/errors.ts";
import { type ColdFormat, headFormats, MixedFormat } from "../../src/kv/mixed-format.ts";
import { settledPages } from "../../src/kv/quantize.ts";
import { convertLayer } from "../../src/prompts/layer-pages.ts";
import { type Squeezed, type SqueezeRequest, Squeezer } from "../../src/prompts/squeeze.ts";
import { clusteredEnd } from "../../src/prompts/squeezed-info.ts";
import { decodeClusters } from "../../src/prompts/squeezed-records.ts";
import { CALIBRATION_TOKENS } from "../../src/prompts/window-queries.ts";
import {
  type AttentionCase,
  attendChunk,
  openWasm,
  type Rows,
  randomSequence,
  relativeError,
  seeded,
} from "../fixtures/attention-case.ts";
import { BASE } from "../fixtures/attention-table.ts";
import { tokensRead } from "../fixtures/policy-case.ts";
import { cannotRun, instantiate } from "../fixtures/wasm.ts";
import { attentionProbabilities } from "../reference/attention-probabilities.ts";

/** The prompt ends inside a page. */
const PROMPT = 650;
const TOTAL = PROMPT + 40;
const CASE: AttentionCase = {
  ...BASE,
  name: "squeezed",
  nHeads: 6,
  nKvHeads: 2,
  headDim: 16,
  format: "f32",
  chunks: [],
};
const SHAPE = { nLayers: 1, nHeads: 6, nKvHeads: 2, headDim: 16, window: [undefined] };
const SCALE = 16 ** -0.5;
/** Keys that are neither sinks nor in the window. */
const CLUSTERED = clusteredEnd(PROMPT) - SINK_ENTRIES;
const isClustered = (token: number) => token >= SINK_ENTRIES && token < SINK_ENTRIES + CLUSTERED;
/** KV head 0 has 2 bits, KV head 1 has 4. */
const MIXED = new MixedFormat([1]);
const nameOf = (format: ColdFormat | undefined) =>
  format instanceof MixedFormat ? "mixed" : (format ?? "f32");
const HALF: SqueezeRequest = { sparsity: 0.5, maxMissing: 1 };

const variant = cannotRun("relaxed") ? "simd" : "relaxed";

/** A cache of the first PROMPT tokens, and what clusters it. */
async function prefilled(rows: Rows, format: "f32" | "f16" = "f32") {
  const ops = new WasmOps(await instantiate(variant));
  const backend = openWasm(ops, { ...CASE, format });
  const cache = backend.attention.createCache();
  const dense = new DensePolicy(SHAPE);
  const attend = (
    qLen: number,
    blockSize: number,
    select = (blocks: QueryBlocks) => dense.select(0, blocks, SQUEEZED_BUDGET),
  ) => {
    const blocks = { qStart: cache.nTokens, qLen, blockSize };
    return attendChunk(backend, CASE, cache, rows, select(blocks)[0]!, blocks);
  };
  while (cache.nTokens < PROMPT) await attend(Math.min(128, PROMPT - cache.nTokens), 32);
  const pages = new PageConverter(ops.wasm, CASE.headDim);
  const squeezer = new Squeezer(SHAPE, SCALE, ops.wasm, pages);
  const { before, queries } = squeezer.watch(PROMPT);
  const blocks = { qStart: before, qLen: CALIBRATION_TOKENS, blockSize: 32 };
  const width = CASE.nHeads * CASE.headDim;
  const q = rows.q.subarray(before * width, PROMPT * width);
  queries.observe({ layer: 0, q, k: q, blocks, selections: [] });
  const squeeze = async (request = HALF): Promise<Squeezed> => {
    const steps = squeezer.squeeze(cache, request, queries, new Checkpoint(undefined));
    for (;;) {
      const step = await steps.next();
      if (step.done) return step.value;
    }
  };
  return { ops, cache, attend, pages, squeezer, queries, squeeze, windowQ: q };
}

/** Queries [PROMPT, PROMPT + qLen) of `rows`. */
function laterQueries(rows: Rows, qLen: number, blockSize: number) {
  const width = CASE.nHeads * CASE.headDim;
  const q = rows.q.subarray(PROMPT * width, (PROMPT + qLen) * width);
  return { q, shape: SHAPE, blocks: { qStart: PROMPT, qLen, blockSize }, scale: SCALE };
}

function indexOf({ info, records }: Squeezed, pages: PageConverter): ClusterIndex {
  const layers = [decodeClusters(records[0]!, info.layers[0]!, { nTokens: PROMPT, headDim: 16 }, pages)];
  return { headDim: 16, clusteredEnd: clusteredEnd(PROMPT), layers };
}

const policyOf = (index: ClusterIndex, threshold: number, rest: Partial<SqueezedOptions> = {}) =>
  new SqueezedPolicy(SHAPE, index, {
    thresholds: { query: threshold, block: threshold },
    maxMissing: 1,
    leastRead: 0,
    ...rest,
  });

describe("squeezed attention", () => {
  const rows = randomSequence(CASE, TOTAL, seeded(3));

  for (const cold of [undefined, "q8", "q4", "q2", MIXED] as const)
    test(`with a threshold of -Infinity equals dense attention, ${cold ? `${nameOf(cold)} pages` : "of the unsorted prompt"}`, async () => {
      for (const [qLen, blockSize] of [
        [1, 1],
        [19, 8],
      ] as const) {
        const reference = await prefilled(rows);
        // Quantized, tokens share ranges with the others of their page: those of the sorted prompt are others.
        if (cold) await reference.squeeze();
        const code = (cache: typeof reference.cache, format: ColdFormat | undefined) =>
          format && cache.quantize(format);
        code(reference.cache, cold);
        const expected = await reference.attend(qLen, blockSize);
        const { ops, cache, attend, pages, squeeze } = await prefilled(rows);
        const index = indexOf(await squeeze(), pages);
        code(cache, cold);
        const clusters = new WasmClusterScorer(ops.wasm, index).fine(0, laterQueries(rows, qLen, blockSize))!;
        const policy = policyOf(index, -Infinity);
        const actual = await attend(qLen, blockSize, (blocks) =>
          policy.select(0, blocks, SQUEEZED_BUDGET, { clusters }),
        );
        assert.ok(relativeError(actual, expected, 16) <= 1e-5, `${relativeError(actual, expected, 16)}`);
      }
    });

  for (const cold of [undefined, "q4", "q2", MIXED] as const)
    test(`reads exactly the selected keys, ${nameOf(cold)} pages: parts of pages give what whole pages with masks do`, async () => {
      const { ops, cache, attend, pages, squeeze } = await prefilled(rows);
      const squeezed = await squeeze({ sparsity: 0.8, maxMissing: 1 });
      if (cold) cache.quantize(cold);
      const index = indexOf(squeezed, pages);
      const clusters = new WasmClusterScorer(ops.wasm, index).fine(0, laterQueries(rows, 1, 1))!;
      const { query } = squeezed.info.thresholds.find(({ sparsity }) => sparsity === 0.8)!;
      const [selection] = policyOf(index, query).select(
        0,
        { qStart: PROMPT, qLen: 1, blockSize: 1 },
        SQUEEZED_BUDGET,
        {
          clusters,
        },
      );
      const actual = await attend(1, 1, () => [selection!]);
      // Pages as they are stored, in the order of the clusters, and the new token's rows.
      const k = new Float64Array((PROMPT + 1) * 2 * 16);
      const v = new Float64Array(k.length);
      for (const [from, to] of [
        [0, 1],
        [1, settledPages(PROMPT)],
        [settledPages(PROMPT), cache.slots.length],
      ] as const) {
        const stored = await cache.readPages(0, from, to);
        const formats = headFormats(cache.formatOf(from), 0, 2);
        const f32 = new Float32Array(convertLayer(pages, 16, stored, formats, ["f32", "f32"]).slice().buffer);
        for (let page = from; page < to; page++)
          for (let h = 0; h < 2; h++)
            for (let t = 0; t < 32 && page * 32 + t <= PROMPT; t++)
              for (let c = 0; c < 16; c++) {
                const at = ((page - from) * 2 + h) * 1024;
                const row = ((page * 32 + t) * 2 + h) * 16 + c;
                k[row] = f32[at + c * 32 + t]!;
                v[row] = f32[at + 512 + t * 16 + c]!;
              }
      }
      const expected = new Float64Array(6 * 16);
      const q = laterQueries(rows, 1, 1).q;
      for (let head = 0; head < 6; head++) {
        const h = Math.floor(head / 3);
        const read = [...tokensRead(selection!, 0, h)].filter((t) => t <= PROMPT);
        const logits = read.map((t) => {
          let dot = 0;
          for (let c = 0; c < 16; c++) dot += q[head * 16 + c]! * k[(t * 2 + h) * 16 + c]!;
          return dot * SCALE;
        });
        const max = Math.max(...logits);
        const total = logits.reduce((sum, x) => sum + Math.exp(x - max), 0);
        for (const [i, t] of read.entries())
          for (let c = 0; c < 16; c++)
            expected[head * 16 + c]! += (Math.exp(logits[i]! - max) / total) * v[(t * 2 + h) * 16 + c]!;
      }
      assert.ok(relativeError(actual, expected, 16) <= 1e-5, `${relativeError(actual, expected, 16)}`);
    });

  test("on the calibration queries the wanted share of keys is left out, of single queries and of blocks", async () => {
    const { ops, pages, squeeze, windowQ } = await prefilled(rows);
    const squeezed = await squeeze({ sparsity: 0.65, maxMissing: 1 });
    assert.deepEqual(
      squeezed.info.thresholds.map(({ sparsity }) => sparsity),
      [0.5, 0.65, 0.7, 0.8, 0.9],
    );
    const index = indexOf(squeezed, pages);
    const scorer = new WasmClusterScorer(ops.wasm, index);
    for (const [name, blockSize] of [
      ["query", 1],
      ["block", 8],
    ] as const)
      for (const calibrated of squeezed.info.thresholds) {
        const blocks = { qStart: PROMPT - CALIBRATION_TOKENS, qLen: CALIBRATION_TOKENS, blockSize };
        const clusters = scorer.fine(0, { q: windowQ, shape: SHAPE, blocks, scale: SCALE })!;
        const floor = leastRead(calibrated.sparsity);
        const policy = policyOf(index, calibrated[name], { leastRead: floor });
        const [selection] = policy.select(0, blocks, SQUEEZED_BUDGET, { clusters });
        let [kept, all] = [0, 0];
        for (const h of index.layers[0]!.keys())
          for (let b = 0; b < selection!.nBlocks; b++) {
            const read = [...tokensRead(selection!, b, h)].filter(isClustered).length;
            assert.ok(read >= floor * CLUSTERED, `${read} of ${CLUSTERED} keys are read in block ${b}`);
            kept += read;
            all += CLUSTERED;
          }
        assert.ok(Math.abs(1 - kept / all - calibrated.sparsity) <= 0.005, `${name}: ${1 - kept / all}`);
      }
  });

  test("and of two levels too, whose clusters all lie in coarse clusters above their threshold", async () => {
    const { ops, pages, squeezer, queries, squeeze, windowQ } = await prefilled(rows);
    const index = indexOf(await squeeze(), pages);
    const { thresholds, coarse } = squeezer.calibrate(index, PROMPT, queries, [0.7], true);
    const scorer = new WasmClusterScorer(ops.wasm, index);
    const blocks = { qStart: PROMPT - CALIBRATION_TOKENS, qLen: CALIBRATION_TOKENS, blockSize: 1 };
    const asked = { q: windowQ, shape: SHAPE, blocks, scale: SCALE };
    const { sigma, stride, starts } = scorer.twoLevel(0, asked, coarse!.query)!;
    const above = scorer.coarse(0, asked)!;
    const policy = policyOf(index, thresholds[0]!.query, { leastRead: leastRead(0.7) });
    const clusters = { sigma, stride, starts, blockQueries: 1 };
    const [selection] = policy.select(0, blocks, SQUEEZED_BUDGET, { clusters });
    let [kept, all] = [0, 0];
    for (const [h, head] of index.layers[0]!.entries())
      for (let b = 0; b < CALIBRATION_TOKENS; b++) {
        const read = tokensRead(selection!, b, h);
        all += CLUSTERED;
        for (const [e, n] of entryCounts(head).entries()) {
          if (e < SINK_ENTRIES || !read.has(head.ends[e]! - 1)) continue;
          kept += n;
          const parent = head.coarseEnds.findIndex((end) => e - SINK_ENTRIES < end);
          const estimate = above.sigma[b * above.stride + above.starts[h]! + SINK_ENTRIES + parent]!;
          assert.ok(estimate > coarse!.query, `cluster ${e} is read, its coarse cluster has ${estimate}`);
        }
      }
    assert.ok(Math.abs(1 - kept / all - 0.7) <= 0.005, `${1 - kept / all} is left out`);
  });

  test("one cluster a key: the estimate is the true probability, and what is kept has more than the threshold", async () => {
    const { ops } = await prefilled(rows);
    const end = clusteredEnd(PROMPT);
    const keys = (h: number) =>
      Float32Array.from(
        { length: end * 16 },
        (_, i) => rows.k[(Math.floor(i / 16) * 2 + h) * 16 + (i % 16)]!,
      );
    const each = Uint32Array.from({ length: end }, (_, t) => t + 1);
    const coarseEnds = Uint32Array.of(end - SINK_ENTRIES);
    const index = {
      headDim: 16,
      clusteredEnd: end,
      layers: [
        [0, 1].map((h) => ({ ends: each, coarseEnds, centroids: keys(h), spreads: new Float32Array(end) })),
      ],
    };
    const queries = laterQueries(rows, 4, 4);
    const clusters = new WasmClusterScorer(ops.wasm, index).fine(0, queries)!;
    const threshold = 0.002;
    const [selection] = policyOf(index, threshold).select(0, queries.blocks, SQUEEZED_BUDGET, { clusters });
    assertSelection(selection!, SHAPE, queries.blocks, SQUEEZED_BUDGET);
    let missing = 0;
    for (let h = 0; h < 2; h++) {
      const mean = new Float64Array(end);
      for (let token = 0; token < 4; token++)
        for (let head = 3 * h; head < 3 * h + 3; head++) {
          // As if the prompt were all there is.
          const q = new Float32Array(end * 96);
          q.set(rows.q.subarray((PROMPT + token) * 96, (PROMPT + token + 1) * 96), (end - 1) * 96);
          const p = attentionProbabilities(
            { q, k: rows.k, nHeads: 6, nKvHeads: 2, headDim: 16, scale: SCALE },
            end - 1,
            head,
          );
          for (const [t, x] of p.entries()) mean[t]! += x / 12;
        }
      const read = tokensRead(selection!, 0, h);
      for (const [t, p] of mean.entries()) {
        assert.ok(Math.abs(clusters.sigma[clusters.starts[h]! + t]! - p) <= 1e-6, `key ${t} of head ${h}`);
        if (!read.has(t)) missing += p / 2;
        if (t < SINK_ENTRIES || Math.abs(p - threshold) < 1e-6) continue;
        assert.equal(read.has(t), p > threshold, `key ${t} of head ${h} has ${p}`);
      }
    }
    assert.ok(
      Math.abs(selection!.missing! - missing) < 1e-4,
      `${selection!.missing} is missing, not ${missing}`,
    );
  });

  test("does not depend on the order of clusters: the same keys are read", async () => {
    const { ops, pages, squeeze } = await prefilled(rows);
    const squeezed = await squeeze();
    const index = indexOf(squeezed, pages);
    const { block } = squeezed.info.thresholds.find(({ sparsity }) => sparsity === 0.8)!;
    const queries = laterQueries(rows, 9, 4);
    // The clusters from the last to the first; where each slot was before.
    const turned = index.layers[0]!.map((head) => {
      const counts = entryCounts(head);
      const order = [...counts.keys()].map((e) =>
        e < SINK_ENTRIES ? e : counts.length - 1 - (e - SINK_ENTRIES),
      );
      let end = 0;
      const ends = Uint32Array.from(order, (e) => (end += counts[e]!));
      const was = order.flatMap((e) =>
        Array.from({ length: counts[e]! }, (_, i) => head.ends[e]! - counts[e]! + i),
      );
      const centroids = Float32Array.from(
        order.flatMap((e) => Array.from(head.centroids.subarray(e * 16, e * 16 + 16))),
      );
      const spreads = Float32Array.from(order, (e) => head.spreads[e]!);
      return {
        head: { ends, centroids, spreads, coarseEnds: Uint32Array.of(counts.length - SINK_ENTRIES) },
        was,
      };
    });
    const select = (of: ClusterIndex): Selection =>
      policyOf(of, block).select(0, queries.blocks, SQUEEZED_BUDGET, {
        clusters: new WasmClusterScorer(ops.wasm, of).fine(0, queries)!,
      })[0]!;
    const plain = select(index);
    const reversed = select({ ...index, layers: [turned.map(({ head }) => head)] });
    for (let h = 0; h < 2; h++)
      for (let b = 0; b < 3; b++) {
        const slots = Array.from(tokensRead(reversed, b, h), (t) => turned[h]!.was[t] ?? t);
        assert.deepEqual(
          slots.sort((x, y) => x - y),
          [...tokensRead(plain, b, h)].sort((x, y) => x - y),
        );
        assert.ok(slots.length < 0.7 * PROMPT, `${slots.length} keys are read`);
      }
  });

  test("what is estimated to be missing can make a row dense", async () => {
    const { ops, pages, squeeze } = await prefilled(rows);
    const index = indexOf(await squeeze(), pages);
    const queries = laterQueries(rows, 1, 1);
    const clusters = new WasmClusterScorer(ops.wasm, index).fine(0, queries)!;
    const select = (rest: Partial<SqueezedOptions>) =>
      policyOf(index, 0.5, rest).select(0, queries.blocks, SQUEEZED_BUDGET, { clusters })[0]!;
    const sparse = select({});
    assert.ok(sparse.missing! > 0.05 && sparse.missing! < 1, `${sparse.missing}`);
    assert.ok(tokensRead(sparse, 0, 0).size < PROMPT);
    const dense = select({ maxMissing: 1e-6 });
    for (let h = 0; h < 2; h++)
      assert.equal([...tokensRead(dense, 0, h)].filter((t) => t <= PROMPT).length, PROMPT + 1);
    assert.equal(dense.missing, 0);
  });

  for (const factor of [100, 0])
    test(`survives ${factor === 0 ? "keys that are all zero" : "logits of a thousand"}`, async () => {
      const extreme = { ...rows, k: rows.k.map((x) => x * factor) };
      const { ops, attend, pages, squeeze } = await prefilled(extreme);
      const squeezed = await squeeze({ sparsity: 0.9, maxMissing: 1 });
      for (const { query, block } of squeezed.info.thresholds)
        assert.ok(Number.isFinite(query) && Number.isFinite(block));
      const index = indexOf(squeezed, pages);
      const queries = laterQueries(extreme, 1, 1);
      const clusters = new WasmClusterScorer(ops.wasm, index).fine(0, queries)!;
      assert.ok(clusters.sigma.every(Number.isFinite));
      const { query } = squeezed.info.thresholds.at(-1)!;
      const out = await attend(1, 1, (blocks) =>
        policyOf(index, query).select(0, blocks, SQUEEZED_BUDGET, { clusters }),
      );
      assert.ok(out.every(Number.isFinite));
    });
});

describe("calibration", () => {
  test("finds quantiles within half a percent, ties included", () => {
    const random = seeded(1);
    const keys = Array.from({ length: 20_000 }, () => ({
      sigma: random() ** 6,
      n: 1 + Math.floor(random() * 40),
    }));
    const calibration = new Calibration();
    for (const { sigma, n } of keys) calibration.add(sigma, n);
    const total = keys.reduce((sum, { n }) => sum + n, 0);
    for (const sparsity of [0.1, 0.5, 0.9, 0.99]) {
      const threshold = calibration.threshold(sparsity);
      const kept = keys.reduce((sum, { sigma, n }) => sum + (sigma > threshold ? n : 0), 0);
      assert.ok(Math.abs(1 - kept / total - sparsity) < 0.005, `${1 - kept / total} for ${sparsity}`);
    }
    assert.ok(calibration.threshold(0) < 0);
    const equal = new Calibration();
    equal.add(0.25, 10);
    assert.ok(equal.threshold(0.9) < 0.25, "equal keys are read together");
  });

  test("an estimate that is not a number gives no threshold", () => {
    const calibration = new Calibration();
    assert.ok(Number.isNaN(calibration.threshold(0.5)), "nothing was calibrated with");
    calibration.add(Number.NaN, 1);
    calibration.add(0.5, 1);
    assert.ok(Number.isNaN(calibration.threshold(0.5)));
  });

  test("a prompt whose queries are not finite is refused", async () => {
    const rows = randomSequence(CASE, PROMPT, seeded(5));
    const q = rows.q.slice();
    const { squeeze, windowQ } = await prefilled({ ...rows, q });
    windowQ[7] = Number.NaN;
    // The queries were copied when they were seen.
    assert.ok((await squeeze()).records.length === 1);
    q.fill(Number.NaN, (PROMPT - 1) * 96);
    const broken = await prefilled({ ...rows, q });
    await assert.rejects(
      broken.squeeze(),
      (error) => error instanceof InlayError && /not finite/.test(error.message),
    );
  });
});
