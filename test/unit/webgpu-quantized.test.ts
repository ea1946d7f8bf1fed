/** Quantized pages on WebGPU: the codec beside WASM's, and attention over them beside f64. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { FORMAT_CODES } from "../../src/backend/wasm/page-converter.ts";
import { HybridAttention } from "../../src/backend/webgpu/hybrid-attention.ts";
import { compileKernels, defaultTuning } from "../../src/backend/webgpu/kernels.ts";
import { GpuPageStore } from "../../src/backend/webgpu/page-store.ts";
import { ReadBacks } from "../../src/backend/webgpu/read-back.ts";
import { CLIP, wholePageBytes } from "../../src/kv/quantize.ts";
import {
  ArrayTensors,
  attendChunk,
  makeSelection,
  relativeError,
  seeded,
} from "../fixtures/attention-case.ts";
import { nodeDevice } from "../fixtures/node-gpu.ts";
import {
  codableKeys,
  codableValues,
  type QuantizedCase,
  runQuantizedCase,
} from "../fixtures/quantized-case.ts";
import { normals } from "../fixtures/random.ts";
import { instantiate } from "../fixtures/wasm.ts";
import { pagedAttention, roundToF16 } from "../reference/paged-attention.ts";

const found = await nodeDevice();
const { skip } = found;
const VARIANTS: readonly (Partial<QuantizedCase> &
  Pick<QuantizedCase, "cold" | "format" | "headDim" | "chunks">)[] = [
  { cold: "q8", format: "f32", headDim: 16, chunks: [300, 1, 40] },
  { cold: "q4", format: "f16", headDim: 16, chunks: [300, 1, 1], tuning: { nSplits: 3 } },
  { cold: "q2", format: "f32", headDim: 40, chunks: [270, 33, 1], nHeads: 9, nKvHeads: 3, window: 200 },
];
const BASE: Omit<QuantizedCase, "name" | "cold" | "chunks"> = {
  ...{ nHeads: 4, nKvHeads: 2, headDim: 16, format: "f32", blockSize: 32, lists: "per-head masked" },
};

describe("quantized pages on WebGPU", { skip }, () => {
  if (found.skip !== false) return;
  const { device } = found;
  after(() => device.dispose());

  // Few variants, since a software adapter takes seconds to compile one.
  for (const { cold, format, headDim, ...c } of VARIANTS) {
    test(`attention equals f64: ${cold} from ${format}, heads of ${headDim}, ${JSON.stringify(c)}`, async () => {
      const full = { ...BASE, name: "", cold, format, headDim, ...c };
      const { error, nCold } = await runQuantizedCase(device, full);
      assert.ok(nCold >= 4, `${nCold} quantized pages`);
      assert.ok(error <= 1e-4, `relative error ${error}`);
    });

    test(`pages become what WASM makes of them: ${cold} from ${format}, heads of ${headDim}`, async () => {
      const shape = { nLayers: 2, nHeads: 2, nKvHeads: 2, headDim, format, cold };
      const { codec } = await compileKernels(device, shape, defaultTuning(device));
      const store = new GpuPageStore(device, shape, 1, codec);
      const slots = [store.allocate(), store.allocate(), store.allocate()];
      await store.prepare();
      const half = 32 * headDim;
      const values = slots.map((slot) =>
        normals(8 * half, slot + 5, 3).map((x) => Math.fround(roundToF16(x))),
      );
      for (const [i, slot] of slots.entries())
        for (const layer of [0, 1]) {
          const { k, v } = store.layer(layer, slots);
          // K and V of two KV heads each; the second layer's are twice the first's.
          for (const [buffer, from] of [
            [k, 0],
            [v, 2],
          ] as const) {
            const rows = values[i]!.subarray(from * half, (from + 2) * half).map((x) => (layer + 1) * x);
            device.handle.queue.writeBuffer(
              buffer,
              slot * 2 * half * (format === "f16" ? 2 : 4),
              words(rows, format),
            );
          }
        }
      const frozen = [slots[1]!, slots[0]!].map((slot) => store.cold!.freeze(slot, cold, 0));
      await store.prepare();
      const bytes = wholePageBytes(cold, headDim);
      const readBacks = new ReadBacks(device);
      const wasm = await instantiate("simd");
      for (const layer of [0, 1]) {
        const { cold: buffer } = store.layer(layer, frozen);
        const actual = await readBacks.read(
          "pages",
          buffer!.size,
          (target) => copy(buffer!, target),
          (b) => new Uint8Array(b.slice(0)),
        );
        for (const [i, slot] of [slots[1]!, slots[0]!].entries())
          for (const head of [0, 1]) {
            const page = Float32Array.from(
              [0, 2].flatMap((from) => [
                ...values[slot]!.subarray((from + head) * half, (from + head + 1) * half),
              ]),
              (x) => (layer + 1) * x,
            );
            const hot = wasm.alloc(page.byteLength, "test");
            const out = wasm.alloc(bytes, "test");
            wasm.f32(hot, page.length).set(page);
            const [from, to] = [FORMAT_CODES.f32, FORMAT_CODES[cold]];
            assert.equal(wasm.call("kv_convert_pages", hot, from, 1, headDim, CLIP[cold], to, out), 0);
            const expected = wasm.bytes(out, bytes);
            const at = ((frozen[i]! - 2 ** 31) * 2 + head) * bytes;
            const nOff = expected.reduce((n, byte, j) => n + (byte === actual[at + j] ? 0 : 1), 0);
            assert.ok(
              nOff <= 0.01 * bytes,
              `layer ${layer}, slot ${slot}, head ${head}: ${nOff} of ${bytes} bytes differ`,
            );
            wasm.free(hot);
            wasm.free(out);
          }
      }
      readBacks.dispose();
      store.dispose();
    });
  }

  test("forks share quantized pages; a cut one is decoded, and goes on as if written anew", async () => {
    const c: QuantizedCase = { ...BASE, name: "", cold: "q4", format: "f16", lists: "dense", chunks: [] };
    const host = new ArrayTensors();
    const { nHeads, nKvHeads, headDim, format, cold } = c;
    const shape = { nLayers: 1, nHeads, nKvHeads, headDim, format, cold };
    const attention = await HybridAttention.create(device, host, shape, { initialPages: 1 });
    const random = seeded(3);
    const q = normals(400 * nHeads * headDim, 9);
    const rows = { q, k: codableKeys(c, 400, random), v: codableValues(c, 400, random) };
    // With the same keys: a page of both is coded exactly only if its channels have the ranges of either.
    const other = { q, k: rows.k, v: codableValues(c, 400, random) };
    const feed = async (
      cache: ReturnType<typeof attention.createCache>,
      from: typeof rows,
      end: number,
      kept: number,
    ) => {
      const blocks = { qStart: cache.nTokens, qLen: end - cache.nTokens, blockSize: 32 };
      const lists = makeSelection(c, blocks, random);
      const actual = await attendChunk({ attention, host }, c, cache, from, lists, blocks);
      const width = nKvHeads * headDim;
      const joined = (a: Float32Array, b: Float32Array) =>
        Float32Array.from([...a.subarray(0, kept * width), ...b.subarray(kept * width, end * width)]);
      const expected = pagedAttention({
        ...c,
        ...{ q: q.subarray(0, end * nHeads * headDim), k: joined(rows.k, from.k), v: joined(rows.v, from.v) },
        ...{ calls: [{ blocks, lists }], scale: headDim ** -0.5 },
      }).subarray(blocks.qStart * nHeads * headDim);
      assert.ok(relativeError(actual, expected, headDim) <= 1e-4, `tokens ${blocks.qStart} to ${end}`);
    };
    const cache = attention.createCache();
    await feed(cache, rows, 330, 330);
    const { kv } = attention.memory();
    const fork = cache.fork();
    assert.equal(attention.memory().kv, kv);
    fork.truncate(75);
    await feed(fork, other, 320, 75);
    await feed(cache, rows, 400, 400);
    await feed(fork, other, 321, 75);
    cache.truncate(100);
    await feed(cache, other, 101, 100);
    cache.dispose();
    fork.dispose();
    assert.equal(attention.memory().kv, 0);
    attention.dispose();
  });

  function copy(from: GPUBuffer, to: GPUBuffer): void {
    const encoder = device.handle.createCommandEncoder();
    encoder.copyBufferToBuffer(from, 0, to, 0, from.size);
    device.handle.queue.submit([encoder.finish()]);
  }
});

/** Elements as a page holds them; they are f16 numbers. */
function words(x: Float32Array, format: "f32" | "f16"): Uint8Array<ArrayBuffer> {
  if (format === "f32") return new Uint8Array(Float32Array.from(x).buffer);
  return new Uint8Array(Uint16Array.from(x, f16Bits).buffer);
}

function f16Bits(x: number): number {
  const magnitude = Math.abs(x);
  const sign = x < 0 ? 0x8000 : 0;
  if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24);
  const exponent = Math.floor(Math.log2(magnitude));
  return sign | ((exponent + 15) << 10) | ((magnitude / 2 ** exponent - 1) * 1024);
}
