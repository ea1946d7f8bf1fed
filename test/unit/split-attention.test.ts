/** The hybrid pair's attention: WASM for the first 256 tokens, the GPU beyond, whatever happened to the cache before. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { WasmAttention } from "../../src/backend/wasm/wasm-attention.ts";
import type { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { type AppendCall, HybridAttention } from "../../src/backend/webgpu/hybrid-attention.ts";
import { NEAR_TOKENS, SplitAttention } from "../../src/engine/split-attention.ts";
import { Checkpoint } from "../../src/engine/yielding.ts";
import type { PagedCache } from "../../src/kv/paged-cache.ts";
import { forward, type Transformer } from "../../src/model/forward.ts";
import { relativeError } from "../fixtures/attention-case.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { densePlan, openTransformer } from "../fixtures/transformer.ts";
import { instantiate } from "../fixtures/wasm.ts";

const found = await nodeGpu();
const IDS = Uint32Array.from({ length: 400 }, (_, i) => 20 + ((i * i * 7 + i * 31) % 300));

describe("attention of the hybrid pair", { skip: found.skip }, async () => {
  if (found.skip !== false) return;
  const { gpu } = found;
  const wasm = await openTransformer(
    tinyGguf("tiny-llama", { type: "F32", seed: 6 }),
    await instantiate("simd"),
  );
  const { nLayers, nHeads, nKvHeads, headDim, vocabSize } = wasm.config;
  const shape = { nLayers, nHeads, nKvHeads, headDim, format: "f32" } as const;
  const device = await GpuDevice.create(gpu, { label: "split" });
  const ops = wasm.ops as WasmOps;
  const far = await HybridAttention.create(device, ops.heap, shape);
  const appended: { layer: number; start: number; nTokens: number }[] = [];
  let nFar = 0;
  const attention = new SplitAttention(new WasmAttention(ops, shape), {
    device: "webgpu",
    createCache: () => far.createCache(),
    attend(call) {
      nFar++;
      return far.attend(call);
    },
    sampleMasses: (call, rows) => far.sampleMasses(call, rows),
    append(call: AppendCall) {
      appended.push({ layer: call.layer, start: call.start, nTokens: call.k.nTokens });
      return far.append(call);
    },
    memory: () => far.memory(),
    dispose: () => far.dispose(),
  });
  const hybrid: Transformer = { ...wasm, attention };
  after(() => {
    far.dispose();
    device.dispose();
  });

  /** Logits of the last of tokens [cache.nTokens, to), in calls that end at `stops`. */
  async function extend(model: Transformer, cache: PagedCache, ids: Uint32Array, ...stops: number[]) {
    let logits: Float32Array | undefined;
    for (const to of stops) {
      const part = ids.subarray(cache.nTokens, to);
      logits = await forward(model, cache, part, densePlan(model), "last", new Checkpoint(undefined));
    }
    return logits!;
  }

  async function assertAsWasm(logits: Float32Array, ids: Uint32Array, ...stops: number[]) {
    const cache = wasm.attention.createCache();
    const expected = await extend(wasm, cache, ids, ...stops);
    cache.dispose();
    const error = relativeError(logits, expected, vocabSize);
    assert.ok(error <= 2e-5, `${stops}: relative error ${error}`);
  }

  test("up to 256 tokens nothing runs on the GPU, and the bits are WASM's", async () => {
    const [cache, same] = [attention.createCache(), wasm.attention.createCache()];
    nFar = 0;
    const logits = await extend(hybrid, cache, IDS, 100, 101, NEAR_TOKENS);
    assert.deepEqual(logits, await extend(wasm, same, IDS, 100, 101, NEAR_TOKENS));
    assert.equal(nFar, 0);
    assert.deepEqual(appended, []);
    cache.dispose();
    same.dispose();
  });

  for (const first of [1, 31, 32, 33, 255, 256])
    test(`the GPU gets each layer's first tokens once: ${first}, then beyond`, async () => {
      const cache = attention.createCache();
      appended.length = nFar = 0;
      const stops = first < 256 ? [first, 256, 257, 258, 300] : [256, 257, 258, 300];
      await assertAsWasm(await extend(hybrid, cache, IDS, ...stops), IDS, ...stops);
      assert.deepEqual(
        appended,
        Array.from({ length: nLayers }, (_, layer) => ({ layer, start: 0, nTokens: 256 })),
      );
      assert.equal(nFar, 3 * nLayers);
      cache.dispose();
    });

  test("cutting, forking and going on give what a fresh cache gives", async () => {
    const other = IDS.map((id, i) => (i < 150 ? id : id + 1));
    const a = attention.createCache();
    await extend(hybrid, a, IDS, 256, 300);
    const b = a.fork();
    b.truncate(150);
    const c = b.fork();
    appended.length = 0;
    await assertAsWasm(await extend(hybrid, b, other, 200, 256, 290), other, 200, 256, 290);
    assert.deepEqual(appended[0], { layer: 0, start: 150, nTokens: 106 });
    await assertAsWasm(await extend(hybrid, a, IDS, 310), IDS, 256, 300, 310);
    b.dispose();
    await assertAsWasm(await extend(hybrid, c, IDS, 256, 280), IDS, 256, 280);
    a.truncate(260);
    await assertAsWasm(await extend(hybrid, a, other, 270), mixed(IDS, other, 260), 256, 260, 270);
    a.truncate(0);
    await assertAsWasm(await extend(hybrid, a, other, 256, 257), other, 256, 257);
    a.dispose();
    c.dispose();
    assert.equal(attention.memory().kv, 0);
  });

  test("a call that was given up leaves nothing behind", async () => {
    const cache = attention.createCache();
    await extend(hybrid, cache, IDS, 90);
    const controller = new AbortController();
    controller.abort(new Error("given up"));
    const part = IDS.subarray(90, 120);
    await assert.rejects(
      forward(hybrid, cache, part, densePlan(hybrid), "last", new Checkpoint(controller.signal)),
      /given up/,
    );
    assert.equal(cache.nTokens, 90);
    await assertAsWasm(await extend(hybrid, cache, IDS, 95, 256, 290), IDS, 90, 95, 256, 290);
    cache.dispose();
  });

  test("a call across token 256 is an internal error", async () => {
    const cache = attention.createCache();
    await assert.rejects(extend(hybrid, cache, IDS, 257), /attention across token 256/);
    cache.dispose();
  });
});

/** The first `n` of `a`, then `b`. */
function mixed(a: Uint32Array, b: Uint32Array, n: number): Uint32Array {
  return Uint32Array.from(b, (id, i) => (i < n ? a[i]! : id));
}
