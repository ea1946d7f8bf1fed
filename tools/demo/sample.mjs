// The sample model of the demo: a small real one where there is one, else one with random weights.

import fs from "node:fs";
import path from "node:path";
import { planGguf } from "../gguf/model.mjs";
import { ROOT } from "../setup/shell.mjs";

/** The folder of models that the maintainers' machines have beside the checkout. */
const SHARED = process.env.INLAY_SHARED ?? path.resolve(ROOT, "../shared");

/** Trained on children's stories; small enough to load at once. */
const STORIES = path.join(SHARED, "data/models/stories260K/stories260K-q8_0.gguf");

/** Changing the recipe changes the file's name, and so makes a new file. */
const RANDOM = path.join(ROOT, "build/sample/random-words-1.gguf");

const RANDOM_SPEC = {
  architecture: "llama",
  nLayers: 4,
  dModel: 128,
  nHeads: 4,
  nKvHeads: 2,
  dFfn: 384,
  contextLength: 2048,
  ropeBase: 10_000,
  rmsEps: 1e-5,
  tokenizer: "smollm",
  vocabSize: 4096,
};

function makeRandomModel() {
  if (fs.existsSync(RANDOM)) return;
  fs.mkdirSync(path.dirname(RANDOM), { recursive: true });
  const file = planGguf(RANDOM_SPEC, { type: "Q8_0", seed: 1, name: "random words" });
  fs.writeFileSync(`${RANDOM}.new`, Buffer.concat([...file.pieces()]));
  fs.renameSync(`${RANDOM}.new`, RANDOM);
}

/** { path, name, about, opening }: the file, what to call it, an honest word about it, and a text that it can continue. */
export function sampleModel() {
  if (fs.existsSync(STORIES))
    return {
      path: STORIES,
      name: "stories260K",
      about: "A very small real model that has read children's stories. It continues them; it cannot chat.",
      opening: "Once upon a time, there was a little robot who",
    };
  makeRandomModel();
  return {
    path: RANDOM,
    name: "random words",
    about: "A model with random weights: everything works, but its words mean nothing.",
    opening: "Once upon a time, there was a little robot who",
  };
}
