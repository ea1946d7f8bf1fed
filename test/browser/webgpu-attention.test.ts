// Attention on WebGPU equals f64 in every browser that has WebGPU, in a page and in a dedicated worker. The full table
// runs in Node: test/unit/webgpu-attention.test.ts.

import { requireWebGpu } from "./harness/index.ts";
import { runTable, type TableRow } from "./webgpu-attention-cases.ts";
import type { FromWorker } from "./webgpu-attention-worker.ts";

/** Software adapters take seconds to compile a kernel. */
const TIMEOUT_MS = 240_000;

function check(rows: readonly TableRow[]): void {
  const wrong = rows.filter(({ error, limit }) => !(error <= limit));
  if (wrong.length > 0) throw new Error(wrong.map((r) => `${r.name}: relative error ${r.error}`).join("\n"));
}

function runInWorker(): Promise<TableRow[]> {
  const worker = new Worker(new URL("./webgpu-attention-worker.ts", import.meta.url), { type: "module" });
  return new Promise<TableRow[]>((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<FromWorker>) =>
      "rows" in data ? resolve(data.rows) : reject(new Error(data.error));
    worker.onerror = ({ message }) => reject(new Error(message));
  }).finally(() => worker.terminate());
}

describe("attention on WebGPU", function () {
  this.timeout(TIMEOUT_MS);

  it("equals f64 in a page", async function () {
    await requireWebGpu(this);
    check(await runTable());
  });

  it("equals f64 in a dedicated worker", async function () {
    await requireWebGpu(this);
    check(await runInWorker());
  });
});
