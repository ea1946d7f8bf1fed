/** The MODEL argument and the options that say how it runs; shared by all commands. */

import { readFile } from "node:fs/promises";
import { loadModel } from "../api/load-model.node.ts";
import type { Model } from "../api/model.ts";
import { InlayError } from "../errors.ts";
import type { HubFile } from "../gguf/source.ts";
import type { DecodeAttention, DeviceOption, KvFormat, PrefillAttention } from "../options.ts";
import type { Options } from "./arguments.ts";
import { UsageError } from "./arguments.ts";
import { ProgressBar } from "./progress-bar.ts";

export const MODEL_OPTIONS = {
  device: "string",
  threads: "integer",
  attention: "string",
  "decode-attention": "string",
  budget: "number",
  "head-budgets": "string",
  boundaries: "string",
  kv: "string",
  context: "integer",
} as const;

/** A path or URL as it is; `hf:owner/name/file.gguf` as a file on Hugging Face. */
export function modelSource(argument: string): string | HubFile {
  if (!argument.startsWith("hf:")) return argument;
  const [, owner, name, file] = /^hf:([^/]+)\/([^/]+)\/(.+)$/.exec(argument) ?? [];
  if (file === undefined) throw new UsageError(`MODEL is ${argument}; write hf:owner/name/file.gguf`);
  return { repo: `${owner}/${name}`, file };
}

/** A JSON file of `attention.headBudgets`; what is in it is checked where it is used. */
export async function readHeadBudgets(file: string | undefined): Promise<number[][] | undefined> {
  if (file === undefined) return undefined;
  try {
    return JSON.parse(await readFile(file, "utf8")) as number[][];
  } catch (cause) {
    throw new InlayError(
      "source-failed",
      `cannot read head budgets from ${file}: ${cause}`,
      { file },
      { cause },
    );
  }
}

/** The bytes of a boundary predictor. */
export async function readBoundaries(file: string | undefined): Promise<ArrayBuffer | undefined> {
  if (file === undefined) return undefined;
  try {
    return Uint8Array.from(await readFile(file)).buffer;
  } catch (cause) {
    throw new InlayError("source-failed", `cannot read ${file}: ${cause}`, { file }, { cause });
  }
}

/** Loads the model with a progress bar. */
export async function loadArgument(
  argument: string,
  options: Options<typeof MODEL_OPTIONS>,
  signal?: AbortSignal,
): Promise<Model> {
  const bar = new ProgressBar();
  try {
    return await loadModel(modelSource(argument), {
      // Unknown names are refused by loadModel, which lists the known ones.
      device: options.device as DeviceOption | undefined,
      threads: options.threads,
      attention: {
        prefill: options.attention as PrefillAttention | undefined,
        decode: options["decode-attention"] as DecodeAttention | undefined,
        budget: options.budget,
        headBudgets: await readHeadBudgets(options["head-budgets"]),
        boundaries: await readBoundaries(options.boundaries),
      },
      kvCache: { format: options.kv as KvFormat | undefined },
      contextLength: options.context,
      onProgress: ({ phase, progress }) => bar.update(phase, progress),
      signal,
    });
  } finally {
    bar.clear();
  }
}
