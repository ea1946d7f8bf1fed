/** Pinned prompts with a sparsity on device webgpu: read through clusters that the GPU looks up, without reading a query back. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { SqueezedOptions } from "../../src/attention/squeezed.ts";
import { leastRead, SqueezedPolicy } from "../../src/attention/squeezed.ts";
import { SharedIndex, SqueezedPrefix } from "../../src/attention/squeezed-prefix.ts";
import { AttentionTally } from "../../src/attention/tally.ts";
import { WasmClusterScorer } from "../../src/backend/wasm/cluster-scorer.ts";
import { PageConverter } from "../../src/backend/wasm/page-converter.ts";
import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { isDebug } from "../../src/debug.ts";
import type { Engine } from "../../src/engine/engine.ts";
import { Checkpoint } from "../../src/engine/yielding.ts";
import type { Prompt } from "../../src/generate/request.ts";
import type { PagedCache } from "../../src/kv/paged-cache.ts";
import { attentionShape, forward, type Transformer } from "../../src/model/forward.ts";
import type { AttentionPlan } from "../../src/model/select-pages.ts";
import type { LoadOptions } from "../../src/options.ts";
import { Squeezer } from "../../src/prompts/squeeze.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import type { PromptStore } from "../../src/storage/prompt-store.ts";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { relativeError } from "../fixtures/attention-case.ts";
import { collect, greedy, loadEngine, TEST_HOST } from "../fixtures/engine.ts";
import { openGpuTransformer } from "../fixtures/gpu-transformer.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { opened } from "../fixtures/pinned-prompt.ts";
import { uniform } from "../fixtures/random.ts";
import { spiedGpu } from "../fixtures/spied-gpu.ts";
import { densePlan } from "../fixtures/transformer.ts";
import { instantiate } from "../fixtures/wasm.ts";

const found = await nodeGpu();
const { skip } = found;

const BYTES = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 4096 }, { type: "F32", seed: 4 });
/** The prompt ends inside a page, and its question inside a block. */
const PROMPT = 650;
const IDS = Uint32Array.from({ length: PROMPT + 40 }, (_, i) => 30 + ((i * i * 53 + 7 * i) % 250));
const never = new AbortController().signal;

/** Sums of f32 in another order, through two layers and the logits. */
const TOLERANCE = 1e-4;

