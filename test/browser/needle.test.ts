// The needle evaluation in a page: the cases are those of Node, and a model is asked through its handle.

import { assert } from "chai";
import { loadModel } from "/dist/inlay.js";
import { heatMap } from "../../src/eval/heat-map.ts";
import { evaluateNeedles } from "../../src/eval/needle.ts";
import { makeNeedleCase } from "../../src/eval/needle-cases.ts";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";

it("makes the case that Node makes", () => {
  const { document, question, answer } = makeNeedleCase({
    task: "single",
    length: 256,
    depth: 0,
    index: 0,
    seed: 1,
  });
  assert.equal(
    `${document.length} ${question} ${answer}`,
    "747 Do you know the invoice of Wenholm? The invoice of Wenholm is 6346.",
  );
});

it("asks a model and reports what it answered", async () => {
  const bytes = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 2048 }, { type: "Q8_0", seed: 3 });
  const model = await loadModel(bytes, { device: "wasm" });
  try {
    const done: number[] = [];
    const report = await evaluateNeedles(model, {
      tasks: ["single"],
      lengths: [256],
      depths: [0, 1],
      count: 1,
      onProgress: (progress) => done.push(progress.done),
    });
    assert.deepEqual(done, [1, 2]);
    assert.equal(report.overall.total, 2);
    for (const { answer, expected, isRight } of report.answers) assert.equal(isRight, answer === expected);
    assert.include(heatMap(report, "tiny"), "<svg");
  } finally {
    await model.dispose();
  }
});
