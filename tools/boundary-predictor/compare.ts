/**
 * `node --import tsx tools/boundary-predictor/compare.ts DUMP PREDICTOR.gguf`: whether Inlay's logits are those that PyTorch
 * wrote beside the predictor. Ends with status 1 where they are not.
 */

import { readFileSync } from "node:fs";
import { openSources } from "../../src/gguf/source.ts";
import { readBoundaryPredictor } from "../../src/model/boundary-file.ts";

interface Meta {
  readonly heads: {
    readonly layers: number;
    readonly heads: number;
    readonly kv_heads: number;
    readonly head_dim: number;
  };
}

interface Scores {
  readonly example: { readonly document: string; readonly keys: number; readonly logits: readonly number[] };
}

/** f32 against f32, sums in another order. */
const TOLERANCE = 1e-3;

async function main(): Promise<void> {
  const [dump, file] = process.argv.slice(2);
  if (file === undefined) throw new Error("DUMP PREDICTOR.gguf are needed");
  const { heads } = JSON.parse(readFileSync(`${dump}/meta.json`, "utf8")) as Meta;
  const { example } = JSON.parse(readFileSync(file.replace(/\.gguf$/, ".json"), "utf8")) as Scores;
  const bytes = Uint8Array.from(readFileSync(`${dump}/${example.document}`));
  const rows = new Float32Array(bytes.buffer);
  const width = heads.kv_heads * heads.head_dim;
  const perToken = heads.heads * heads.head_dim + 2 * width;
  const nTokens = rows.length / heads.layers / perToken;
  // Of layer 0, after q and the rotated keys.
  const keys = rows.subarray(nTokens * (perToken - width), nTokens * perToken);
  const sources = openSources(Uint8Array.from(readFileSync(file)));
  const score = await readBoundaryPredictor(sources, { nKvHeads: heads.kv_heads, headDim: heads.head_dim });
  const logits: number[] = [];
  for (let t = 0; t < Math.min(example.keys, nTokens); t++) {
    const { score: logit } = score.step(keys, t);
    if (logit > -Infinity) logits.push(logit);
  }
  if (logits.length !== example.logits.length)
    throw new Error(`${logits.length} logits, PyTorch has ${example.logits.length}`);
  const largest = logits.reduce((a, x, i) => Math.max(a, Math.abs(x - example.logits[i]!)), 0);
  const isGood = largest <= TOLERANCE;
  console.log(
    `largest difference ${largest} of ${logits.length} logits, ${isGood ? "all" : "not all"} within ${TOLERANCE}`,
  );
  process.exitCode = isGood ? 0 : 1;
}

await main();
