/** `attentionMap`: what was read, beside what the policies promise. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import { collect, greedy, loadEngine } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";

const MODEL = tinyGguf("tiny-llama", { seed: 4 });
const gpu = await nodeGpu();

describe("attention maps", async () => {
  const engine = await loadEngine(MODEL, { prefillChunk: 100 });
  after(() => engine.dispose());
  const text = "All human beings are born free and equal in dignity and rights. ".repeat(8);

  test("dense reads every page up to the block's own, and keeps everything", async () => {
    const map = await engine.attentionMap(text, { policy: "dense", budget: 1 });
    const { nPages, nLayers, nKvHeads, tokenIds, isRead, kept, chunkEnds } = map;
    assert.equal(nPages, Math.ceil(tokenIds.length / 32));
    assert.deepEqual([nLayers, nKvHeads], [engine.info.nLayers, engine.info.nKvHeads]);
    assert.equal(isRead.length, nLayers * nKvHeads * nPages * nPages);
    for (const [i, x] of isRead.entries())
      assert.equal(x, Math.floor(i / nPages) % nPages >= i % nPages ? 1 : 0, `entry ${i}`);
    assert.equal(kept.length, nLayers * nKvHeads * nPages);
    for (const share of kept) assert.ok(Math.abs(share - 1) < 1e-6, `${share}`);
    assert.deepEqual(chunkEnds, []);
  });

  test("dhsa reads the first page and the neighbourhood, less than all, and says where chunks end", async () => {
    const { nPages, isRead, kept, chunkEnds, tokenIds } = await engine.attentionMap(text, {
      policy: "dhsa",
      budget: 0.1,
    });
    assert.ok(nPages > 12, `${nPages} pages`);
    for (let row = 0; row < isRead.length / nPages; row++) {
      const block = row % nPages;
      for (const page of [0, block, Math.max(0, block - 2)])
        assert.equal(isRead[row * nPages + page], 1, `row ${row}`);
    }
    assert.ok(isRead.reduce((a, b) => a + b, 0) < (0.95 * isRead.length * (nPages + 1)) / (2 * nPages));
    assert.ok(kept.every((share) => share > 0 && share <= 1 + 1e-6) && kept.some((share) => share < 0.999));
    assert.ok(chunkEnds.length > 1 && chunkEnds.at(-1)! <= tokenIds.length);
  });

  test("hybrid reads what WASM reads", { skip: gpu.skip }, async () => {
    const hybrid = await loadEngine(MODEL, { device: "hybrid" });
    const options = { policy: "dhsa", budget: 0.1 } as const;
    const [there, here] = [
      await hybrid.attentionMap(text, options),
      await engine.attentionMap(text, options),
    ];
    assert.deepEqual(there.chunkEnds, here.chunkEnds);
    const nOff = there.isRead.reduce((n, x, i) => n + (x === here.isRead[i] ? 0 : 1), 0);
    assert.ok(nOff <= 0.01 * here.isRead.length, `${nOff} of ${here.isRead.length} pages differ`);
    await hybrid.dispose();
  });

  test("bytes: f16 is half of f32, and quantized pages are what is left of the middle", async () => {
    const { kvBytes, nPages, nLayers, nKvHeads } = await engine.attentionMap(text, {
      policy: "window",
      budget: 0.2,
    });
    const page = 2 * nLayers * nKvHeads * 32 * engine.info.headDim * 4;
    assert.equal(kvBytes.f32, nPages * page);
    assert.equal(kvBytes.f16, kvBytes.f32 / 2);
    assert.ok(kvBytes.q8 > kvBytes.q4 && kvBytes.q4 > kvBytes.q2 && kvBytes.q2 > 5 * page);
  });

  test("maps leave answers as they are", async () => {
    const ids = [50, 60, 70, 80];
    const before = await collect(engine.generate(greedy(ids, 5)));
    await engine.attentionMap(text, {});
    const again = await collect(engine.generate(greedy(ids, 5)));
    assert.deepEqual(again.ids, before.ids);
    assert.equal(again.end.usage.cachedTokens, 3);
  });

  test("what cannot be mapped is refused with the numbers", async () => {
    for (const [given, says] of [
      ["", /the text has \d tokens; an attention map is made of 1 to/],
      [text.repeat(200), /the text has \d{5,} tokens; an attention map is made of 1 to \d+/],
    ] as const)
      await assert.rejects(engine.attentionMap(given, {}), (error) => {
        assert.ok(error instanceof InlayError && error.code === "invalid-option");
        assert.match(error.message, says);
        return true;
      });
  });
});
