#!/usr/bin/env node
// @ts-check
/**
 * Writes a GGUF file with the shape of a real model and seeded random weights, for benchmarks and tests.
 *
 *     node tools/make-gguf.mjs PRESET TYPE OUT [--seed N] [--ctx N]
 *     node tools/make-gguf.mjs smollm2-135m q4_0 /tmp/smollm2.gguf --ctx 32768
 */

import { closeSync, openSync, writeSync } from "node:fs";
import { parseArgs } from "node:util";
import { FILE_TYPE_NAMES, PRESETS, planGguf } from "./gguf/model.mjs";

const USAGE =
  "usage: node tools/make-gguf.mjs PRESET TYPE OUT [--seed N] [--ctx N]\n" +
  `  PRESET  ${Object.keys(PRESETS).join(" ")}\n` +
  `  TYPE    ${FILE_TYPE_NAMES.join(" ").toLowerCase()}\n`;

/** @returns {never} */
function usageError(/** @type {string} */ message) {
  process.stderr.write(`${message}\n${USAGE}`);
  process.exit(2);
}

function parsedCommandLine() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: { seed: { type: "string", default: "1" }, ctx: { type: "string" } },
    });
  } catch (error) {
    return usageError(error instanceof Error ? error.message : String(error));
  }
}

function readArguments() {
  const { positionals, values } = parsedCommandLine();
  const [preset, type, out] = positionals;
  if (positionals.length !== 3) usageError(`three arguments expected, found ${positionals.length}`);
  if (!(preset in PRESETS)) usageError(`unknown preset ${preset}`);
  const typeName = FILE_TYPE_NAMES.find((name) => name === type.toUpperCase());
  if (!typeName) usageError(`unknown type ${type}`);
  const seed = Number(values.seed);
  const ctx = values.ctx === undefined ? undefined : Number(values.ctx);
  if (!Number.isInteger(seed)) usageError(`--seed must be a whole number, found ${values.seed}`);
  if (ctx !== undefined && !(Number.isInteger(ctx) && ctx > 0))
    usageError(`--ctx must be above 0, found ${values.ctx}`);
  return { preset: /** @type {keyof typeof PRESETS} */ (preset), type: typeName, out, seed, ctx };
}

const { preset, type, out, seed, ctx } = readArguments();
const spec = { ...PRESETS[preset], ...(ctx && { contextLength: ctx }) };
const started = performance.now();
const file = planGguf(spec, { type, seed, name: `${preset} (random weights, seed ${seed})` });
const fd = openSync(out, "w");
try {
  for (const piece of file.pieces()) {
    for (let at = 0; at < piece.byteLength; ) at += writeSync(fd, piece, at);
  }
} finally {
  closeSync(fd);
}
const nParameters = file.tensors.reduce(
  (sum, t) => sum + t.dims.reduce((product, dim) => product * dim, 1),
  0,
);
const seconds = ((performance.now() - started) / 1000).toFixed(1);
process.stdout.write(
  `${out}: ${file.byteLength} bytes, ${file.tensors.length} tensors, ${nParameters} parameters, ${seconds} s\n`,
);