describe("clusters in the webgpu pair's forward pass", { skip }, () => {
  if (found.skip !== false) return;
  let device: GpuDevice;
  after(() => device?.dispose());

  /** A prompt in a cache, clustered, and how to read on from it. */
  async function prefilled(windows: (number | undefined)[] = [undefined, undefined]) {
    device ??= await GpuDevice.create(found.skip === false ? found.gpu : navigator.gpu, { label: "test" });
    const loaded = await openGpuTransformer(BYTES, device);
    const model = { ...loaded, config: { ...loaded.config, windows } };
    const shape = attentionShape(model.config);
    const wasm = await instantiate("simd");
    const squeezer = new Squeezer(
      shape,
      model.config.attentionScale,
      wasm,
      new PageConverter(wasm, shape.headDim),
    );
    const { before, queries } = squeezer.watch(PROMPT);
    const cache = model.attention.createCache();
    const plan = densePlan(model);
    await call(model, cache, 0, before, plan);
    await call(model, cache, before, PROMPT, { ...plan, observer: queries.observe });
    const request = { sparsity: 0.8, maxMissing: 1 };
    const steps = squeezer.squeeze(cache, request, queries, new Checkpoint(undefined));
    let step = await steps.next();
    while (!step.done) step = await steps.next();
    const { info, records } = step.value;
    const index = squeezer.index(PROMPT, info.layers, records);
    const { thresholds } = info;
    const read = (options: Partial<SqueezedOptions> = {}) => {
      const policy = new SqueezedPolicy(shape, index, {
        thresholds: thresholds.find(({ sparsity }) => sparsity === 0.8)!,
        maxMissing: 1,
        leastRead: leastRead(0.8),
        ...options,
      });
      const shared = new SharedIndex(PROMPT, policy, () => new WasmClusterScorer(wasm, index));
      cache.replaceCompanion(new SqueezedPrefix(shared));
    };
    return {
      model,
      cache,
      plan,
      read,
      coarse: () => squeezer.calibrate(index, PROMPT, queries, [0.8], true),
    };
  }

  const call = (model: Transformer, cache: PagedCache, from: number, to: number, plan: AttentionPlan) =>
    forward(
      model,
      cache,
      IDS.subarray(from, to),
      plan,
      plan.tally ? "last" : "none",
      new Checkpoint(undefined),
    );

  /** Logits after a question of 21 tokens and after each of 5 more; the cache is left as it was. */
  async function readOn(model: Transformer, cache: PagedCache, plan: AttentionPlan) {
    const fork = cache.fork();
    const tally = new AttentionTally();
    const logits: number[] = [];
    for (const [from, to] of [[0, 21], ...Array.from({ length: 5 }, (_, i) => [21 + i, 22 + i])])
      logits.push(...(await call(model, fork, PROMPT + from!, PROMPT + to!, { ...plan, tally }))!);
    fork.dispose();
    return { logits, tally };
  }

  for (const windows of [
    [undefined, undefined],
    [64, undefined],
  ])
    test(`read as the host's policy has it, windows of ${windows}`, async () => {
      const { model, cache, plan, read, coarse } = await prefilled(windows);
      const { vocabSize } = model.config;
      const twoLevel = coarse();
      let missing = 0.5;
      for (const name of ["one level", "two levels", "with the valve open for some"] as const) {
        const twoLevels = { coarse: twoLevel.coarse!, thresholds: twoLevel.thresholds[0]! };
        read(name === "one level" ? {} : name === "two levels" ? twoLevels : { maxMissing: missing });
        const onDevice = await readOn(model, cache, plan);
        // Queries that are watched are on the host, and so is what selects by them.
        const onHost = await readOn(model, cache, { ...plan, observer: () => {} });
        const error = relativeError(onDevice.logits, onHost.logits, vocabSize);
        assert.ok(error <= TOLERANCE, `${name}: relative error ${error}`);
        assert.equal(onDevice.tally.policy, "squeezed");
        if (name === "one level") missing = onDevice.tally.missing!;
        for (const number of ["fraction", "missing"] as const) {
          const [own, expected] = [onDevice.tally[number]!, onHost.tally[number]!];
          assert.ok(expected > 0 && expected < 1, `${name}: ${number} is ${expected}`);
          assert.ok(Math.abs(own - expected) <= 1e-5, `${name}: ${number} is ${own}, not ${expected}`);
        }
      }
      model.dispose();
    });

  test("with a threshold of -Infinity, or a valve that always opens, equals dense attention", async () => {
    const { model, cache, plan, read } = await prefilled();
    cache.replaceCompanion(new SqueezedPrefix(undefined));
    const dense = await readOn(model, cache, plan);
    const everything = { query: -Infinity, block: -Infinity };
    for (const options of [{ thresholds: everything }, { maxMissing: 1e-9 }]) {
      read(options);
      const { logits, tally } = await readOn(model, cache, plan);
      const error = relativeError(logits, dense.logits, model.config.vocabSize);
      assert.ok(error <= TOLERANCE, `relative error ${error}`);
      assert.equal(tally.fraction, 1);
      assert.ok(tally.missing! <= 1e-5, `${tally.missing} is missing`);
    }
    model.dispose();
  });

  test("nothing crosses back but the logits and what was counted, once a call; the same bits every time", async () => {
    const { model, cache, plan, read } = await prefilled();
    read();
    const { crossings } = model.ops;
    const { nLayers, nKvHeads, headDim, vocabSize } = model.config;
    const first = await readOn(model, cache, plan);
    const before = { ...crossings };
    const second = await readOn(model, cache, plan);
    assert.deepEqual(second, first);
    assert.equal(crossings.readbacks - before.readbacks, 6);
    // In debug builds the sums of each layer's keys and values over the call's pages cross too.
    const nPages = Math.ceil((PROMPT + 21) / 32) - Math.floor(PROMPT / 32);
    const checked = isDebug ? (nPages + 5) * 2 * nLayers * nKvHeads * headDim : 0;
    const counted = 2 * nKvHeads * (Math.ceil(21 / 8) + 5);
    assert.equal(crossings.readbackBytes - before.readbackBytes, 4 * (6 * vocabSize + counted + checked));
    // Of a part of a prompt whose logits nobody wants nothing crosses at all, where nobody counts.
    const { readbacks } = crossings;
    const fork = cache.fork();
    await call(model, fork, PROMPT, PROMPT + 9, plan);
    assert.equal(crossings.readbacks - readbacks, isDebug ? 1 : 0);
    fork.dispose();
    assert.equal(model.ops.tensors.nLive, 0, "activations are freed");
    model.dispose();
  });

  test("decoding needs no more buffers from token to token; clusters are freed with their last cache", async () => {
    const { model, cache, plan, read } = await prefilled();
    read();
    const fork = cache.fork();
    const scratch: number[] = [];
    for (let i = 0; i < 20; i++) {
      await call(model, fork, PROMPT + i, PROMPT + i + 1, plan);
      scratch.push(model.ops.memory().scratch + model.attention.memory().scratch);
    }
    // What changes from call to call: a few parameters each.
    assert.ok(scratch.at(-1)! <= scratch[12]! + 7 * 256, `${scratch}`);
    // Pages that are given back stay, for the next ones.
    const bytes = () => model.attention.memory().kv + model.attention.memory().scratch;
    const before = bytes();
    fork.dispose();
    assert.equal(bytes(), before, "the prompt's own cache uses the clusters still");
    cache.dispose();
    await new Promise((resolve) => setTimeout(resolve));
    const centroids = 2 * 2 * (32 + 20) * 16 * 4;
    assert.ok(bytes() <= before - centroids, `${bytes()} of ${before} bytes are left`);
    model.dispose();
  });
});

