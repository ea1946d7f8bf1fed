/**
 * `inlay bench --attention`: a policy's attention beside dense attention, on made-up text, without a model. Of a whole prompt;
 * with `squeezed`, of a token after a pinned prompt.
 */

import { PREFILL_POLICIES } from "../attention/names.ts";
import { createPolicy } from "../attention/policies.ts";
import type { AttentionShape } from "../attention/policy.ts";
import { WasmModule } from "../backend/wasm/module.ts";
import { ThreadPool } from "../backend/wasm/threads.ts";
import { chooseWasm } from "../backend/wasm/variant.ts";
import { WasmAttention } from "../backend/wasm/wasm-attention.ts";
import { WasmOps } from "../backend/wasm/wasm-ops.ts";
import { HybridAttention } from "../backend/webgpu/hybrid-attention.ts";
import { openGpu } from "../engine/gpu.ts";
import { nodeHost } from "../host/node.ts";
import { checkNumber, checkOneOf, invalidOption } from "../option-checks.ts";
import { measureSparse, type SparseTimes } from "../placement/measure-sparse.ts";
import { measureSqueezed, type SqueezedMeasurement } from "../placement/measure-squeezed.ts";
import { LEAST_SQUEEZED_TOKENS } from "../prompts/squeeze.ts";
import { integerList, readArguments } from "./arguments.ts";

export const BENCH_ATTENTION_USAGE =
  "inlay bench --attention [POLICY] [--budget B] [--lengths 2048,8192] [--device wasm|hybrid] [--threads N]\n" +
  "          [--kv f32|f16] [--runs N] [--json]";

const OPTIONS = {
  attention: "string",
  budget: "number",
  lengths: "string",
  device: "string",
  threads: "integer",
  kv: "string",
  runs: "integer",
  json: "boolean",
} as const;

/** Heads of SmolLM2 135M. */
const HEADS = { nLayers: 1, nHeads: 9, nKvHeads: 3, headDim: 64 } as const;

/** Milliseconds of the attention of a whole prompt in one layer, medians. */
interface Row {
  tokens: number;
  denseMs: number;
  selectionMs: number;
  kernelMs: number;
  /** Dense beside selection and kernel together, median of the runs' ratios. */
  speedup: number;
  keysRead: number;
  runs: number;
}

/** `args` begin with --attention. */
export async function benchAttention(args: readonly string[]): Promise<void> {
  const isBare = args[1] === undefined || args[1].startsWith("--");
  const { options } = readArguments(isBare ? ["--attention=dhsa", ...args.slice(1)] : args, OPTIONS, []);
  const name = checkOneOf("--attention", options.attention, [...PREFILL_POLICIES, "squeezed"]);
  const usual = name === "squeezed" ? 0.1 : 0.25;
  const fraction = checkNumber("--budget", options.budget ?? usual, { min: 0, aboveMin: true, max: 1 });
  const device = checkOneOf("--device", options.device ?? "wasm", ["wasm", "hybrid"]);
  const format = checkOneOf("--kv", options.kv ?? (device === "wasm" ? "f32" : "f16"), ["f32", "f16"]);
  const rounds = checkNumber("--runs", options.runs ?? 3, { min: 1, max: 100, isInteger: true });
  const lengths = integerList("lengths", options.lengths ?? "2048,8192", 1);

  const host = nodeHost({
    wasmFolder: new URL("./", import.meta.url),
    computeWorker: new URL("./compute-worker.node.mjs", import.meta.url),
  });
  const choice = await chooseWasm(options.threads ?? 1, host);
  const module = await host.compileWasm(choice.variant);
  const wasm = await WasmModule.instantiate({ module, shared: choice.nThreads > 1 });
  const pool = choice.nThreads > 1 ? await ThreadPool.start(host, wasm, module, choice.nThreads) : undefined;
  const ops = new WasmOps(wasm);
  const gpu = device === "hybrid" ? await openGpu(host) : undefined;
  const kvShape = { ...HEADS, format };
  const attention = gpu
    ? await HybridAttention.create(gpu, ops.heap, kvShape)
    : new WasmAttention(ops, kvShape);
  try {
    const shape: AttentionShape = { ...HEADS, window: [undefined] };
    const budget = { tokens: 256, fraction, sinks: 32, local: 128, denseBelow: 0 };
    const rows: Row[] = [];
    for (const length of lengths) {
      if (name === "squeezed") {
        rows.push(
          await squeezedRow({ ops, attention, shape, cold: undefined, length, rounds }, 1 - fraction),
        );
        continue;
      }
      const policy = createPolicy(name, shape, HEADS.headDim ** -0.5);
      rows.push(describe(await measureSparse({ ops, attention, shape, policy, budget, length, rounds })));
    }
    const where = {
      device,
      wasm: choice.variant,
      threads: choice.nThreads,
      gpu: gpu?.adapterInfo,
      kv: format,
    };
    if (options.json)
      process.stdout.write(
        `${JSON.stringify({ policy: name, budget: fraction, ...where, heads: HEADS, rows })}\n`,
      );
    else print(name, fraction, where, rows);
  } finally {
    attention.dispose();
    gpu?.dispose();
    pool?.dispose();
  }
}

async function squeezedRow(m: Omit<SqueezedMeasurement, "variants">, sparsity: number): Promise<Row> {
  if (m.length < LEAST_SQUEEZED_TOKENS)
    throw invalidOption("--lengths", m.length, `${LEAST_SQUEEZED_TOKENS} or more for squeezed`);
  const { variants } = await measureSqueezed({ ...m, variants: [{ sparsity, isTwoLevel: false }] });
  const { dense, selection, attention, selected } = variants[0]!;
  return describe({ length: m.length, dense, selection, attention, keysRead: selected });
}

function describe({ length, dense, selection, attention, keysRead }: SparseTimes): Row {
  return {
    tokens: length,
    denseMs: median(dense),
    selectionMs: median(selection),
    kernelMs: median(attention),
    speedup: median(dense.map((ms, round) => ms / (selection[round]! + attention[round]!))),
    keysRead,
    runs: dense.length,
  };
}

function print(
  policy: string,
  budget: number,
  { device, wasm, threads, gpu, kv }: Record<string, string | number | undefined>,
  rows: readonly Row[],
): void {
  process.stdout.write(
    `${policy} at ${100 * budget} % of the keys on ${device} (${wasm}, ${threads} thread(s)${gpu ? `, ${gpu}` : ""}), KV ${kv}; ` +
      `milliseconds of the attention of ${policy === "squeezed" ? "a token after such a prompt" : "a prompt"} in one layer of ` +
      "9 heads on 3 of 64\n" +
      "  tokens       dense   selection      kernel   speed-up   keys read\n",
  );
  for (const { tokens, denseMs, selectionMs, kernelMs, speedup, keysRead } of rows) {
    const numbers = [denseMs, selectionMs, kernelMs].map((ms) => ms.toFixed(1).padStart(12)).join("");
    process.stdout.write(
      `${String(tokens).padStart(8)}${numbers}${speedup.toFixed(2).padStart(9)} ×${(100 * keysRead).toFixed(1).padStart(10)} %\n`,
    );
  }
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}
