/** Looking clusters up on the GPU: estimates beside f64, page lists beside the policy of the host. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { type ClusterCase, runClusterCase } from "../fixtures/cluster-case.ts";
import { CLUSTER_CASES } from "../fixtures/cluster-table.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";

const found = await nodeDevice();

describe("clusters on WebGPU: estimates equal f64, page lists those of the policy", {
  skip: found.skip,
}, () => {
  if (found.skip !== false) return;
  const { device } = found;
  after(() => device.dispose());
  const caseOf = (name: string): ClusterCase => CLUSTER_CASES.find((c) => c.name === name)!;

  for (const c of CLUSTER_CASES)
    test(c.name, async () => {
      const { problems } = await runClusterCase(device, c);
      assert.deepEqual(problems.slice(0, 5), [], `${problems.length} problems`);
    });

  test("the same lookup twice gives the same bits", async () => {
    for (const name of ["90 % are left out, decode", "two levels, blocks of 8"]) {
      const [first, second] = [
        await runClusterCase(device, caseOf(name)),
        await runClusterCase(device, caseOf(name)),
      ];
      assert.deepEqual(second, first);
    }
  });

  test("the valve opens for some blocks and not for others", async () => {
    const { read: sparse } = await runClusterCase(device, caseOf("90 % are left out, blocks of 8"));
    const { read: some, missing } = await runClusterCase(
      device,
      caseOf("some blocks miss too much, blocks of 8"),
    );
    const { read: all, missing: none } = await runClusterCase(
      device,
      caseOf("all blocks miss too much, blocks of 8"),
    );
    assert.ok(sparse < some && some < all, `${sparse}, ${some}, ${all} keys`);
    assert.ok(missing > 0 && missing < 0.4 && none === 0, `${missing}, ${none}`);
  });

  test("dispatches are folded where a dimension is too short for their workgroups", async () => {
    const limited = await GpuDevice.create(found.gpu);
    const limits = new Proxy(limited.limits, {
      get: (all, name) => (name === "maxComputeWorkgroupsPerDimension" ? 5 : Reflect.get(all, name, all)),
    });
    Object.defineProperty(limited, "limits", { value: limits });
    try {
      const { problems } = await runClusterCase(limited, caseOf("two levels, blocks of 8"));
      assert.deepEqual(problems.slice(0, 5), []);
    } finally {
      limited.dispose();
    }
  });
});