/** Text of about two tokens a word. */
function text(nWords: number) {
  const next = uniform(9);
  const words = ["river", "stone", "lamp", "keeper", "storm", "boat", "night", "bread"];
  const content = Array.from({ length: nWords }, () => words[Math.floor(next() * 8)]).join(" ");
  return { kind: "text", text: content } as const;
}

const QUESTION: Prompt = { kind: "ids", ids: Uint32Array.from({ length: 21 }, (_, i) => 40 + 3 * i) };
const ANSWER = 8;

describe("a pinned prompt with a sparsity on device webgpu", { skip }, () => {
  if (found.skip !== false) return;
  const { gpu } = found;
  const load = (store: PromptStore, options: LoadOptions, on: GPU = gpu) =>
    loadEngine(
      new Blob([BYTES]),
      { contextLength: 4096, ...options },
      { ...TEST_HOST, gpu: async () => on, openPromptStore: () => store },
    );
  const request = { id: "book", content: text(240), bits: undefined, sparsity: 0.8, encrypt: false } as const;
  /** Prefilled in WASM, which is sooner done. */
  const pinned = async (options: LoadOptions = {}) => {
    const store = new MemoryPromptStore();
    const wasm = await load(store, options);
    const { key } = await opened(wasm.pinned.pin(request, never));
    const expected = await answer(wasm, key);
    await wasm.dispose();
    return { store, expected };
  };
  const open = (engine: Engine) => opened(engine.pinned.open("book", true, never));
  const answer = async (engine: Engine, key: string) => {
    const { ids, end } = await collect(
      engine.generate({ ...greedy([], ANSWER), prompt: { ...QUESTION, pinned: key } }),
    );
    return { ids, attention: end.usage.attention };
  };
  const assertAlike = (own: Awaited<ReturnType<typeof answer>>, other: typeof own) => {
    assert.deepEqual(own.ids, other.ids);
    for (const phase of ["prefill", "decode"] as const) {
      assert.equal(own.attention[phase].policy, "squeezed");
      for (const number of ["keysRead", "missingMass"] as const)
        assert.ok(
          Math.abs(own.attention[phase][number]! - other.attention[phase][number]!) < 0.01,
          `${phase}: ${number} is ${own.attention[phase][number]}, not ${other.attention[phase][number]}`,
        );
    }
  };

  for (const format of ["f32", "f16", "q8"] as const)
    test(`gives WASM's tokens and reads as many keys, with one read-back a token: ${format} cache`, async () => {
      const { store, expected } = await pinned({ kvCache: { format } });
      const spy = spiedGpu(gpu);
      const engine = await load(store, { device: "webgpu", kvCache: { format } }, spy.gpu);
      const { key } = await open(engine);
      const before = spy.state.nMaps;
      assertAlike(await answer(engine, key), expected);
      assert.equal(spy.state.nMaps - before, ANSWER);
      await engine.dispose();
    });

  test("a lost device takes the clusters with it: they come back with the prompt, and the tokens are the same", async () => {
    const { store, expected } = await pinned();
    const spy = spiedGpu(gpu);
    const engine = await load(store, { device: "webgpu" }, spy.gpu);
    const { key } = await open(engine);
    assertAlike(await answer(engine, key), expected);
    const lost = spy.devices.at(-1)!;
    lost.destroy();
    await lost.lost;
    // The answer under way computes what it needs anew, densely; the next one reads the prompt from the store.
    const during = await collect(
      engine.generate({ ...greedy([], ANSWER), prompt: { ...QUESTION, pinned: key } }),
    );
    assert.equal(during.ids.length, ANSWER);
    assertAlike(await answer(engine, key), expected);
    await engine.dispose();
  });

  test("memory does not grow from one pinned prompt to the next", async () => {
    const { store } = await pinned();
    const engine = await load(store, { device: "webgpu" });
    const once = async () => {
      const { key } = await open(engine);
      await answer(engine, key);
      await engine.pinned.close(key);
      // Answers that are kept for later go on from it; another one takes their place.
      for (let i = 0; i < 7; i++) await collect(engine.generate(greedy([50 + i, 60], 2)));
      return engine.memory().gpu;
    };
    await once();
    const before = await once();
    assert.ok((await once()) <= before * 1.01 && (await once()) <= before * 1.01, `from ${before} bytes`);
    await engine.dispose();
  });
});
