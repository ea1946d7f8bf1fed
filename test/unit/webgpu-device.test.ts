import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { BufferGroup } from "../../src/backend/webgpu/buffers.ts";
import { GpuDevice } from "../../src/backend/webgpu/device.ts";
import { keepAwake } from "../../src/backend/webgpu/firefox-poll.ts";
import { ReadBacks } from "../../src/backend/webgpu/read-back.ts";
import { BufferUse } from "../../src/backend/webgpu/usage.ts";
import { type ErrorCode, InlayError } from "../../src/errors.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";

const found = await nodeGpu();
const { skip } = found;

/** An InlayError with this code and all these words in its message. */
function isError(code: ErrorCode, ...words: string[]): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof InlayError, String(error));
    assert.equal(error.code, code, error.message);
    for (const word of words) assert.ok(error.message.includes(word), `"${error.message}" lacks "${word}"`);
    return true;
  };
}

test("no adapter is device-unavailable", async () => {
  const gpu = { requestAdapter: async () => null } as unknown as GPU;
  await assert.rejects(GpuDevice.create(gpu), isError("device-unavailable", "'wasm'"));
});

describe("a WebGPU device", { skip }, () => {
  if (found.skip !== false) return;
  const { gpu } = found;
  const devices: GpuDevice[] = [];
  const make = async () => {
    const device = await GpuDevice.create(gpu, { label: "test" });
    devices.push(device);
    return device;
  };
  after(() => {
    for (const device of devices) device.dispose();
  });
  /** Two usages that no buffer may have together. */
  const makeInvalid = (device: GpuDevice) =>
    device.handle.createBuffer({
      label: "two-faced",
      size: 16,
      usage: BufferUse.readBack | BufferUse.storage,
    });

  test("has a name and what the adapter has", async () => {
    const device = await make();
    assert.ok(device.adapterInfo.length > 0);
    assert.ok(device.limits.maxComputeWorkgroupStorageSize >= 16384);
  });

  test("a validation error rejects the call that made it, with label and details", async () => {
    const device = await make();
    const call = device.guarded("making a buffer", { nTokens: 7 }, () => void makeInvalid(device));
    await assert.rejects(call, (error) => {
      assert.ok(isError("internal", "making a buffer")(error));
      assert.deepEqual((error as InlayError).details, { nTokens: 7 });
      return true;
    });
    assert.equal(await device.guarded("nothing", {}, () => 5), 5);
  });

  test("an error outside any scope is thrown by the next guarded call, once", async () => {
    const device = await make();
    makeInvalid(device);
    await device.handle.queue.onSubmittedWorkDone();
    await assert.rejects(
      device.guarded("innocent", {}, () => 5),
      isError("internal", "GPU work"),
    );
    assert.equal(await device.guarded("innocent", {}, () => 5), 5);
  });

  test("an error thrown by the work itself passes through", async () => {
    const device = await make();
    const error = new RangeError("mine");
    await assert.rejects(
      device.guarded("x", {}, () => {
        throw error;
      }),
      error,
    );
    await assert.rejects(
      device.guarded("x", {}, () => Promise.reject(error)),
      error,
    );
  });

  test("a shader that does not compile names itself and its line", async () => {
    const device = await make();
    const spec = {
      name: "broken",
      source: "@compute @workgroup_size(1)\nfn main() { x = 1; }",
      constants: {},
    };
    await assert.rejects(device.pipeline(spec), isError("internal", "broken", "2:13"));
    await assert.rejects(device.pipeline(spec), isError("internal", "broken"));
  });

  test("a constant that the shader lacks is an error", async () => {
    const device = await make();
    const spec = {
      name: "plain",
      source: "@compute @workgroup_size(1) fn main() {}",
      constants: { tile: 4 },
    };
    await assert.rejects(device.pipeline(spec), isError("internal", "plain(tile=4)"));
  });

  test("a variant is compiled once", async () => {
    const device = await make();
    const source = "override a: u32 = 1; override b: u32 = 1; @compute @workgroup_size(a, b) fn main() {}";
    const pipeline = (constants: Record<string, number>) => device.pipeline({ name: "p", source, constants });
    assert.equal(await pipeline({ a: 2, b: 3 }), await pipeline({ b: 3, a: 2 }));
    assert.notEqual(await pipeline({ a: 2, b: 3 }), await pipeline({ a: 2, b: 4 }));
  });

  test("a buffer over the limit is refused with both numbers", async () => {
    const device = await make();
    const limit = device.limits.maxStorageBufferBindingSize;
    const group = new BufferGroup(device, "test");
    const create = () => group.create("partials", limit + 4, BufferUse.storage);
    assert.throws(create, isError("out-of-memory", "partials", String(limit + 4), String(limit)));
    assert.equal(group.bytes, 0);
  });

  test("a disposed device rejects with disposed, pending work too", async () => {
    const device = await make();
    const reads = new ReadBacks(device);
    const pending = reads.read(
      "reading",
      64,
      () => {},
      () => 1,
    );
    device.dispose();
    device.dispose();
    await assert.rejects(pending, isError("disposed"));
    await assert.rejects(
      device.guarded("x", {}, () => 1),
      isError("disposed"),
    );
    assert.equal((await device.lost).code, "disposed");
    assert.equal(reads.bytes, 0);
  });

  test("a lost device rejects with device-lost, pending work too, and can be made again", async () => {
    const device = await make();
    const reads = new ReadBacks(device);
    const pending = reads.read(
      "reading",
      64,
      () => {},
      () => 1,
    );
    device.handle.destroy();
    await assert.rejects(pending, isError("device-lost"));
    assert.equal((await device.lost).code, "device-lost");
    await assert.rejects(
      device.guarded("x", {}, () => 1),
      isError("device-lost"),
    );
    const again = await device.recreate();
    devices.push(again);
    assert.equal(await again.guarded("x", {}, () => 1), 1);
  });

  test("keeping the queue awake ends with the map, and with the device", async () => {
    const device = await make();
    const buffer = device.handle.createBuffer({ size: 16, usage: BufferUse.readBack });
    const mapped = buffer.mapAsync(1);
    await Promise.all([mapped, keepAwake(device.handle, mapped)]);
    const never = new Promise<void>(() => {});
    const awake = keepAwake(device.handle, Promise.race([never, device.lost]));
    device.dispose();
    await awake;
  });
});
