/** What a page downloads: JavaScript and one WASM build, gzipped. */

import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
import { ROOT } from "../tools/setup/shell.mjs";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

/** The design's goal for JavaScript and one WASM build. */
const LIMIT_KB = 1000;

/** All that a multithreaded, relaxed-SIMD page loads. */
const INLAY = [
  "dist/inlay.js",
  "dist/engine-worker.js",
  "dist/compute-worker.js",
  "dist/inlay-relaxed-threads.wasm",
];
const RIVALS: Readonly<Record<string, readonly string[]>> = {
  "wllama-2.3.1": [
    "node_modules/wllama-2/esm/index.min.js",
    "node_modules/wllama-2/esm/multi-thread/wllama.wasm",
  ],
  "wllama-3.8.1": [
    "node_modules/@wllama/wllama/esm/index.min.js",
    "node_modules/@wllama/wllama/esm/wasm/wllama.wasm",
  ],
};

/** Bytes in thousands. */
function gzippedKb(files: readonly string[]): number {
  const bytes = files.map(
    (file) => zlib.gzipSync(fs.readFileSync(path.join(ROOT, file)), { level: 9 }).length,
  );
  return bytes.reduce((sum, n) => sum + n, 0) / 1000;
}

export const sizes: Section = {
  title: "Download size",
  about:
    "All JavaScript (minified) and one WASM build, gzipped; KB are 1000 bytes. `size/limit` is beside the design's limit. " +
    "onnxruntime-web, transformers.js and WebLLM are not among the packages here.",
  baseline: "other",
  owns: (id) => id.startsWith("size/") || id.endsWith("/size"),
  ids: ["size/limit", ...Object.keys(RIVALS).map((rival) => `${rival}/size`)],
  leftOut: [],
  needsPeer: false,
  async *run(_context, wanted) {
    const inlay = [gzippedKb(INLAY)];
    if (wanted.has("size/limit")) yield limitResult("size/limit", "KB", inlay, LIMIT_KB);
    for (const [rival, files] of Object.entries(RIVALS)) {
      const id = `${rival}/size`;
      if (wanted.has(id)) yield limitResult(id, "KB", inlay, gzippedKb(files));
    }
  },
};
