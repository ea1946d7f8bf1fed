/** Linear algebra and attention on a real WebGPU adapter under the engine: same answers, recovery with weights, memory. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { InlayError } from "../../src/errors.ts";
import type { ModelInput } from "../../src/gguf/source.ts";
import type { LoadOptions } from "../../src/options.ts";
import { collect, greedy, loadEngine, TEST_HOST } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { spiedGpu } from "../fixtures/spied-gpu.ts";

const found = await nodeGpu();
const { skip } = found;

const BYTES = tinyGguf("tiny-llama", { type: "F32", seed: 6 });
const OTHER_BYTES = tinyGguf("tiny-llama", { type: "Q8_0", seed: 6 });
const PROMPT = Array.from({ length: 70 }, (_, i) => 30 + ((i * 53) % 250));

const isError =
  (code: string, message = /./) =>
  (error: unknown) => {
    assert.ok(error instanceof InlayError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  };

const streamOf = (bytes: Uint8Array<ArrayBuffer>) => new Blob([bytes]).stream();

describe("device webgpu", { skip }, () => {
  if (found.skip !== false) return;
  const { gpu } = found;
  const load = (source: ModelInput = BYTES, options: LoadOptions = {}, on: GPU = gpu): Promise<Engine> =>
    loadEngine(source, { device: "webgpu", ...options }, { ...TEST_HOST, gpu: async () => on });
  const wasmAnswer = (async () => {
    const engine = await loadEngine(BYTES);
    const { ids } = await collect(engine.generate(greedy(PROMPT, 40)));
    await engine.dispose();
    return ids;
  })();
  after(() => wasmAnswer);

  test("answers as WASM does, in f32 and f16 pages, at once and in chunks, and says what ran where", async () => {
    for (const [format, prefillChunk] of [
      ["f16", 512],
      ["f32", 7],
    ] as const) {
      const engine = await load(BYTES, { kvCache: { format }, prefillChunk });
      const { ids, end } = await collect(engine.generate(greedy(PROMPT, 40)));
      assert.deepEqual(ids, await wasmAnswer, `${format} pages, chunks of ${prefillChunk}`);
      assert.equal(end.usage.device, "webgpu");
      const { kind, gpu: name, kvFormat, threads } = engine.info.device;
      assert.deepEqual({ kind, kvFormat, threads }, { kind: "webgpu", kvFormat: format, threads: 1 });
      assert.ok(name!.length > 0);
      await engine.dispose();
    }
  });

  test("weights, pages and scratch are on the GPU and counted", async () => {
    const engine = await load();
    const before = engine.memory();
    assert.ok(before.weights >= 0.9 * BYTES.byteLength - 100_000, `weights: ${before.weights}`);
    assert.equal(before.kv, 0);
    assert.ok(before.gpu >= before.weights);
    await collect(engine.generate(greedy(PROMPT, 40)));
    const { weights, kv, scratch, gpu: total } = engine.memory();
    assert.equal(weights, before.weights);
    assert.ok(kv > 0 && scratch > 0);
    assert.equal(total, weights + kv + scratch);
    await collect(engine.generate(greedy(PROMPT, 40)));
    assert.equal(engine.memory().kv, kv, "a repeated request finds its prefix and needs no more pages");
    await engine.dispose();
    assert.deepEqual(
      { ...engine.memory(), wasmHeap: 0, kv: 0 },
      { weights: 0, kv: 0, scratch: 0, wasmHeap: 0, gpu: 0 },
    );
  });

  test("an aborted request leaves the engine usable", async () => {
    const engine = await load(BYTES, { prefillChunk: 16 });
    for (const stopAfter of [0, 1]) {
      const controller = new AbortController();
      const reason = new Error("enough");
      let nEvents = 0;
      await assert.rejects(async () => {
        for await (const _ of engine.generate(greedy(PROMPT, 40), controller.signal))
          if (nEvents++ === stopAfter) controller.abort(reason);
      }, reason);
    }
    const { ids } = await collect(engine.generate(greedy(PROMPT, 40)));
    assert.deepEqual(ids, await wasmAnswer);
    await engine.dispose();
  });

  test("a lost device is opened again with its weights, and answers go on; not for ever", async () => {
    const spy = spiedGpu(gpu);
    const engine = await load(new Blob([BYTES]), {}, spy.gpu);
    const ids: number[] = [];
    for await (const event of engine.generate(greedy(PROMPT, 40))) {
      if (event.kind !== "text") continue;
      ids.push(...event.tokenIds);
      if (ids.length === 7 || ids.length === 20) spy.devices.at(-1)!.destroy();
    }
    assert.equal(spy.devices.length, 3, "lost twice while answering");
    assert.deepEqual(ids, await wasmAnswer);

    const lost = spy.devices.at(-1)!;
    lost.destroy();
    await lost.lost;
    const between = await collect(engine.generate(greedy(PROMPT, 40)));
    assert.equal(spy.devices.length, 4, "lost once between answers");
    assert.deepEqual(between.ids, ids);
    assert.ok(engine.memory().gpu > engine.memory().weights);

    spy.devices.at(-1)!.destroy();
    const given = collect(engine.generate(greedy(PROMPT, 4)));
    await assert.rejects(given, isError("device-lost", /lost 4 times/));
    assert.equal(spy.devices.length, 4);
    await engine.dispose();
  });

  test("weights from a stream are gone with the device: device-lost says to load again", async () => {
    const spy = spiedGpu(gpu);
    const engine = await load(streamOf(BYTES), {}, spy.gpu);
    spy.devices.at(-1)!.destroy();
    await assert.rejects(
      collect(engine.generate(greedy(PROMPT, 4))),
      isError("device-lost", /ReadableStream, which cannot be read twice: load the model again/),
    );
    await engine.dispose();
  });

  test("a device that does not come back is device-lost, until it does", async () => {
    const spy = spiedGpu(gpu);
    const engine = await load(new Blob([BYTES]), {}, spy.gpu);
    spy.state.hasAdapter = false;
    spy.devices.at(-1)!.destroy();
    for (let i = 0; i < 5; i++)
      await assert.rejects(collect(engine.generate(greedy(PROMPT, 4))), isError("device-lost", /no adapter/));
    spy.state.hasAdapter = true;
    const { ids } = await collect(engine.generate(greedy(PROMPT, 40)));
    assert.deepEqual(ids, await wasmAnswer);
    await engine.dispose();
  });

  test("a file that changed meanwhile is not mixed in", async () => {
    const spy = spiedGpu(gpu);
    // A Blob does not change; a file behind a name does.
    let bytes = BYTES;
    const changing = new Blob([BYTES]);
    Object.defineProperty(changing, "slice", {
      value: (from?: number, to?: number) => new Blob([bytes]).slice(from, to),
    });
    Object.defineProperty(changing, "stream", { value: () => new Blob([bytes]).stream() });
    const engine = await load(changing, {}, spy.gpu);
    bytes = OTHER_BYTES;
    spy.devices.at(-1)!.destroy();
    await assert.rejects(
      collect(engine.generate(greedy(PROMPT, 4))),
      isError("device-lost", /load the model again/),
    );
    await engine.dispose();
  });

  test("an abort ends a reload", async () => {
    const spy = spiedGpu(gpu);
    const controller = new AbortController();
    const reason = new Error("enough");
    let isArmed = false;
    const source = new Blob([BYTES]);
    const slice = source.slice.bind(source);
    Object.defineProperty(source, "slice", {
      value: (from?: number, to?: number) => {
        if (isArmed) controller.abort(reason);
        return slice(from, to);
      },
    });
    const engine = await load(source, {}, spy.gpu);
    isArmed = true;
    spy.devices.at(-1)!.destroy();
    await assert.rejects(collect(engine.generate(greedy(PROMPT, 4), controller.signal)), reason);
    isArmed = false;
    const { ids } = await collect(engine.generate(greedy(PROMPT, 40)));
    assert.deepEqual(ids, await wasmAnswer);
    await engine.dispose();
  });

  test("disposing while an answer runs ends it with disposed", async () => {
    const engine = await load();
    const run = (async () => {
      for await (const event of engine.generate(greedy(PROMPT, 40)))
        if (event.kind === "text") void engine.dispose();
    })();
    await assert.rejects(run, isError("disposed"));
  });

  test("a damaged file is invalid-model and leaves no device behind", async () => {
    const spy = spiedGpu(gpu);
    const damaged = BYTES.slice();
    new DataView(damaged.buffer).setFloat32(damaged.byteLength - 4, Number.NaN, true);
    await assert.rejects(load(damaged, {}, spy.gpu), isError("invalid-model", /not finite/));
    assert.equal(spy.devices.length, 1);
    await spy.devices[0]!.lost;
  });
});

test("webgpu without a GPU is device-unavailable", async () => {
  const host = { ...TEST_HOST, gpu: async () => undefined };
  await assert.rejects(loadEngine(BYTES, { device: "webgpu" }, host), isError("device-unavailable"));
});
