// The product as a web page uses it, through the built bundle: real model files, every kind of source, every device.

import { assert } from "chai";
import { loadModel, type Model, type ModelInput } from "/dist/inlay.js";
import { forward, loadReferenceModel, type ReferenceModel } from "../reference/model.ts";
import { isIsolated, requireShared, requireThreads, requireWebGpu } from "./harness/index.ts";

interface GreedyCase {
  prompt: string;
  promptTokens: number[];
  generatedTokens: number[];
}

const MODELS = [
  ["stories260K", "stories260K-f32.gguf"],
  ["stories260K", "stories260K-q8_0.gguf"],
  ["tinystories-656k", "tinystories-656k-f32.gguf"],
  ["tinystories-656k", "tinystories-656k-q8_0.gguf"],
] as const;

/** No threads take part in device "webgpu", so that isolation changes nothing; a software GPU takes long to compile. */
const GPU_MODELS = isIsolated ? [] : MODELS;

async function expectedCases(context: Mocha.Context, folder: string, file: string): Promise<GreedyCase[]> {
  const url = await requireShared(context, `data/models/${folder}/expected-greedy.json`);
  const expected = (await (await fetch(url)).json()) as { variants: Record<string, GreedyCase[]> };
  return expected.variants[file]!;
}

/** Sampled ids of a greedy answer, the end token included. */
async function greedyIds(model: Model, prompt: string | Uint32Array, nTokens: number): Promise<number[]> {
  const ids: number[] = [];
  for await (const event of model.complete({ prompt, max_tokens: nTokens, temperature: 0 })) {
    if (event.kind === "text") ids.push(...event.tokenIds);
    if (event.kind === "end" && event.endTokenId !== undefined) ids.push(event.endTokenId);
  }
  return ids;
}

async function assertGreedy(
  context: Mocha.Context,
  model: Model,
  folder: string,
  file: string,
  nTokens: number,
) {
  for (const { prompt, generatedTokens } of await expectedCases(context, folder, file)) {
    const wanted = generatedTokens.slice(0, nTokens);
    assert.deepEqual(
      await greedyIds(model, prompt, wanted.length),
      wanted,
      `${file}: ${JSON.stringify(prompt)}`,
    );
  }
}

describe("llama.cpp's greedy tokens", function () {
  this.timeout(240_000);

  for (const [folder, file] of MODELS)
    it(`${file} in WASM, one thread`, async function () {
      const url = await requireShared(this, `data/models/${folder}/${file}`);
      const model = await loadModel(url, { device: "wasm", threads: 1 });
      try {
        assert.equal(model.config.device.threads, 1);
        await assertGreedy(this, model, folder, file, 200);
      } finally {
        await model.dispose();
      }
    });

  for (const [folder, file] of MODELS)
    it(`${file} in WASM, two threads`, async function () {
      requireThreads(this);
      const url = await requireShared(this, `data/models/${folder}/${file}`);
      const model = await loadModel(url, { device: "wasm", threads: 2 });
      try {
        assert.equal(model.config.device.threads, 2);
        assert.match(model.config.device.wasm, /threads/);
        await assertGreedy(this, model, folder, file, 200);
      } finally {
        await model.dispose();
      }
    });

  for (const [folder, file] of MODELS)
    it(`${file} on hybrid`, async function () {
      await requireWebGpu(this);
      const url = await requireShared(this, `data/models/${folder}/${file}`);
      const model = await loadModel(url, { device: "hybrid" });
      try {
        assert.equal(model.config.device.kind, "hybrid");
        assert.isNotEmpty(model.config.device.gpu);
        await assertGreedy(this, model, folder, file, 200);
      } finally {
        await model.dispose();
      }
    });

  for (const [folder, file] of GPU_MODELS.filter(([, name]) => name.includes("f32")))
    it(`${file} on WebGPU`, async function () {
      await requireWebGpu(this);
      const url = await requireShared(this, `data/models/${folder}/${file}`);
      const model = await loadModel(url, { device: "webgpu" });
      try {
        assert.equal(model.config.device.kind, "webgpu");
        assert.isNotEmpty(model.config.device.gpu);
        await assertGreedy(this, model, folder, file, 40);
        const { weights, gpu } = await model.memory();
        assert.isAbove(weights, 1_000_000);
        assert.isAtLeast(gpu, weights);
      } finally {
        await model.dispose();
      }
    });
});

