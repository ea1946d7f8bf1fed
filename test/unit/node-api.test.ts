/** The Node build as a program uses it: paths, threads, split files, the worker's death, errors across the boundary. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import type * as Inlay from "../../src/index.node.ts";
import { makeGgufShards } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { sharedPath } from "../fixtures/shared.ts";

const BUNDLE = "../../dist/node.mjs";
const { InlayError, loadModel } = (await import(BUNDLE)) as typeof Inlay;

const gpu = await nodeGpu();

const folder = mkdtempSync(join(tmpdir(), "inlay-node-api-"));
after(() => rmSync(folder, { recursive: true }));
const path = join(folder, "tiny.gguf");
writeFileSync(path, tinyGguf("tiny-llama", { type: "Q4_K_M", seed: 3 }));

const MESSAGES = [{ role: "user", content: "Hello there" }] as const;
const REQUEST = { messages: MESSAGES, temperature: 0, max_tokens: 20 } as const;

async function answer(model: Inlay.Model): Promise<string> {
  return (await model.chat.completions.create(REQUEST)).choices[0]!.message.content;
}

const inlayError = (code: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof InlayError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, message);
  return true;
};

describe("threads", () => {
  test("any number of them gives the same answer", async () => {
    const answers: string[] = [];
    for (const threads of [1, 2, 3]) {
      const model = await loadModel(path, { device: "wasm", threads });
      assert.equal(model.config.device.threads, threads);
      answers.push(await answer(model));
      await model.dispose();
    }
    assert.ok(answers[0]!.length > 0);
    assert.deepEqual(new Set(answers).size, 1, JSON.stringify(answers));
  });

  test("more than any machine has are refused", () =>
    assert.rejects(loadModel(path, { threads: 65 }), inlayError("invalid-option", /threads is 65/)));
});

test("a split model loads from the path of any of its files", async () => {
  const shards = makeGgufShards("tiny-llama", 3, { type: "Q4_K_M", seed: 3 });
  const names = shards.map((bytes, i) => {
    const name = join(folder, `split-${String(i + 1).padStart(5, "0")}-of-00003.gguf`);
    writeFileSync(name, bytes);
    return name;
  });
  const whole = await loadModel(path, { device: "wasm", threads: 1 });
  const expected = await answer(whole);
  await whole.dispose();
  for (const name of names) {
    const model = await loadModel(name, { device: "wasm", threads: 1 });
    assert.equal(await answer(model), expected);
    await model.dispose();
  }
  const asBlobs = await loadModel(
    [2, 0, 1].map((i) => new Blob([shards[i]!])),
    { device: "wasm", threads: 1 },
  );
  assert.equal(await answer(asBlobs), expected);
  await asBlobs.dispose();
  rmSync(names[1]!);
  await assert.rejects(loadModel(names[0]!), inlayError("source-failed", /no file .*00002-of-00003/));
});

test("two models at once do not affect each other", async () => {
  const options = { device: "wasm", threads: 1 } as const;
  const [a, b] = await Promise.all([
    loadModel(path, options),
    loadModel(tinyGguf("tiny-qwen3", { seed: 5 }), options),
  ]);
  const [textA, textB] = await Promise.all([answer(a), answer(b)]);
  assert.equal(a.config.architecture, "llama");
  assert.equal(b.config.architecture, "qwen3");
  await b.dispose();
  assert.equal(await answer(a), textA);
  assert.notEqual(textA, textB);
  await a.dispose();
});

describe("errors keep code, details and stack across the boundary", () => {
  test("a file that is none", () =>
    assert.rejects(loadModel(join(folder, "none.gguf")), inlayError("source-failed", /none\.gguf/)));

  test("a folder", () => assert.rejects(loadModel(folder), inlayError("source-failed", /not a file/)));

  test("a prompt that does not fit", async () => {
    const model = await loadModel(path, { device: "wasm", threads: 1, contextLength: 32 });
    const long = model.chat.completions.create({ messages: [{ role: "user", content: "word ".repeat(50) }] });
    await assert.rejects(long, (error) => {
      inlayError("context-full", /32 positions/)(error);
      assert.equal((error as Inlay.InlayError).details.contextLength, 32);
      assert.match((error as Error).stack!, /generate/);
      return true;
    });
    await model.dispose();
  });

  test("a damaged tensor is named", async () => {
    const bytes = tinyGguf("tiny-llama", { type: "F32", seed: 3 });
    new DataView(bytes.buffer).setFloat32(bytes.byteLength - 4096, Number.NaN, true);
    await assert.rejects(loadModel(bytes), inlayError("invalid-model", /not finite.*row \d+, column \d+/));
  });
});

test("an engine that dies rejects everything that waits for it", async () => {
  const dying = join(folder, "dying.mjs");
  // The real engine's entry, which ends itself at the first message of a request.
  writeFileSync(
    dying,
    `import { parentPort } from "node:worker_threads";
     await import(${JSON.stringify(new URL("../../dist/engine-worker.node.mjs", import.meta.url).href)});
     let nMessages = 0;
     parentPort.on("message", () => { if (++nMessages > 1) process.exit(3); });`,
  );
  const model = await loadModel(path, { device: "wasm", threads: 1, assets: { worker: dying } });
  const died = inlayError("worker-died", /status 3/);
  await assert.rejects(model.tokenize("x"), died);
  await assert.rejects(model.chat.completions.create(REQUEST), died);
  await model.dispose();
});

test("the engine's script may be a file URL; one that cannot be started is said", async () => {
  const script = new URL("../../dist/engine-worker.node.mjs", import.meta.url);
  const options = { device: "wasm", threads: 1 } as const;
  const model = await loadModel(path, { ...options, assets: { worker: script.href } });
  assert.ok((await answer(model)).length > 0);
  await model.dispose();
  const relative = loadModel(path, { ...options, assets: { worker: "engine-worker.node.mjs" } });
  await assert.rejects(relative, inlayError("worker-died", /engine-worker\.node\.mjs could not be started/));
  const absent = loadModel(path, { ...options, assets: { worker: join(folder, "absent.mjs") } });
  await assert.rejects(absent, inlayError("worker-died", /absent\.mjs/));
});

test("peak memory stays below 1.15 times the file, plus KV cache and activations", async (t) => {
  const file = join(folder, "smollm2.gguf");
  const { planGguf, PRESETS } = await import("../../tools/gguf/model.mjs");
  const spec = { ...PRESETS["smollm2-135m"], nLayers: 12 };
  const { openSync, writeSync, closeSync, statSync } = await import("node:fs");
  const fd = openSync(file, "w");
  for (const piece of planGguf(spec, { type: "Q8_0", seed: 1, name: "memory test" }).pieces())
    writeSync(fd, piece);
  closeSync(fd);
  const { size } = statSync(file);
  const model = await loadModel(file, { device: "wasm", threads: 1, contextLength: 64 });
  const { weights, wasmHeap } = await model.memory();
  t.diagnostic(`file ${size}, weights ${weights}, WASM heap ${wasmHeap}`);
  assert.ok(weights <= size * 1.01, `weights take ${weights} bytes of a file of ${size}`);
  // The heap begins with 16 MiB and holds the vocabulary too.
  assert.ok(wasmHeap <= size * 1.15 + (16 << 20), `the heap is ${wasmHeap} bytes`);
  await model.dispose();
});

interface GreedyCase {
  readonly prompt: string;
  readonly generatedTokens: number[];
}

/** A model file and llama.cpp's answers; undefined where there is no shared data. */
function greedyCases(name: string, file: string): { modelPath: string; cases: GreedyCase[] } | undefined {
  const modelPath = sharedPath("data/models", name, `${file}.gguf`);
  const expected = sharedPath("data/models", name, "expected-greedy.json");
  if (modelPath === undefined || expected === undefined) return undefined;
  return { modelPath, cases: JSON.parse(readFileSync(expected, "utf8")).variants[`${file}.gguf`] };
}

