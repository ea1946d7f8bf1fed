/**
 * The whole forward pass on WebGPU against the f64 reference, and llama.cpp's greedy tokens.
 *
 * What is compared is the relative error of each position's logits, |a - b| / |b| in the 2-norm. The GPU rounds nothing
 * but f32 sums, whatever the weights are: 2e-5 is allowed for every type (design: 1e-4), against the reference that
 * multiplies exactly what the file says. llama.cpp rounds the inputs of quantized products to int8, so its choices
 * for quantized files are not always the exact ones; see the last tests.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, describe, test } from "node:test";
import { isDebug } from "../../src/debug.ts";
import { Checkpoint } from "../../src/engine/yielding.ts";
import { forward as runForward, type Transformer } from "../../src/model/forward.ts";
import { openGpuTransformer } from "../fixtures/gpu-transformer.ts";
import { TINY_MODELS, tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";
import { uniform } from "../fixtures/random.ts";
import { sharedPath } from "../fixtures/shared.ts";
import { densePlan, logitsOf } from "../fixtures/transformer.ts";
import { argmax } from "../reference/math.ts";
import { forward, loadReferenceModel } from "../reference/model.ts";

const RELATIVE = 2e-5;

/** Tokens of an answer that are compared: a software adapter takes 20 ms for each. */
const MAX_TOKENS = 24;

const found = await nodeDevice();
const { skip } = found;

function randomIds(n: number, vocabSize: number, seed: number): Uint32Array<ArrayBuffer> {
  const next = uniform(seed);
  return Uint32Array.from({ length: n }, () => Math.floor(next() * vocabSize));
}

/** Largest relative error of one position's logits. */
function relativeError(actual: Float32Array, expected: readonly ArrayLike<number>[]): number {
  let worst = 0;
  expected.forEach((row, t) => {
    let difference = 0;
    let size = 0;
    for (let i = 0; i < row.length; i++) {
      difference += (actual[t * row.length + i]! - row[i]!) ** 2;
      size += row[i]! ** 2;
    }
    const error = Math.sqrt(difference / size);
    worst = error > worst || Number.isNaN(error) ? error : worst;
  });
  return worst;
}

