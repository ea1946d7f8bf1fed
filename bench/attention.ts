/**
 * `node --experimental-wasm-relaxed-simd --import tsx --import ./test/fixtures/wgsl-loader.mjs bench/attention.ts
 *   [--policy dhsa] [--budget 0.25] [--lengths 2048,4096,8192,16384] [--device wasm|webgpu] [--build relaxed|simd]
 *   [--format f32|f16] [--rounds 3] [--json]`
 *
 * Attention of a whole prompt in one layer of smollm2-135m (9 heads on 3 of 64), one thread: a policy at a budget beside
 * our own dense flash kernel, selection and kernel apart. With --json it prints results of the benchmark report's form.
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { PolicyName } from "../src/attention/names.ts";
import { createPolicy } from "../src/attention/policies.ts";
import type { AttentionShape } from "../src/attention/policy.ts";
import type { AttentionOps } from "../src/backend/backend.ts";
import { WasmAttention } from "../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../src/backend/wasm/wasm-ops.ts";
import { HybridAttention } from "../src/backend/webgpu/hybrid-attention.ts";
import { SPARSE_BUDGET } from "../src/engine/attention-plans.ts";
import type { PageFormat } from "../src/kv/page.ts";
import { measureSparse, type SparseTimes } from "../src/placement/measure-sparse.ts";
import { nodeDevice } from "../test/fixtures/node-gpu.ts";
import { cannotRun, instantiate } from "../test/fixtures/wasm.ts";
import type { BenchResult } from "./report.ts";

const HEADS = { nLayers: 1, nHeads: 9, nKvHeads: 3, headDim: 64 } as const;

export interface AttentionBench {
  readonly policy: PolicyName;
  readonly budget: number;
  readonly device: "wasm" | "webgpu";
  readonly build: "relaxed" | "simd";
  readonly format: PageFormat;
  readonly rounds: number;
  /** Calls of a prompt that are timed. @default 8 */
  readonly maxCalls?: number | undefined;
}

/** `dhsa-prefill/8k/wasm`: milliseconds of the prompt's attention in one layer, selection included, beside dense. */
export function attentionResult(
  bench: AttentionBench,
  { length, dense, selection, attention }: SparseTimes,
): BenchResult {
  const sparse = attention.map((ms, round) => ms + selection[round]!);
  const ratios = sparse.map((ms, round) => dense[round]! / ms);
  return {
    id: `${bench.policy}-prefill/${length / 1024}k/${bench.device}`,
    value: median(sparse),
    unit: "ms",
    baseline: median(dense),
    ratio: median(ratios),
    n: sparse.length,
    min: Math.min(...ratios),
    max: Math.max(...ratios),
  };
}

/** Measures prompts of the given lengths, shortest first. */
export async function* benchAttention(
  bench: AttentionBench,
  lengths: readonly number[],
): AsyncGenerator<SparseTimes> {
  const wasm = await instantiate(bench.build);
  const ops = new WasmOps(wasm);
  const shape: AttentionShape = { ...HEADS, window: [undefined] };
  const kvShape = { ...HEADS, format: bench.format };
  let attention: AttentionOps;
  if (bench.device === "wasm") attention = new WasmAttention(ops, kvShape);
  else {
    const found = await nodeDevice();
    if (found.skip !== false) throw new Error(found.skip);
    attention = await HybridAttention.create(found.device, ops.heap, kvShape);
  }
  const budget = { ...SPARSE_BUDGET, fraction: bench.budget };
  try {
    for (const length of lengths) {
      const policy = createPolicy(bench.policy, shape, HEADS.headDim ** -0.5);
      const { rounds, maxCalls } = bench;
      yield await measureSparse({ ops, attention, shape, policy, budget, length, rounds, maxCalls });
    }
  } finally {
    attention.dispose();
  }
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      policy: { type: "string", default: "dhsa" },
      budget: { type: "string", default: "0.25" },
      lengths: { type: "string", default: "2048,4096,8192,16384" },
      device: { type: "string", default: "wasm" },
      build: { type: "string", default: cannotRun("relaxed") ? "simd" : "relaxed" },
      format: { type: "string", default: "f32" },
      rounds: { type: "string", default: "3" },
      json: { type: "boolean", default: false },
    },
  });
  const bench = { ...values, budget: Number(values.budget), rounds: Number(values.rounds) } as AttentionBench;
  const results: BenchResult[] = [];
  for await (const times of benchAttention(bench, values.lengths.split(",").map(Number))) {
    const result = attentionResult(bench, times);
    results.push(result);
    const ms = (x: number) => `${x.toFixed(x < 100 ? 1 : 0)} ms`.padStart(10);
    console.error(
      `${result.id.padEnd(26)} dense ${ms(result.baseline)}  selection ${ms(median(times.selection))}  kernel ${ms(median(times.attention))}` +
        `  ${result.ratio.toFixed(2)} × [${result.min.toFixed(2)}–${result.max.toFixed(2)}]  keys read ${(100 * times.keysRead).toFixed(1)} %`,
    );
  }
  if (values.json) console.log(JSON.stringify(results));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
