/**
 * Trained models with quantized caches beside f32 ones: what the codec's steps allow.
 *
 * A code is off by at most half a step, and steps are the range over 2^bits - 1: q4's are 17 times q8's. To first order
 * logits move in proportion, and KL divergence is second order in that, so KL(q4) is about 289 times KL(q8); an error of
 * another kind (a page misplaced, a wrong scale) would not shrink with the step. q8's own bound: a step is at most
 * 1.27 / 255 of a range (FP8 rounds two parameters outward by up to an eighth), so keys and values are off by 0.25 % of their
 * range and logits, of which these models have a spread of about 10, by some hundredths: KL, at most an eighth of the
 * squared spread of that error (Hoeffding's lemma), stays below 1e-3 at every position and is far less on average.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { FORMATS, MODELS, measureKvQuality, modelBytes, passages } from "../../bench/kv-quality.ts";

const STEP_RATIO_SQUARED = (255 / 15) ** 2;

for (const name of MODELS) {
  const bytes = modelBytes(name);
  test(`${name}: q8 is all but f32, and errors shrink as steps do`, {
    skip: bytes === undefined && "no shared data here",
  }, async () => {
    const quality = await measureKvQuality(bytes!, await passages(bytes!, 1), FORMATS);
    const [q8, q4, q2] = FORMATS.map((format) => quality.get(format)!);
    const numbers = JSON.stringify({ q8, q4, q2 });
    assert.ok(q8!.klMax <= 1e-3, numbers);
    assert.ok(q8!.kl <= 1e-5 && q8!.kl > 0, numbers);
    assert.ok(q8!.sameTop >= 0.99, numbers);
    const growth = q4!.kl / q8!.kl;
    assert.ok(growth > STEP_RATIO_SQUARED / 4 && growth < STEP_RATIO_SQUARED * 4, `${growth}: ${numbers}`);
    // 2 bits leave four levels: of use only with sinks and window, and never far off with them.
    assert.ok(q2!.kl > q4!.kl && q2!.kl <= 0.2, numbers);
    assert.ok(Math.abs(q4!.perplexity / q4!.perplexityF32 - 1) <= 0.01, numbers);
  });
}
