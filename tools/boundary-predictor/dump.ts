/**
 * `node --import tsx --import ./test/fixtures/wgsl-loader.mjs tools/boundary-predictor/dump.ts MODEL.gguf TEXT OUT
 *   [--tokens 512] [--documents 32] [--skip CHARACTERS]`
 *
 * Reads documents densely and writes what train.py learns from: per document a file of f32, (nLayers) times q after RoPE
 * (n, nHeads, headDim), k after RoPE (n, nKvHeads, headDim), k before RoPE (n, nKvHeads, headDim); and meta.json.
 */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { recordRows } from "../../bench/selection-quality.ts";
import { loadEngine } from "../../test/fixtures/engine.ts";
import { openTransformer } from "../../test/fixtures/transformer.ts";
import { instantiate } from "../../test/fixtures/wasm.ts";

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      tokens: { type: "string", default: "512" },
      documents: { type: "string", default: "32" },
      skip: { type: "string", default: "0" },
    },
  });
  const [file, text, out] = positionals;
  if (out === undefined) throw new Error("MODEL.gguf TEXT OUT are needed");
  const nTokens = Number(values.tokens);
  const bytes = new Uint8Array(readFileSync(file!));
  const engine = await loadEngine(bytes);
  const content = readFileSync(text!, "utf8").slice(Number(values.skip));
  const ids = engine.tokenizer.encode(content.slice(0, 16 * nTokens * Number(values.documents)));
  await engine.dispose();
  const model = await openTransformer(bytes, await instantiate("simd"));
  const { nLayers, nHeads, nKvHeads, headDim, attentionScale } = model.config;
  mkdirSync(out, { recursive: true });
  const documents: string[] = [];
  for (let at = 0; at + nTokens <= ids.length && documents.length < Number(values.documents); at += nTokens) {
    const layers = await recordRows(model, ids.subarray(at, at + nTokens));
    const name = `document-${documents.length}.f32`;
    const parts = layers.flatMap(({ q, k, unrotatedK }) => [q, k, unrotatedK!]);
    writeFileSync(
      `${out}/${name}`,
      Buffer.concat(parts.map((x) => Buffer.from(x.buffer, x.byteOffset, x.byteLength))),
    );
    documents.push(name);
  }
  const heads = {
    layers: nLayers,
    heads: nHeads,
    kv_heads: nKvHeads,
    head_dim: headDim,
    scale: attentionScale,
  };
  writeFileSync(`${out}/meta.json`, JSON.stringify({ heads, documents }));
  console.log(`${documents.length} documents of ${nTokens} tokens`);
}

await main();
