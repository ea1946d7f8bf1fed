import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { type AttentionCase, onGpu, relativeError, runCase, runKernels } from "../fixtures/attention-case.ts";
import { ATTENTION_CASES, BASE } from "../fixtures/attention-table.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";

const found = await nodeDevice();
const { skip } = found;

/**
 * f32 sums of up to some hundred terms in another order than the reference: 1e-6 is usual. Rounding keys and values
 * to 11 bits (f16 pages) costs up to 5e-3 on these inputs.
 */
const TOLERANCE = 1e-4;
const TOLERANCE_UNROUNDED = 5e-3;

const cases = [...ATTENTION_CASES];
for (const tuning of [{ stageQueries: true }, { rowGroups: 4 }, { rowGroups: 16 }, { decodeThreads: 128 }])
  cases.push({
    ...BASE,
    name: `tuned: ${JSON.stringify(tuning)}`,
    tuning,
    chunks: [100, 1, 1, 257, 1],
    lists: "masked",
  });

describe("attention on WebGPU equals f64", { skip }, () => {
  if (found.skip !== false) return;
  const { device } = found;
  after(() => device.dispose());

  for (const c of cases) {
    test(c.name, async () => {
      const { error, errorUnrounded } = await runCase(onGpu(device), c);
      assert.ok(error <= TOLERANCE, `relative error ${error}`);
      assert.ok(
        errorUnrounded <= TOLERANCE_UNROUNDED,
        `relative error ${errorUnrounded} against f32 keys and values`,
      );
    });
  }

  test("any number of splits gives the same", async () => {
    const c: AttentionCase = { ...BASE, name: "splits", chunks: [200, 1, 33], lists: "masked" };
    const whole = await runCase(onGpu(device), { ...c, tuning: { nSplits: 1 } });
    assert.ok(whole.error <= TOLERANCE, `one split: relative error ${whole.error}`);
    for (let nSplits = 2; nSplits <= 16; nSplits++) {
      const { actual } = await runKernels(onGpu(device), { ...c, tuning: { nSplits } });
      const difference = relativeError(actual, whole.actual, c.headDim);
      assert.ok(difference <= TOLERANCE, `${nSplits} splits: ${difference} away from one split`);
    }
  });

  test("dispatches are folded where a dimension is too short for their workgroups", async () => {
    const limited = await GpuDevice.create(found.gpu);
    // A device with 5 workgroups per dimension, as far as we look.
    const limits = new Proxy(limited.limits, {
      get: (all, name) => (name === "maxComputeWorkgroupsPerDimension" ? 5 : Reflect.get(all, name, all)),
    });
    Object.defineProperty(limited, "limits", { value: limits });
    try {
      for (const nSplits of [1, 3]) {
        const { error } = await runCase(onGpu(limited), {
          ...BASE,
          name: "folded",
          chunks: [97, 1, 1],
          tuning: { nSplits },
        });
        assert.ok(error <= TOLERANCE, `${nSplits} splits: relative error ${error}`);
      }
    } finally {
      limited.dispose();
    }
  });

  test("the same call twice gives the same bits", async () => {
    const c: AttentionCase = { ...BASE, name: "twice", chunks: [290, 1, 64], tuning: { nSplits: 5 } };
    const [first, second] = [await runKernels(onGpu(device), c), await runKernels(onGpu(device), c)];
    assert.deepEqual(first.actual, second.actual);
  });

  test("logits of a thousand stay finite", async () => {
    for (const format of ["f16", "f32"] as const) {
      for (const softcap of [undefined, 50]) {
        const c: AttentionCase = { ...BASE, name: "large", format, qScale: 500, softcap, lists: "masked" };
        const { error, actual } = await runCase(onGpu(device), c);
        assert.ok(actual.every(Number.isFinite));
        // A logit of 1e3 carries 1e-4 of rounding in f32, which is its weight's relative error.
        assert.ok(error <= 5e-3, `relative error ${error}`);
      }
    }
  });
});