// llama.cpp rounds the inputs of quantized products to int8, WebGPU does not round them: its choices are those of the
// exact logits, which now and then are others than llama.cpp's.
describe("the exact logits' greedy tokens", function () {
  this.timeout(240_000);

  /** The ids that `model` gives after `tokens` are the exact logits' choices, or as good as they. */
  function assertExact(
    reference: ReferenceModel,
    tokens: readonly number[],
    ids: readonly number[],
    what: string,
  ) {
    const exact = forward(reference, [...tokens, ...ids].slice(0, -1)).slice(tokens.length - 1);
    for (const [step, id] of ids.entries()) {
      const best = Math.max(...exact[step]!);
      assert.isAtLeast(exact[step]![id]!, best - 1e-4 * Math.abs(best), `${what}: token ${step}`);
    }
  }

  // On hybrid, attention moves from WASM to the GPU at the 256th token.
  for (const [folder, file] of MODELS.filter(([, name]) => name.includes("f32")))
    it(`${file} with attention on WebGPU`, async function () {
      await requireWebGpu(this);
      const url = await requireShared(this, `data/models/${folder}/${file}`);
      const reference = loadReferenceModel(new Uint8Array(await (await fetch(url)).arrayBuffer()));
      const model = await loadModel(url, { device: "hybrid" });
      try {
        const [{ promptTokens, generatedTokens }] = (await expectedCases(this, folder, file)) as [GreedyCase];
        const start = [...promptTokens, ...generatedTokens];
        const tokens = Array.from({ length: 300 }, (_, i) => start[i % start.length]!);
        const { gpu } = await model.memory();
        assertExact(reference, tokens, await greedyIds(model, Uint32Array.from(tokens), 40), "300 tokens");
        assert.isAbove((await model.memory()).gpu, gpu, "there are pages on the GPU");
        assertExact(
          reference,
          promptTokens,
          await greedyIds(model, Uint32Array.from(promptTokens), 10),
          "cut",
        );
      } finally {
        await model.dispose();
      }
    });

  for (const [folder, file] of GPU_MODELS.filter(([, name]) => name.includes("q8_0")))
    it(`${file} on WebGPU`, async function () {
      await requireWebGpu(this);
      const url = await requireShared(this, `data/models/${folder}/${file}`);
      const reference = loadReferenceModel(new Uint8Array(await (await fetch(url)).arrayBuffer()));
      const model = await loadModel(url, { device: "webgpu" });
      try {
        for (const { prompt, promptTokens } of await expectedCases(this, folder, file)) {
          const ids = await greedyIds(model, prompt, 40);
          assertExact(reference, promptTokens, ids, JSON.stringify(prompt));
        }
      } finally {
        await model.dispose();
      }
    });
});

describe("every kind of source", function () {
  this.timeout(60_000);
  const FOLDER = "stories260K";
  const FILE = "stories260K-q8_0.gguf";

  const sources: [string, (url: string) => Promise<ModelInput>][] = [
    ["a relative URL", async (url) => url],
    ["a URL object", async (url) => new URL(url, location.href)],
    ["a Blob", async (url) => (await fetch(url)).blob()],
    ["a File", async (url) => new File([await (await fetch(url)).blob()], "model.gguf")],
    ["an ArrayBuffer", async (url) => (await fetch(url)).arrayBuffer()],
    ["a Uint8Array", async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer())],
    ["a ReadableStream", async (url) => (await fetch(url)).body!],
  ];
  for (const [name, open] of sources)
    it(name, async function () {
      const url = await requireShared(this, `data/models/${FOLDER}/${FILE}`);
      const source = await open(url);
      const progress: number[] = [];
      const model = await loadModel(source, { device: "wasm", onProgress: (p) => progress.push(p.progress) });
      try {
        assert.equal(progress.at(-1), 1);
        assert.deepEqual(
          [...progress].sort((a, b) => a - b),
          progress,
        );
        const [{ prompt, generatedTokens }] = (await expectedCases(this, FOLDER, FILE)) as [GreedyCase];
        assert.deepEqual(await greedyIds(model, prompt, 12), generatedTokens.slice(0, 12));
        if (source instanceof ArrayBuffer)
          assert.isAbove(source.byteLength, 0, "the caller's buffer stays usable");
      } finally {
        await model.dispose();
      }
    });
});

it("says where it runs", async function () {
  const url = await requireShared(this, "data/models/stories260K/stories260K-q8_0.gguf");
  const model = await loadModel(url, { device: "wasm" });
  try {
    const { wasm, threads } = model.config.device;
    assert.equal(wasm.includes("threads"), threads > 1);
    if (!isIsolated) assert.equal(threads, 1);
    const memory = await model.memory();
    assert.isAbove(memory.weights, 250_000);
    assert.isAbove(memory.wasmHeap, memory.weights);
  } finally {
    await model.dispose();
  }
});
