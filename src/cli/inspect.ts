/** `inlay inspect`: what a model file holds, and what memory it would take at several context lengths. */

import type { Metadata } from "../gguf/metadata.ts";
import { type ModelFile, openModelFile } from "../gguf/model-file.ts";
import { openSources } from "../gguf/source.ts";
import { openPaths, shardPaths } from "../host/node-files.ts";
import { PAGE_TOKENS, pageBytes, pageCount } from "../kv/page.ts";
import { type QuantizedFormat, SINK_PAGES, settledPages, wholePageBytes } from "../kv/quantize.ts";
import { type ModelConfig, readModelConfig } from "../model/config.ts";
import { takeInventory } from "../model/tensor-names.ts";
import { readArguments } from "./arguments.ts";
import { modelSource } from "./model-argument.ts";

export const INSPECT_USAGE = "inlay inspect MODEL [--json]";

const CONTEXTS = [2048, 8192, 16384, 32768, 131072];

interface Inspection {
  metadata: Record<string, unknown>;
  config: ModelConfig;
  tensors: { total: number; unused: readonly string[]; byType: Record<string, TypeCount> };
  fileBytes: number | undefined;
  memoryPlan: MemoryPlan[];
}

interface TypeCount {
  tensors: number;
  bytes: number;
}

/** Bytes at one context length: weights, and keys and values in each format. */
interface MemoryPlan {
  contextLength: number;
  weights: number;
  kvF32: number;
  kvF16: number;
  /** When the context is full; sinks and window are f32. */
  kvQ8: number;
  kvQ4: number;
  kvQ2: number;
}

export async function inspect(args: readonly string[]): Promise<void> {
  const { options, positionals } = readArguments(args, { json: "boolean" } as const, ["MODEL"]);
  const source = modelSource(positionals[0]!);
  const isPath = typeof source === "string" && !/^[a-z][a-z0-9+.-]+:/i.test(source);
  const file = await openModelFile(isPath ? openPaths(shardPaths(source)) : openSources(source));
  try {
    const inspection = examine(file);
    process.stdout.write(options.json ? `${JSON.stringify(inspection)}\n` : describe(inspection));
  } finally {
    await file.close();
  }
}

function examine(file: ModelFile): Inspection {
  const config = readModelConfig(file.metadata, file.tensors);
  const { unused } = takeInventory(config, file.tensors);
  const byType: Record<string, TypeCount> = {};
  let weights = 0;
  for (const { type, byteLength } of file.tensors) {
    byType[type.name] ??= { tensors: 0, bytes: 0 };
    const count = byType[type.name]!;
    count.tensors++;
    count.bytes += byteLength;
    weights += byteLength;
  }
  const contexts = [...CONTEXTS.filter((n) => n < config.contextLength), config.contextLength];
  return {
    metadata: plainMetadata(file.metadata),
    config,
    tensors: { total: file.tensors.length, unused, byType },
    fileBytes: file.byteLength,
    memoryPlan: contexts.map((contextLength) => ({
      contextLength,
      weights,
      kvF32: kvBytes(config, contextLength, "f32"),
      kvF16: kvBytes(config, contextLength, "f16"),
      kvQ8: quantizedKvBytes(config, contextLength, "q8"),
      kvQ4: quantizedKvBytes(config, contextLength, "q4"),
      kvQ2: quantizedKvBytes(config, contextLength, "q2"),
    })),
  };
}

function kvBytes(config: ModelConfig, contextLength: number, format: "f32" | "f16"): number {
  const { nLayers, nKvHeads, headDim } = config;
  return pageCount(contextLength) * nLayers * nKvHeads * 2 * pageBytes(format, headDim);
}

function quantizedKvBytes(config: ModelConfig, contextLength: number, format: QuantizedFormat): number {
  const { nLayers, nKvHeads, headDim } = config;
  const nCold = Math.min(settledPages(contextLength), pageCount(contextLength)) - SINK_PAGES;
  const cold = nCold * nLayers * nKvHeads * wholePageBytes(format, headDim);
  return cold + kvBytes(config, contextLength - nCold * PAGE_TOKENS, "f32");
}

/** Metadata as JSON: long arrays as their length, long text cut. */
function plainMetadata(metadata: Metadata): Record<string, unknown> {
  const plain: Record<string, unknown> = {};
  for (const key of metadata.keys()) {
    const { type, value } = metadata.get(key)!;
    if (type === "array") {
      const length = "count" in value ? value.count : value.length;
      plain[key] =
        "count" in value || length > 16
          ? `array of ${length}`
          : Array.from<number | bigint, number>(value, Number);
    } else {
      plain[key] = typeof value === "bigint" ? String(value) : value;
    }
  }
  return plain;
}

function describe({ metadata, config, tensors, fileBytes, memoryPlan }: Inspection): string {
  const lines = ["metadata"];
  for (const [key, value] of Object.entries(metadata)) {
    const text = JSON.stringify(value);
    lines.push(`  ${key.padEnd(44)} ${text.length > 100 ? `${text.slice(0, 97)}…` : text}`);
  }
  lines.push(
    "",
    `model  ${config.architecture}, ${config.nLayers} layers, width ${config.dModel}, ${config.nHeads} heads ` +
      `(${config.nKvHeads} KV) of ${config.headDim}, FFN ${config.dFfn}, vocabulary ${config.vocabSize}`,
    "",
    `tensors  ${tensors.total}${fileBytes === undefined ? "" : `, file ${mib(fileBytes)}`}`,
  );
  for (const [name, { tensors: n, bytes }] of Object.entries(tensors.byType))
    lines.push(`  ${name.padEnd(8)} ${String(n).padStart(5)}  ${mib(bytes)}`);
  if (tensors.unused.length > 0) lines.push(`  not used: ${tensors.unused.join(", ")}`);
  const columns = ["weights", "KV f32", "KV f16", "KV q8", "KV q4", "KV q2"];
  const heading = `memory (pages of ${PAGE_TOKENS} tokens)`.padEnd(26);
  lines.push("", `${heading}${columns.map((name) => name.padStart(11)).join("")}`);
  for (const { contextLength, weights, kvF32, kvF16, kvQ8, kvQ4, kvQ2 } of memoryPlan) {
    const cells = [weights, kvF32, kvF16, kvQ8, kvQ4, kvQ2].map((bytes) => ` ${mib(bytes)}`);
    lines.push(`${`  context ${String(contextLength).padStart(8)}`.padEnd(26)}${cells.join("")}`);
  }
  return `${lines.join("\n")}\n`;
}

function mib(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`.padStart(10);
}
