/**
 * The anchor of everything else: the f64 forward pass gives llama.cpp's greedy ids and log-probabilities on two really
 * trained models. Expectations: ../shared/data/models, made by wllama 3.8.1 (llama.cpp b11364).
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { TINY_MODELS, tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { sharedPath } from "../fixtures/shared.ts";
import { argmax, logSoftmax, type Vector } from "../reference/math.ts";
import { forward, loadReferenceModel } from "../reference/model.ts";

interface GreedyCase {
  readonly prompt: string;
  readonly promptTokens: number[];
  readonly generatedTokens: number[];
  readonly firstStepsTop5Logprobs: [id: number, logprob: number][][];
}

const MODELS = ["stories260K", "tinystories-656k"];

function casesOf(model: string, variant: string): { file: Uint8Array; cases: GreedyCase[] } | undefined {
  const path = sharedPath("data", "models", model, `${model}-${variant}.gguf`);
  const expectations = sharedPath("data", "models", model, "expected-greedy.json");
  if (!path || !expectations) return undefined;
  const { variants } = JSON.parse(readFileSync(expectations, "utf8"));
  return { file: readFileSync(path), cases: variants[`${model}-${variant}.gguf`] };
}

/** The logits behind every generated token, the expected tokens being fed. */
function teacherForced(model: ReturnType<typeof loadReferenceModel>, c: GreedyCase): Vector[] {
  const tokens = [...c.promptTokens, ...c.generatedTokens];
  return forward(model, tokens.slice(0, -1)).slice(c.promptTokens.length - 1);
}

/** Largest difference to the expected log-probabilities of the first steps. */
function worstLogprob(logits: readonly Vector[], c: GreedyCase): number {
  let worst = 0;
  for (const [step, top] of c.firstStepsTop5Logprobs.entries()) {
    const logprobs = logSoftmax(logits[step]!);
    for (const [id, expected] of top) worst = Math.max(worst, Math.abs(logprobs[id]! - expected));
  }
  return worst;
}

for (const name of MODELS) {
  const f32 = casesOf(name, "f32");
  test(`${name} f32: llama.cpp's ids and log-probabilities`, { skip: !f32 && "no shared data here" }, () => {
    const model = loadReferenceModel(f32!.file);
    for (const c of f32!.cases) {
      const logits = teacherForced(model, c);
      assert.deepEqual(logits.map(argmax), c.generatedTokens, JSON.stringify(c.prompt));
      // llama.cpp computes in f32 and prints six decimals; measured 1e-5.
      assert.ok(worstLogprob(logits, c) < 3e-5, `${JSON.stringify(c.prompt)}: ${worstLogprob(logits, c)}`);
    }
  });

  const q8 = casesOf(name, "q8_0");
  // llama.cpp rounds activations to int8. The same rounding in f64 gives the same levels until one falls on the
  // other side of a tie, and from there on differs by a few hundredths: so some steps must agree exactly, and all
  // roughly.
  for (const inputs of ["exact", "ggml"] as const) {
    test(`${name} q8_0, ${inputs} inputs: llama.cpp's ids but at near ties`, {
      skip: !q8 && "no shared data here",
    }, () => {
      const model = loadReferenceModel(q8!.file, inputs);
      let nExact = 0;
      for (const c of q8!.cases) {
        const logits = teacherForced(model, c);
        for (const [step, row] of logits.entries()) {
          const behind = row[argmax(row)]! - row[c.generatedTokens[step]!]!;
          assert.ok(
            behind < 0.1,
            `${JSON.stringify(c.prompt)} step ${step}: the expected token is ${behind} behind`,
          );
        }
        assert.ok(worstLogprob(logits, c) < 0.3, `${JSON.stringify(c.prompt)}: ${worstLogprob(logits, c)}`);
        for (const [step, top] of c.firstStepsTop5Logprobs.entries()) {
          if (worstLogprob([logits[step]!], { ...c, firstStepsTop5Logprobs: [top] }) < 3e-5) nExact++;
        }
      }
      if (inputs === "ggml") assert.ok(nExact >= 8, `${nExact} steps agree to 3e-5`);
    });
  }
}

for (const name of TINY_MODELS) {
  test(`${name}: alive`, () => {
    const bytes = tinyGguf(name, { type: "Q8_0" });
    const model = loadReferenceModel(bytes);
    const prompt = Array.from({ length: 48 }, (_, i) => 3 + ((i * 37) % 250));
    const logits = forward(model, prompt);
    assert.equal(logits.length, prompt.length);
    assert.ok(logits.every((row) => row.every(Number.isFinite)));
    // Well separated choices that depend on the place: what comparisons of backends need.
    const choices = logits.map(argmax);
    assert.ok(new Set(choices).size > 8, `only ${[...new Set(choices)]}`);
    const spread = logits.map((row) => Math.max(...row) - Math.min(...row));
    assert.ok(
      spread.every((s) => s > 3 && s < 60),
      `${spread}`,
    );
    // What comes later changes nothing before.
    assert.deepEqual(forward(model, prompt.slice(0, 10)), logits.slice(0, 10));
  });
}

/** Pairs of models that must differ: a feature that changed nothing would not be tested by its model. */
const DIFFERENT: [string, Parameters<typeof tinyGguf>[0], Parameters<typeof tinyGguf>[0]][] = [
  ["sliding window", "tiny-llama", "tiny-llama-window"],
  ["yarn", "tiny-llama", "tiny-llama-yarn"],
  ["linear scaling", "tiny-llama", "tiny-llama-linear"],
  ["biases", "tiny-llama", "tiny-llama-bias"],
];

for (const [what, a, b] of DIFFERENT) {
  test(`${what} changes the answer`, () => {
    const prompt = Array.from({ length: 48 }, (_, i) => 20 + i);
    const last = (model: typeof a) => forward(loadReferenceModel(tinyGguf(model)), prompt).at(-1)!;
    const before = last(a);
    const after = last(b);
    assert.ok(before.some((v, i) => Math.abs(v - after[i]!) > 0.1));
  });
}
