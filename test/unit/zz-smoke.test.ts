import { after, test } from "node:test";
import { GpuOps } from "/work/main/src/backend/webgpu/gpu-ops.ts";
import { TENSOR_TYPES } from "/work/main/src/gguf/tensor-types.ts";
import { randomMatrix, runProduct } from "/work/main/test/fixtures/matmul-case.ts";
import { nodeDevice } from "/work/main/test/fixtures/node-gpu.ts";

const found = await nodeDevice();
if (found.skip !== false) throw 1;
const ops = await GpuOps.create(found.device);
for (const type of TENSOR_TYPES) {
  test(type.name, async () => {
    const unit = type.blockElements;
    const t0 = performance.now();
    for (const [rows, blocks, n] of [
      [5, 3, 1],
      [131, 5, 1],
      [64, 9, 4],
      [37, 2, 7],
      [65, 3, 33],
      [7, 1, 9],
    ]) {
      const cols = unit === 1 ? blocks * 29 : blocks * unit;
      console.log(
        type.name,
        rows,
        cols,
        n,
        await runProduct(ops, randomMatrix(type.name, rows, cols, 3), n, 9),
        (performance.now() - t0).toFixed(0),
      );
    }
  });
}
test("end", () => {
  console.log(ops.memory());
  ops.dispose();
  console.log(ops.memory());
  found.device.dispose();
});
