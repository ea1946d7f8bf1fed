/** A reduced table of attention cases and lookups of clusters, run in a page and in a dedicated worker. */

import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { selfTest } from "../../src/backend/webgpu/self-test.ts";
import { type AttentionCase, onGpu, runCase } from "../fixtures/attention-case.ts";
import { type ClusterCase, runClusterCase } from "../fixtures/cluster-case.ts";
import { type QuantizedCase, runQuantizedCase } from "../fixtures/quantized-case.ts";

const SMOLLM = { nHeads: 9, nKvHeads: 3, headDim: 64, format: "f16", blockSize: 64 } as const;
const ODD = { nHeads: 5, nKvHeads: 1, headDim: 40, format: "f32", blockSize: 16 } as const;

const CASES: readonly AttentionCase[] = [
  { ...SMOLLM, name: "f16 pages, dense", chunks: [77, 1, 1, 20] },
  { ...SMOLLM, name: "f16 pages, masks per KV head", chunks: [77, 1, 1, 20], lists: "per-head masked" },
  { ...SMOLLM, name: "f16 pages, splits", chunks: [130, 1], lists: "subset", tuning: { nSplits: 4 } },
  { ...SMOLLM, name: "f16 pages, window and softcap", chunks: [77, 1], window: 40, softcap: 20 },
  { ...ODD, name: "f32 pages, 5 heads of 40 on one", chunks: [33, 1, 31], lists: "masked" },
  { ...ODD, name: "f32 pages, large logits", chunks: [33, 1, 31], qScale: 100 },
];

const QUANTIZED: readonly QuantizedCase[] = [
  { ...SMOLLM, name: "q4 pages from f16", cold: "q4", chunks: [250, 1, 20], lists: "per-head masked" },
  { ...ODD, name: "q2 pages from f32", cold: "q2", chunks: [230, 1, 20], window: 150 },
];

const HEADS = { nHeads: 9, nKvHeads: 3, headDim: 64, nClusters: [150, 97, 31], nPages: 70 } as const;
const CLUSTERS: readonly ClusterCase[] = [
  { ...HEADS, name: "clusters, decode", qLen: 1, blockSize: 1, quantile: 0.9 },
  { ...HEADS, name: "clusters, blocks of 8, two levels", qLen: 19, blockSize: 8, isTwoLevel: true },
  { ...HEADS, name: "clusters, logits of ±1000", qLen: 1, blockSize: 1, qScale: 300 },
];

export interface TableRow {
  readonly name: string;
  /** Relative to f64; see test/unit/webgpu-attention.test.ts. Of lookups: numbers that are off. */
  readonly error: number;
  readonly limit: number;
}

/** Runs the table and the self-test on `navigator.gpu`. */
export async function runTable(): Promise<TableRow[]> {
  const device = await GpuDevice.create(navigator.gpu, { label: "test" });
  try {
    const rows: TableRow[] = [];
    for (const c of CASES) {
      const { error } = await runCase(onGpu(device), c);
      // A large logit carries its f32 rounding into the weight.
      rows.push({ name: c.name, error, limit: c.qScale ? 2e-3 : 1e-4 });
    }
    for (const c of QUANTIZED) {
      const { error, nCold } = await runQuantizedCase(device, c);
      rows.push({ name: c.name, error: nCold > 1 ? error : Number.POSITIVE_INFINITY, limit: 1e-4 });
    }
    for (const c of CLUSTERS) {
      const { problems } = await runClusterCase(device, c);
      rows.push({
        name: `${c.name}: ${problems[0] ?? "as the host has it"}`,
        error: problems.length,
        limit: 0,
      });
    }
    const { ok, maxError } = await selfTest(device, { ...SMOLLM, nLayers: 1 });
    rows.push({ name: "self-test", error: ok ? maxError : Number.POSITIVE_INFINITY, limit: 1e-4 });
    return rows;
  } finally {
    device.dispose();
  }
}
