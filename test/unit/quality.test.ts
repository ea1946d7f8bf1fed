/** Kept attention beside its definition, and the quality report on a tiny model. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { PREFILL_POLICIES } from "../../src/attention/names.ts";
import type { Selection } from "../../src/attention/policy.ts";
import { InlayError } from "../../src/errors.ts";
import { AttentionRecall, type KeptAttention } from "../../src/eval/attention-recall.ts";
import { openEvalModel } from "../../src/eval/eval-model.ts";
import { headBudgets } from "../../src/eval/head-budgets.ts";
import { evaluateQuality, qualityCases, type Recall } from "../../src/eval/quality.ts";
import { qualityChart } from "../../src/eval/quality-chart.ts";
import { openSources } from "../../src/gguf/source.ts";
import { TEST_HOST } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { normals } from "../fixtures/random.ts";
import { attentionProbabilities } from "../reference/attention-probabilities.ts";

const SHAPE = { nLayers: 2, nHeads: 4, nKvHeads: 2, headDim: 8, attentionScale: 0.9 };
const N_TOKENS = 70;

/** A selection of blocks of 32: whole pages, or with every third token left out. */
function listing(
  layer: number,
  rows: readonly (readonly number[])[],
  headShared: boolean,
  mask?: number,
): Selection {
  const rowPtr = [0];
  for (const row of rows) rowPtr.push(rowPtr.at(-1)! + row.length);
  const page = Uint32Array.from(rows.flat());
  return {
    ...{ layer, nKvHeads: 2, nBlocks: rows.length / (headShared ? 1 : 2), headShared, segment: "tail" },
    ...{ rowPtr: Uint32Array.from(rowPtr), page },
    ...(mask !== undefined && { mask: new Uint32Array(page.length).fill(mask) }),
  };
}

const cases = [
  { name: "one list for all heads", headShared: true, rows: [[0], [0, 1], [0, 2]] },
  { name: "a list for each KV head", headShared: false, rows: [[0], [1], [0, 2], [0], [0, 1], [1, 2]] },
  { name: "masks", headShared: true, rows: [[0], [0, 1], [0, 1, 2]], mask: 0xb6db6db6 },
  { name: "a sliding window", headShared: true, rows: [[0], [0, 1], [2]], window: 40 },
];

for (const { name, headShared, rows, mask, window } of cases)
  test(`kept attention is what the probabilities of the listed keys add up to: ${name}`, () => {
    const windows = [undefined, window];
    const q = normals(N_TOKENS * 4 * 8, 5, 2);
    const k = normals(N_TOKENS * 2 * 8, 6, 2);
    const seen: KeptAttention[] = [];
    const recall = new AttentionRecall(
      { ...SHAPE, windows },
      (t) => t % 9 === 0,
      (kept) => seen.push(kept),
    );
    const s = listing(1, rows, headShared, mask);
    // In two calls, cut at a block: the second must remember the keys of the first.
    const nFirst = 32;
    const part = (from: number, to: number, blocks: readonly number[]) => {
      const own = (h: number) => blocks.map((b) => rows[h * 3 + b]!);
      const lists = headShared ? own(0) : [...own(0), ...own(1)];
      recall.observe({
        ...{ layer: 1, q: q.subarray(from * 32, to * 32), k: k.subarray(from * 16, to * 16) },
        blocks: { qStart: from, qLen: to - from, blockSize: 32 },
        selections: [listing(1, lists, headShared, mask)],
      });
    };
    part(0, nFirst, [0]);
    part(nFirst, N_TOKENS, [1, 2]);
    assert.equal(seen.length, 8 * 4);
    for (const { layer, head, position, kept } of seen) {
      assert.equal(layer, 1);
      const input = { q, k, nHeads: 4, nKvHeads: 2, headDim: 8, scale: 0.9, window };
      const row = (headShared ? 0 : Math.floor(head / 2) * 3) + Math.floor(position / 32);
      let expected = 0;
      for (const [key, p] of attentionProbabilities(input, position, head).entries()) {
        const isListed = s.page.subarray(s.rowPtr[row], s.rowPtr[row + 1]).includes(key >> 5);
        if (isListed && ((mask ?? 0xffffffff) >>> (key % 32)) & 1) expected += p;
      }
      assert.ok(Math.abs(kept - expected) < 1e-6, `head ${head}, position ${position}: ${kept}, ${expected}`);
    }
  });

