// What each browser has here. Tests skip what a browser lacks; this file makes sure that only what we know to be
// lacking is skipped: an adapter that silently vanished fails here.

import { assert } from "chai";
import { bulkMemory, relaxedSimd, simd, threads } from "wasm-feature-detect";
import { type BrowserName, browser, isComplete, isIsolated, requireShared, skip } from "./harness/index.ts";

interface Expected {
  webgpu: boolean;
  gpuFeatures: Partial<Record<GPUFeatureName, boolean>>;
  relaxedSimd: boolean;
  /** Shared memory in isolated pages. */
  threads: boolean;
  opfs: boolean;
}

const EXPECTED: Record<BrowserName, Expected> = {
  // SwiftShader.
  chromium: {
    webgpu: true,
    gpuFeatures: { "shader-f16": false, subgroups: true, "timestamp-query": true },
    relaxedSimd: true,
    threads: true,
    opfs: true,
  },
  // Mesa's llvmpipe.
  firefox: {
    webgpu: true,
    gpuFeatures: { "shader-f16": true },
    relaxedSimd: true,
    threads: true,
    opfs: true,
  },
  // WebKitGTK, the floor: what a mobile webview has.
  webkit: { webgpu: false, gpuFeatures: {}, relaxedSimd: false, threads: false, opfs: false },
};
const expected = EXPECTED[browser];

/** Runs the body of an async function of `data` in a worker, and returns what it returns. */
async function inWorker<T>(body: string, data: unknown = null): Promise<T> {
  const source = `onmessage = ({ data }) =>
    (async () => { ${body} })().then((result) => postMessage({ result }), (e) => postMessage({ error: String(e) }));`;
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(url, { type: "module" });
  try {
    return await new Promise((resolve, reject) => {
      worker.onmessage = ({ data: { result, error } }) =>
        error ? reject(new Error(error)) : resolve(result as T);
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage(data);
    });
  } finally {
    worker.terminate();
    URL.revokeObjectURL(url);
  }
}

/** Adds one to each of 1000 numbers on the GPU and reads them back. */
const COMPUTE_ON_GPU = `
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const module = device.createShaderModule({ code: \`
    @group(0) @binding(0) var<storage, read_write> numbers: array<f32>;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
      if (id.x < arrayLength(&numbers)) { numbers[id.x] += 1.0; }
    }\` });
  const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const numbers = device.createBuffer({ size: 4000, usage });
  const readable = device.createBuffer({ size: 4000, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(numbers, 0, Float32Array.from({ length: 1000 }, (_, i) => i));
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  const entries = [{ binding: 0, resource: { buffer: numbers } }];
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
  pass.dispatchWorkgroups(16);
  pass.end();
  encoder.copyBufferToBuffer(numbers, 0, readable, 0, 4000);
  device.queue.submit([encoder.finish()]);
  await readable.mapAsync(GPUMapMode.READ);
  const result = new Float32Array(readable.getMappedRange()).slice();
  device.destroy();
  return result;
`;

describe(`environment: ${isIsolated ? "isolated" : "ordinary"} page`, () => {
  before(function () {
    if (!isComplete) skip(this, "this machine's browsers were not installed by set-up (Debian 12, as root)");
  });

  it("is isolated when the server says so", () => {
    // WebKitGTK calls every page isolated.
    if (browser !== "webkit") assert.equal(crossOriginIsolated, isIsolated);
  });

  it("has WASM SIMD and bulk memory, and relaxed SIMD where expected", async () => {
    assert.deepEqual(
      { simd: await simd(), bulkMemory: await bulkMemory(), relaxedSimd: await relaxedSimd() },
      { simd: true, bulkMemory: true, relaxedSimd: expected.relaxedSimd },
    );
  });

  it("has a WebGPU adapter, with the features expected", async () => {
    const adapter = (await navigator.gpu?.requestAdapter()) ?? null;
    assert.equal(adapter !== null, expected.webgpu);
    for (const [name, isExpected] of Object.entries(expected.gpuFeatures))
      assert.equal(adapter?.features.has(name), isExpected, name);
  });

  if (expected.webgpu)
    it("computes on the GPU in a worker", async () => {
      const numbers = await inWorker<Float32Array>(COMPUTE_ON_GPU);
      assert.deepEqual([numbers.length, numbers[0], numbers[999]], [1000, 1, 1000]);
    });

  it("shares WASM memory with a worker in isolated pages only", async () => {
    const hasThreads = isIsolated && expected.threads;
    assert.equal((await threads()) && typeof SharedArrayBuffer === "function", hasThreads);
    if (!hasThreads) return;
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
    await inWorker("Atomics.add(new Int32Array(data.buffer), 0, 42);", memory);
    assert.equal(new Int32Array(memory.buffer)[0], 42);
  });

  it("keeps values in IndexedDB", async () => {
    const request = indexedDB.open("smoke", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("values");
    const settled = <T>(of: IDBRequest<T>) =>
      new Promise<T>((resolve, reject) => {
        of.onsuccess = () => resolve(of.result);
        of.onerror = () => reject(of.error);
      });
    const database = await settled(request);
    await settled(
      database
        .transaction("values", "readwrite")
        .objectStore("values")
        .put(new Uint8Array([7]), "key"),
    );
    const value = await settled(database.transaction("values").objectStore("values").get("key"));
    database.close();
    assert.deepEqual(value, new Uint8Array([7]));
  });

  it("has an origin private file system where expected", () => {
    assert.equal(typeof navigator.storage?.getDirectory === "function", expected.opfs);
  });

  it("gets shared test data whole and by range", async function () {
    const url = await requireShared(this, "data/models/stories260K/stories260K-q8_0.gguf");
    const whole = await (await fetch(url)).arrayBuffer();
    const part = await fetch(url, { headers: { Range: "bytes=4-7" } });
    assert.equal(part.status, 206);
    assert.deepEqual(new Uint8Array(await part.arrayBuffer()), new Uint8Array(whole.slice(4, 8)));
    assert.equal(new TextDecoder().decode(whole.slice(0, 4)), "GGUF");
  });
});
