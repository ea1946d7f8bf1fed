// Speed of the tokenizer, one core, in Node.
//
//   npm run build:wasm && node --import tsx bench/tokenizer.mjs [VOCABULARY …]
//
// Vocabularies are those of ../shared/data/tokenizers. CPU time, the best of several runs, since the machine may be
// shared; "first load" is the wall time of the first load, with WASM code that has not been optimised yet.

import fs from "node:fs";
import { WasmModule } from "../src/backend/wasm/module.ts";
import { Tokenizer } from "../src/tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../src/tokenizer/vocabulary.ts";
import { sharedPath } from "../test/fixtures/shared.ts";
import { ggufMetadata } from "../test/fixtures/tokenizer-gguf.ts";

const shared = sharedPath("data");
if (!shared) {
  console.error("bench/tokenizer.mjs needs the shared data (../shared/data, or INLAY_SHARED)");
  process.exit(1);
}

function cpuMs() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function bestCpuMs(nRuns, work) {
  let best = Infinity;
  for (let i = 0; i < nRuns; i++) {
    const start = cpuMs();
    work();
    best = Math.min(best, cpuMs() - start);
  }
  return best;
}

/** The same pseudo-random characters every time. */
function randomText(length, charAt) {
  let state = 1;
  return Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return charAt(state >>> 16);
  }).join("");
}

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const TEXTS = {
  "English (War and Peace)": fs.readFileSync(`${shared}/text/war-and-peace.txt`, "utf8"),
  Russian:
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. ".repeat(
      5000,
    ),
  "random Chinese characters": randomText(300_000, (r) => String.fromCharCode(0x4e00 + (r % 3000))),
  base64: randomText(1 << 20, (r) => BASE64[r % 64]),
  "a million times the letter a": "a".repeat(1_000_000),
  "a million spaces": " ".repeat(1_000_000),
  "a million emoji": "🙂".repeat(1_000_000),
};

const module = await WebAssembly.compile(
  fs.readFileSync(new URL("../build/wasm/inlay-simd.wasm", import.meta.url)),
);
const names = process.argv.length > 2 ? process.argv.slice(2) : ["llama-bpe", "qwen2", "gpt-2", "llama-spm"];

for (const name of names) {
  const file = fs.readFileSync(`${shared}/tokenizers/ggml-vocab-${name}.gguf`);
  const vocabulary = vocabularyFromMetadata(ggufMetadata(file));
  const wasm = await WasmModule.instantiate({ module, shared: false });
  const before = performance.now();
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  const firstLoad = performance.now() - before;
  const load = bestCpuMs(5, () => Tokenizer.create(wasm, vocabulary).dispose());
  console.log(
    `${name}: ${tokenizer.nTokens} tokens, first load ${firstLoad.toFixed(0)} ms, load ${load.toFixed(0)} ms`,
  );
  for (const [label, text] of Object.entries(TEXTS)) {
    let ids = tokenizer.encode(text);
    const nBytes = new TextEncoder().encode(text).length;
    const encodeMs = bestCpuMs(5, () => {
      ids = tokenizer.encode(text);
    });
    const decodeMs = bestCpuMs(3, () => tokenizer.decode(ids));
    const rate = (ms) => `${(nBytes / 1000 / ms).toFixed(1)} MB/s`.padStart(11);
    console.log(
      `  ${label.padEnd(30)} encode ${rate(encodeMs)}   decode ${rate(decodeMs)}   ${ids.length} tokens`,
    );
  }
  tokenizer.dispose();
}