describe("the quality report", async () => {
  const model = await openEvalModel({
    ...{ host: TEST_HOST, sources: openSources(tinyGguf("tiny-llama", { seed: 4 })) },
    ...{ device: "wasm", threads: 1 },
  });
  after(() => model.dispose());
  const ids = Uint32Array.from({ length: 600 }, (_, i) => (i * 7919 + 13) % model.config.vocabSize);

  test("a full budget loses nothing, whatever the policy", async () => {
    const { results, reference, positions } = await evaluateQuality(model, ids, {
      cases: qualityCases(PREFILL_POLICIES, [1], ["f16"]),
    });
    assert.equal(positions, 299);
    for (const { policy, kl, klMax, perplexity, sameTop, recall, pagesRead } of results) {
      assert.ok(Math.abs(kl) < 1e-6 && klMax < 1e-5, `${policy}: KL ${kl}, at most ${klMax}`);
      assert.ok(Math.abs(perplexity / reference.perplexity - 1) < 1e-5, `${policy}: ${perplexity}`);
      assert.equal(sameTop, 1, policy);
      assert.equal(pagesRead, 1, policy);
      if (recall) assert.ok(recall.min > 0.999999, `${policy}: ${recall.min}`);
    }
  });

  test("half of the keys and 2 bits both cost, and the report says how much for every head", async () => {
    const { results } = await evaluateQuality(model, ids, {
      cases: qualityCases(["dense", "window"], [0.5], ["f16", "q2"]),
    });
    const [dense, window, dense2, window2] = results;
    assert.ok(dense!.kl < dense2!.kl && window!.kl < window2!.kl, JSON.stringify(results));
    assert.ok(window!.pagesRead < 1 && window!.recall!.mean < 1);
    const { attainable } = window!.recall!;
    assert.ok(attainable >= window!.recall!.mean - 0.02 && attainable <= 1 + 1e-9, `${attainable}`);
    assert.equal(dense!.recall, undefined);
    const { nLayers, nHeads } = model.config;
    assert.deepEqual(
      window!.recall!.meanByHead.map((heads) => heads.length),
      new Array(nLayers).fill(nHeads),
    );
    assert.ok(Math.min(...window!.recall!.minByHead.flat()) === window!.recall!.min);
    assert.ok(dense2!.kvBytesPerToken < dense!.kvBytesPerToken / 4);
  });

  test("heads that lose more get more, on average the same, and then lose less", async () => {
    const options = { cases: qualityCases(["dhsa"], [0.5], ["f16"]) };
    const equal = (await evaluateQuality(model, ids, options)).results[0]!.recall!;
    const { nLayers, nKvHeads } = model.config;
    const factors = headBudgets(equal, nKvHeads);
    assert.equal(factors.length, nLayers);
    const flat = factors.flat();
    assert.ok(Math.abs(flat.reduce((a, b) => a + b) / flat.length - 1) < 0.01, `${flat}`);
    const lossOf = ({ meanByHead }: Recall) =>
      meanByHead.map((heads) =>
        Array.from({ length: nKvHeads }, (_, h) => 1 - (heads[2 * h]! + heads[2 * h + 1]!) / 2),
      );
    const lost = lossOf(equal).flat();
    const most = lost.indexOf(Math.max(...lost));
    assert.equal(flat.indexOf(Math.max(...flat)), most);
    const other = (await evaluateQuality(model, ids, { ...options, headBudgets: factors })).results[0]!
      .recall!;
    if (flat[most]! > 1.05)
      assert.ok(lossOf(other).flat()[most]! < lost[most]!, `${lossOf(other)} for ${lost}`);
    assert.deepEqual(
      headBudgets(
        {
          ...equal,
          meanByHead: [
            [1, 1],
            [1, 1],
          ],
        },
        1,
      ),
      [[1], [1]],
    );
  });

  test("head budgets of another model are refused with both shapes", async () => {
    const cases = qualityCases(["dhsa"], [0.5], ["f16"]);
    await assert.rejects(
      evaluateQuality(model, ids, { cases, headBudgets: [[1]] }),
      (error) =>
        error instanceof InlayError && /1 layers, one of them of 1 heads; this model has/.test(error.message),
    );
  });

  test("the chart has a mark for every policy and budget, and no number that is none", async () => {
    const report = await evaluateQuality(model, ids, {
      cases: qualityCases(["dense", "window", "dhsa"], [0.9, 0.6], ["f16", "q4"]),
    });
    const svg = qualityChart(report, "tiny <model>");
    assert.match(svg, /^<svg .*tiny &#60;model&#62;.*<\/svg>\n$/s);
    assert.doesNotMatch(svg, /NaN|Infinity|undefined/);
    for (const name of ["window", "dhsa"])
      assert.equal(svg.match(new RegExp(`>${name}<`, "g"))?.length, 2, `${name} in both legends`);
  });

  test("a text without enough tokens is refused with the numbers", async () => {
    await assert.rejects(
      evaluateQuality(model, ids.subarray(0, 100), { cases: [] }),
      (error) =>
        error instanceof InlayError && error.code === "invalid-option" && /100 tokens/.test(error.message),
    );
  });

  test("aborting ends it with the signal's reason", async () => {
    const signal = AbortSignal.abort("enough");
    await assert.rejects(evaluateQuality(model, ids, { cases: [], signal }), (error) => error === "enough");
  });
});
