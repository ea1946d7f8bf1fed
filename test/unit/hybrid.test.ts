/** Attention on a real WebGPU adapter under the engine: the same answers, visible device, recovery from a lost GPU. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import { collect, greedy, loadEngine, TEST_HOST } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { spiedGpu } from "../fixtures/spied-gpu.ts";

const found = await nodeGpu();
const { skip } = found;

const BYTES = tinyGguf("tiny-llama", { type: "F32", seed: 6 });
// Answers cross the 256th token, where attention moves from WASM to the GPU.
const PROMPT = Array.from({ length: 245 }, (_, i) => 30 + ((i * 53) % 250));

describe("device hybrid", { skip }, () => {
  if (found.skip !== false) return;
  const { gpu } = found;
  const host = { ...TEST_HOST, gpu: async () => gpu };
  const wasmAnswer = (async () => {
    const engine = await loadEngine(BYTES);
    const { ids } = await collect(engine.generate(greedy(PROMPT, 40)));
    await engine.dispose();
    return ids;
  })();
  after(() => wasmAnswer);

  test("answers as WASM does, in f32 and f16 pages, and says what ran where", async () => {
    for (const format of ["f32", "f16"] as const) {
      const engine = await loadEngine(BYTES, { device: "hybrid", kvCache: { format } }, host);
      const { ids, end } = await collect(engine.generate(greedy(PROMPT, 40)));
      assert.deepEqual(ids, await wasmAnswer, format);
      assert.equal(end.usage.device, "hybrid");
      const { kind, gpu: name, kvFormat } = engine.info.device;
      assert.deepEqual({ kind, kvFormat }, { kind: "hybrid", kvFormat: format });
      assert.ok(name!.length > 0);
      assert.ok(engine.memory().gpu > 0);
      await engine.dispose();
    }
  });

  test("a quantized cache answers as WASM's does", async () => {
    const long = Array.from({ length: 300 }, (_, i) => 30 + ((i * 37) % 200));
    const answers: number[][] = [];
    for (const device of ["wasm", "hybrid"] as const) {
      const engine = await loadEngine(BYTES, { device, kvCache: { format: "q4" }, contextLength: 400 }, host);
      assert.equal(engine.info.device.kvFormat, "q4");
      const empty = engine.memory().kv;
      answers.push((await collect(engine.generate(greedy(long, 40)))).ids);
      // A request that follows another one cuts a quantized page.
      answers.push((await collect(engine.generate(greedy(long.slice(0, 110), 8)))).ids);
      const { nLayers, nKvHeads, headDim } = engine.info;
      assert.ok(engine.memory().kv - empty < 340 * nLayers * nKvHeads * headDim * 2 * 4, "less than f32");
      await engine.dispose();
    }
    assert.deepEqual(answers.slice(2), answers.slice(0, 2));
  });

  test("a device lost while answering is opened again, and the answer goes on", async () => {
    const spy = spiedGpu(gpu);
    const engine = await loadEngine(BYTES, { device: "hybrid" }, { ...host, gpu: async () => spy.gpu });
    const ids: number[] = [];
    let nLost = 0;
    for await (const event of engine.generate(greedy(PROMPT, 40))) {
      if (event.kind !== "text") continue;
      ids.push(...event.tokenIds);
      if (ids.length === 7 || ids.length === 20) {
        spy.devices.at(-1)!.destroy();
        nLost++;
      }
    }
    assert.equal(nLost, 2);
    assert.equal(spy.devices.length, 3);
    assert.deepEqual(ids, await wasmAnswer);
    await engine.dispose();
  });

  test("a device lost between answers is opened again", async () => {
    const spy = spiedGpu(gpu);
    const engine = await loadEngine(BYTES, { device: "hybrid" }, { ...host, gpu: async () => spy.gpu });
    const lost = spy.devices.at(-1)!;
    lost.destroy();
    await lost.lost;
    const { ids } = await collect(engine.generate(greedy(PROMPT, 40)));
    assert.deepEqual(ids, await wasmAnswer);
    assert.equal(spy.devices.length, 2);
    await engine.dispose();
  });

  test("a device that does not come back is device-lost", async () => {
    const spy = spiedGpu(gpu);
    const engine = await loadEngine(BYTES, { device: "hybrid" }, { ...host, gpu: async () => spy.gpu });
    const run = (async () => {
      for await (const event of engine.generate(greedy(PROMPT, 40)))
        if (event.kind === "text") {
          spy.state.hasAdapter = false;
          spy.devices.at(-1)!.destroy();
        }
    })();
    await assert.rejects(run, (error) => {
      assert.ok(error instanceof InlayError, String(error));
      assert.equal(error.code, "device-lost");
      return true;
    });
    await engine.dispose();
  });

  test("auto does not take a software adapter, and says so", async () => {
    const engine = await loadEngine(BYTES, { device: "auto" }, host);
    assert.equal(engine.info.device.kind, "wasm");
    assert.match(engine.info.device.reason, /software/);
    await engine.dispose();
  });
});

test("hybrid without a GPU is device-unavailable, auto is WASM with the reason", async () => {
  const host = { ...TEST_HOST, gpu: async () => undefined };
  await assert.rejects(loadEngine(BYTES, { device: "hybrid" }, host), (error) => {
    assert.ok(error instanceof InlayError);
    assert.equal(error.code, "device-unavailable");
    return true;
  });
  const engine = await loadEngine(BYTES, { device: "auto" }, host);
  assert.equal(engine.info.device.kind, "wasm");
  assert.match(engine.info.device.reason, /webgpu/);
  await engine.dispose();
});
