/** `inlay tokenize` and `inlay detokenize`: only the header of the model file is read, so a vocabulary file will do. */

import { readFileSync } from "node:fs";
import { WasmModule } from "../backend/wasm/module.ts";
import { InlayError } from "../errors.ts";
import { openModelFile } from "../gguf/model-file.ts";
import { openSources } from "../gguf/source.ts";
import { nodeHost } from "../host/node.ts";
import { openPaths } from "../host/node-files.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../tokenizer/vocabulary.ts";
import { integerList, readArguments, UsageError } from "./arguments.ts";
import { modelSource } from "./model-argument.ts";

export const TOKENIZE_USAGE = "inlay tokenize MODEL (--text T | --file F) [--no-special] [--json]";
export const DETOKENIZE_USAGE = "inlay detokenize MODEL --ids 1,2,3 [--special] [--json]";

/** With special tokens (the default), BOS is added as the file says, and control tokens in the text are read as such. */
export async function tokenize(args: readonly string[]): Promise<void> {
  const types = { text: "string", file: "string", "no-special": "boolean", json: "boolean" } as const;
  const { options, positionals } = readArguments(args, types, ["MODEL"]);
  const { text, file } = options;
  if ((text === undefined) === (file === undefined)) throw new UsageError("give either --text or --file");
  const bytes = file === undefined ? new TextEncoder().encode(text) : readText(file);
  const tokenizer = await openTokenizer(positionals[0]!);
  const isSpecial = !options["no-special"];
  const ids = Array.from(tokenizer.encodeBytes(bytes, { addSpecial: isSpecial, parseSpecial: isSpecial }));
  if (options.json) {
    process.stdout.write(`${JSON.stringify({ ids })}\n`);
    return;
  }
  for (const id of ids) process.stdout.write(`${id}\t${JSON.stringify(tokenizer.tokenText(id))}\n`);
}

export async function detokenize(args: readonly string[]): Promise<void> {
  const types = { ids: "string", special: "boolean", json: "boolean" } as const;
  const { options, positionals } = readArguments(args, types, ["MODEL"]);
  if (options.ids === undefined) throw new UsageError("--ids is missing");
  const ids = options.ids.trim() === "" ? [] : integerList("ids", options.ids, 0);
  const tokenizer = await openTokenizer(positionals[0]!);
  const text = tokenizer.decode(ids, { special: options.special });
  process.stdout.write(options.json ? `${JSON.stringify({ text })}\n` : `${text}\n`);
}

function readText(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new InlayError(
      "source-failed",
      `cannot read ${path}: ${(cause as Error).message}`,
      { path },
      { cause },
    );
  }
}

async function openTokenizer(argument: string): Promise<Tokenizer> {
  const source = modelSource(argument);
  const isPath = typeof source === "string" && !/^[a-z][a-z0-9+.-]+:/i.test(source);
  const file = await openModelFile(isPath ? openPaths([source]) : openSources(source));
  try {
    const folder = new URL("./", import.meta.url);
    const host = nodeHost({ wasmFolder: folder, computeWorker: folder });
    const wasm = await WasmModule.instantiate({ module: await host.compileWasm("simd"), shared: false });
    return Tokenizer.create(wasm, vocabularyFromMetadata({ get: (key) => file.metadata.get(key)?.value }));
  } finally {
    await file.close();
  }
}
