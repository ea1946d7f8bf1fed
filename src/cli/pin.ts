/** `inlay pin`: a document read once, as an `.inlaykv` file that an app can ship. */

import { readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { InlayError } from "../errors.ts";
import type { PinBits } from "../prompts/pinned-prompts.ts";
import { readArguments, UsageError } from "./arguments.ts";
import { loadArgument, MODEL_OPTIONS } from "./model-argument.ts";
import { ProgressBar } from "./progress-bar.ts";

export const PIN_USAGE =
  "inlay pin MODEL --file DOC --out FILE.inlaykv [--id NAME] [--raw] [--bits 2|4|8|16]\n" +
  "          [--sparsity R] [--device wasm|hybrid|webgpu|auto] [--threads N] [--context N]\n" +
  "          [--attention POLICY] [--budget B] [--kv FORMAT] [--json]";

const OPTIONS = {
  ...MODEL_OPTIONS,
  file: "string",
  out: "string",
  id: "string",
  raw: "boolean",
  bits: "integer",
  sparsity: "number",
  json: "boolean",
} as const;

export async function pin(args: readonly string[], signal: AbortSignal): Promise<void> {
  const { options, positionals } = readArguments(args, OPTIONS, ["MODEL"]);
  const { file, out } = options;
  if (file === undefined) throw new UsageError("--file is missing");
  if (out === undefined) throw new UsageError("--out is missing");
  const text = withFile("read", file, () => readFileSync(file, "utf8"));
  await using model = await loadArgument(positionals[0]!, options, signal);
  const id = options.id ?? basename(file);
  const start = performance.now();
  const bar = new ProgressBar();
  const prompt = await model
    .pin(text, {
      id,
      raw: options.raw,
      bits: options.bits as PinBits | undefined, // checked by pin
      sparsity: options.sparsity,
      signal,
      onProgress: ({ phase, progress }) => bar.update(phase, progress),
    })
    .finally(() => bar.clear());
  const seconds = (performance.now() - start) / 1000;
  const bytes = new Uint8Array(await (await model.pinned.export(id)).arrayBuffer());
  withFile("write", out, () => writeFileSync(out, bytes));
  const { tokens, bits, sparsity, attention, raw } = prompt.info;
  process.stdout.write(
    options.json
      ? `${JSON.stringify({ id, tokens, bits, sparsity, attention, raw, bytes: bytes.byteLength, file: out, seconds })}\n`
      : `${out}: ${JSON.stringify(id)}, ${tokens} tokens at ${bits} bits, ${Math.ceil(bytes.byteLength / 1024)} KiB, ${seconds.toFixed(1)} s\n`,
  );
}

/** An `.inlaykv` file by its path. Throws `source-failed`. */
export function readPromptFile(path: string): Blob {
  return new Blob([withFile("read", path, () => readFileSync(path))]);
}

function withFile<T>(what: "read" | "write", path: string, f: () => T): T {
  try {
    return f();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new InlayError("source-failed", `cannot ${what} ${path}: ${reason}`, { path }, { cause });
  }
}
