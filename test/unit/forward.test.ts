/**
 * The whole forward pass in WASM against the f64 reference: every architecture and model shape in F32, and every
 * tensor type.
 *
 * What is compared is the relative error of each position's logits, |a - b| / |b| in the 2-norm. F32 leaves the
 * rounding of sums: 2e-5 is allowed (design: 1e-4). With quantized weights the reference rounds activations as the
 * kernels do, so the same is left (6e-8 measured), until a value lies so close to the edge between two int8 levels that
 * f32 and f64 round it apart: such a value moves the logits of these tiny models, from its position on, by up to 2e-2.
 * So one position at least must agree to 2e-5, and all to 5e-2.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { tensorType } from "../../src/gguf/tensor-types.ts";
import type { PresetName } from "../../tools/gguf/model.mjs";
import { FILE_TYPES, TINY_MODELS, tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { uniform } from "../fixtures/random.ts";
import { logitsOf, openTransformer } from "../fixtures/transformer.ts";
import { cannotRun, instantiate, SINGLE_THREAD_VARIANTS } from "../fixtures/wasm.ts";
import { parseGguf } from "../reference/gguf-file.ts";
import { roundInput } from "../reference/input-rounding.ts";
import { forward, loadReferenceModel, type ReferenceModel } from "../reference/model.ts";

const FLOAT_IDS = ["F32", "F16", "BF16"].map((name) => tensorType(name as "F32").id);
const [F32, F16] = FLOAT_IDS as [number, number];
const Q8_0 = tensorType("Q8_0").id;

/** The reference with activations rounded as Inlay's kernels round them: f16 for F16, int8 per 32 for quantized weights. */
function referenceModel(bytes: Uint8Array): ReferenceModel {
  const { tensors } = parseGguf(bytes);
  return {
    ...loadReferenceModel(bytes, "exact"),
    input(name, x) {
      const typeId = tensors.get(name)?.typeId ?? tensors.get("token_embd.weight")!.typeId;
      if (FLOAT_IDS.includes(typeId)) return roundInput(typeId === F16 ? F16 : F32, x);
      return roundInput(Q8_0, x);
    },
  };
}

function randomIds(n: number, vocabSize: number, seed: number): Uint32Array<ArrayBuffer> {
  const next = uniform(seed);
  return Uint32Array.from({ length: n }, () => Math.floor(next() * vocabSize));
}

/** Relative error of each position's logits. */
function relativeErrors(actual: Float32Array, expected: readonly ArrayLike<number>[]): number[] {
  return expected.map((row, t) => {
    let difference = 0;
    let size = 0;
    for (let i = 0; i < row.length; i++) {
      difference += (actual[t * row.length + i]! - row[i]!) ** 2;
      size += row[i]! ** 2;
    }
    return Math.sqrt(difference / size);
  });
}

const SUMS_ROUNDED = 2e-5;
const LEVELS_ROUNDED_APART = 5e-2;

async function checkModel(
  preset: PresetName,
  type: (typeof FILE_TYPES)[number],
  variant: (typeof SINGLE_THREAD_VARIANTS)[number],
  nTokens: number,
  chunks: readonly number[],
) {
  const bytes = tinyGguf(preset, { type, seed: 11 });
  const model = await openTransformer(bytes, await instantiate(variant));
  const ids = randomIds(nTokens, model.config.vocabSize, 5);
  const expected = forward(referenceModel(bytes), Array.from(ids));
  for (const chunk of chunks) {
    const errors = relativeErrors(await logitsOf(model, ids, chunk), expected);
    const where = `${preset} ${type}, chunks of ${chunk}: relative errors ${errors}`;
    assert.ok(Math.min(...errors) <= SUMS_ROUNDED, where);
    assert.ok(Math.max(...errors) <= (type === "F32" ? SUMS_ROUNDED : LEVELS_ROUNDED_APART), where);
  }
  assert.equal(model.ops.memory().scratch, 0, "activations are freed");
}

for (const variant of SINGLE_THREAD_VARIANTS) {
  describe(`forward pass, ${variant} build`, { skip: cannotRun(variant) }, () => {
    for (const preset of TINY_MODELS)
      test(`${preset} in F32, at once, in chunks and token by token`, () =>
        checkModel(preset, "F32", variant, 70, [70, 33, 7, 1]));
    for (const type of FILE_TYPES)
      test(`${type}`, () => checkModel("tiny-llama-k", type, variant, 12, [12, 5]));
  });
}

test("more than 256 keys, where the flash kernel takes over from the exact one", async () => {
  const bytes = tinyGguf("tiny-llama", { type: "F32", seed: 3 });
  const model = await openTransformer(bytes, await instantiate("simd"));
  const ids = randomIds(300, model.config.vocabSize, 9);
  const expected = forward(referenceModel(bytes), Array.from(ids));
  for (const chunk of [300, 128]) {
    const errors = relativeErrors(await logitsOf(model, ids, chunk), expected);
    assert.ok(Math.max(...errors) <= SUMS_ROUNDED, `chunks of ${chunk}: ${errors}`);
  }
});
