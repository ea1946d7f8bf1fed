/** What selections keep of a trained model's attention over real text (algorithms.md F.6-4). */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { measureRecall, ORACLE, POLICIES, sharedIds } from "../../bench/selection-quality.ts";
import { sharedPath } from "../fixtures/shared.ts";
import { openTransformer } from "../fixtures/transformer.ts";
import { instantiate } from "../fixtures/wasm.ts";

const file = sharedPath("data", "models", "stories260K", "stories260K-f32.gguf");

test("at a quarter of the keys dhsa keeps more than the window, and nearly what whole pages can", {
  skip: file === undefined && "../shared is not on this machine",
}, async () => {
  const bytes = new Uint8Array(readFileSync(file!));
  const ids = await sharedIds(bytes, "alice.txt", 1024);
  const model = await openTransformer(bytes, await instantiate("simd"));
  const budget = { tokens: 0, fraction: 0.25, sinks: 32, local: 64, denseBelow: 0 };
  const recalls = await measureRecall(model, ids, budget, [ORACLE, ...POLICIES], 13);
  const kept = Object.fromEntries(recalls.map(({ policy, mean }) => [policy, mean]));
  const shown = JSON.stringify(kept);
  assert.ok(kept.dhsa! > kept.window!, shown);
  assert.ok(kept.dhsa! >= 0.95 * kept.oracle!, shown);
  assert.ok(kept.oracle! < 1 && kept.oracle! >= kept["vertical-slash"]!, shown);
  for (const { policy, pagesRead } of recalls)
    assert.ok(pagesRead < 0.45, `${policy} reads ${pagesRead} of the pages`);
});