/** Asserts that `model` answers as llama.cpp does, in the first `nTokens` tokens. */
async function assertGreedy(
  model: Inlay.Model,
  cases: readonly GreedyCase[],
  nTokens: number,
): Promise<void> {
  for (const { prompt, generatedTokens } of cases) {
    const wanted = generatedTokens.slice(0, nTokens);
    const ids: number[] = [];
    const request = { prompt, max_tokens: wanted.length, temperature: 0 };
    for await (const event of model.complete(request)) {
      if (event.kind === "text") ids.push(...event.tokenIds);
      if (event.kind === "end" && event.endTokenId !== undefined) ids.push(event.endTokenId);
    }
    assert.deepEqual(ids, wanted, JSON.stringify(prompt));
  }
}

describe("llama.cpp's greedy tokens through the Node build", () => {
  for (const [name, file] of [
    ["stories260K", "stories260K-f32"],
    ["stories260K", "stories260K-q8_0"],
    ["tinystories-656k", "tinystories-656k-f32"],
    ["tinystories-656k", "tinystories-656k-q8_0"],
  ] as const)
    for (const threads of [1, 2])
      test(`${file}, ${threads} thread(s)`, async (t) => {
        const found = greedyCases(name, file);
        if (!found) return t.skip("../shared is not on this machine");
        const model = await loadModel(found.modelPath, { device: "wasm", threads });
        await assertGreedy(model, found.cases, Infinity);
        await model.dispose();
      });

  // Quantized files: test/unit/webgpu-forward.test.ts.
  for (const name of ["stories260K", "tinystories-656k"])
    test(`${name}-f32 on WebGPU`, async (t) => {
      const found = greedyCases(name, `${name}-f32`);
      if (!found) return t.skip("../shared is not on this machine");
      if (gpu.skip !== false) return t.skip(gpu.skip);
      const model = await loadModel(found.modelPath, { device: "webgpu" });
      assert.equal(model.config.device.kind, "webgpu");
      await assertGreedy(model, found.cases.slice(0, 2), 40);
      await model.dispose();
    });
});