describe("forward pass on WebGPU", { skip }, () => {
  if (found.skip !== false) return;
  const { device } = found;
  after(() => device.dispose());

  async function checkModel(bytes: Uint8Array<ArrayBuffer>, nTokens: number, chunks: readonly number[]) {
    const model = await openGpuTransformer(bytes, device);
    const ids = randomIds(nTokens, model.config.vocabSize, 5);
    const expected = forward(loadReferenceModel(bytes), Array.from(ids));
    for (const chunk of chunks) {
      const error = relativeError(await logitsOf(model, ids, chunk), expected);
      assert.ok(error <= RELATIVE, `chunks of ${chunk}: relative error ${error}`);
    }
    assert.equal(model.ops.tensors.nLive, 0, "activations are freed");
    model.dispose();
  }

  for (const preset of TINY_MODELS)
    test(`${preset} in F32, in chunks and token by token`, () =>
      checkModel(tinyGguf(preset, { type: "F32", seed: 11 }), 40, [33, 1]));
  // Every type's kernels: webgpu-linear.test.ts.
  for (const type of ["F16", "Q8_0", "Q3_K_M", "Q4_K_M"] as const)
    test(`${type}: inputs of quantized products are not rounded`, () =>
      checkModel(tinyGguf("tiny-llama-k", { type, seed: 11 }), 12, [12, 5]));

  test("only one row of logits crosses back, and none while a prompt is incomplete", async () => {
    const model = await openGpuTransformer(tinyGguf("tiny-llama", { type: "F32", seed: 3 }), device);
    const plan = densePlan(model);
    const cache = model.attention.createCache();
    const ids = randomIds(40, model.config.vocabSize, 9);
    const run = (from: number, to: number, wanted: "none" | "last") =>
      runForward(model, cache, ids.subarray(from, to), plan, wanted, new Checkpoint(undefined));
    assert.equal(await run(0, 20, "none"), undefined);
    // In debug builds the sums of each layer's keys and values over the call's pages cross too, with the logits or alone.
    const { nLayers, nKvHeads, headDim, vocabSize } = model.config;
    const checkedBytes = isDebug ? 2 * nLayers * nKvHeads * headDim * 4 : 0;
    assert.equal(model.ops.crossings.readbacks, isDebug ? 1 : 0);
    assert.equal(model.ops.crossings.readbackBytes, checkedBytes);
    for (const [from, to, nPages] of [
      [20, 39, 2],
      [39, 40, 1],
    ] as const) {
      const before = { ...model.ops.crossings };
      const logits = await run(from, to, "last");
      assert.equal(logits!.length, model.config.vocabSize);
      assert.equal(model.ops.crossings.readbacks - before.readbacks, 1);
      assert.equal(
        model.ops.crossings.readbackBytes - before.readbackBytes,
        vocabSize * 4 + nPages * checkedBytes,
      );
    }
    model.dispose();
  });

  test("decoding needs no more buffers from token to token", async () => {
    const model = await openGpuTransformer(tinyGguf("tiny-llama", { type: "F32", seed: 3 }), device);
    const plan = densePlan(model);
    const cache = model.attention.createCache();
    const scratch: number[] = [];
    const ids = randomIds(30, model.config.vocabSize, 9);
    for (let i = 0; i < ids.length; i++) {
      await runForward(model, cache, ids.subarray(i, i + 1), plan, "last", new Checkpoint(undefined));
      scratch.push(model.ops.memory().scratch);
    }
    const [early, late] = [scratch[4]!, scratch.at(-1)!];
    assert.ok(late <= early, `scratch grew from ${early} to ${late} bytes`);
    model.dispose();
  });

  for (const name of ["stories260K", "tinystories-656k"] as const)
    for (const type of ["f32", "q8_0"] as const) {
      const file = `${name}-${type}.gguf`;
      const path = sharedPath("data", "models", name, file);
      const expectations = sharedPath("data", "models", name, "expected-greedy.json");
      const isMissing = path === undefined || expectations === undefined;
      const what =
        type === "f32"
          ? "llama.cpp's greedy tokens"
          : "exact logits, and llama.cpp's greedy tokens where int8 inputs do not decide";
      test(`${file}: ${what}`, { skip: isMissing && "no shared data here" }, async (t) => {
        const bytes = new Uint8Array(readFileSync(path!));
        const model = await openGpuTransformer(bytes, device);
        const { variants } = JSON.parse(readFileSync(expectations!, "utf8"));
        const reference = loadReferenceModel(bytes);
        const asGgml = loadReferenceModel(bytes, "ggml");
        let nTokens = 0;
        let nNear = 0;
        for (const { prompt, promptTokens, generatedTokens: answer } of variants[file]) {
          const generatedTokens = answer.slice(0, MAX_TOKENS);
          const tokens: number[] = [...promptTokens, ...generatedTokens].slice(0, -1);
          const actual = await decoded(model, promptTokens, tokens);
          const first = promptTokens.length - 1;
          const exact = forward(reference, tokens).slice(first);
          const error = relativeError(actual, exact);
          assert.ok(error <= RELATIVE, `${JSON.stringify(prompt)}: relative error ${error}`);
          const rounded = type === "f32" ? exact : forward(asGgml, tokens).slice(first);
          for (const [step, id] of generatedTokens.entries()) {
            nTokens++;
            const row = actual.subarray(step * exact[0]!.length, (step + 1) * exact[0]!.length);
            const choice = argmax(row);
            if (choice === id) continue;
            // The exact logits prefer another token by less than rounding inputs to int8 moves them.
            assert.equal(type, "q8_0", `${JSON.stringify(prompt)}: token ${step} is ${choice}, not ${id}`);
            nNear++;
            const margin = exact[step]![choice]! - exact[step]![id]!;
            const moved = Math.max(...exact[step]!.map((v, i) => Math.abs(v - rounded[step]![i]!)));
            assert.equal(choice, argmax(exact[step]!));
            assert.ok(
              margin <= 2 * moved,
              `token ${step}: ${choice} leads ${id} by ${margin}, int8 moves ${moved}`,
            );
          }
        }
        t.diagnostic(`${nTokens} tokens, ${nNear} of them others than llama.cpp's`);
        model.dispose();
      });
    }
});

/** Logits behind `tokens` from the last of `promptTokens` on: the prompt in one call, the others one by one. */
async function decoded(model: Transformer, promptTokens: number[], tokens: number[]): Promise<Float32Array> {
  const { vocabSize } = model.config;
  const plan = densePlan(model);
  const cache = model.attention.createCache();
  const out = new Float32Array((tokens.length - promptTokens.length + 1) * vocabSize);
  for (let step = 0, from = 0, to = promptTokens.length; from < tokens.length; step++, from = to, to++) {
    const ids = Uint32Array.from(tokens.slice(from, to));
    const logits = await runForward(model, cache, ids, plan, "last", new Checkpoint(undefined));
    out.set(logits!, step * vocabSize);
  }
  cache.dispose();
  return out;
}
