/**
 * Random damage to a small file: whatever the bytes, the reader and the configuration either understand them or throw
 * an InlayError, quickly and without large allocations. Seeds are fixed; a failure names its seed.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import { bytesSource, streamSource } from "../../src/gguf/local-sources.ts";
import { openModelFile } from "../../src/gguf/model-file.ts";
import type { ByteSource } from "../../src/gguf/source.ts";
import { readModelConfig } from "../../src/model/config.ts";
import { takeInventory } from "../../src/model/tensor-names.ts";
import {
  type ModelOptions,
  type ModelSpec,
  PRESETS,
  planGguf,
  type Random,
  seededRandom,
} from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";

const N_ROUNDS = 1200;

/** Values that break readers: extremes of every width. */
const EXTREMES = [
  0n,
  1n,
  0x7fn,
  0xffn,
  0xffffn,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 53n,
  2n ** 60n,
  2n ** 64n - 1n,
];

/** One small layer: most of the file is header. */
const MODEL: ModelSpec = {
  ...PRESETS["tiny-qwen3"],
  nLayers: 1,
  dModel: 32,
  dFfn: 32,
  nHeads: 2,
  vocabSize: 262,
};
const OPTIONS: ModelOptions = { type: "Q8_0", metadata: [["general.alignment", "u32", 32]] };
const original = tinyGguf(MODEL, OPTIONS);
const { header } = planGguf(MODEL, OPTIONS);
const fields = [...header.fields.values()];

type Bytes = Uint8Array<ArrayBuffer>;

const MUTATIONS: ((bytes: Bytes, random: Random) => Bytes)[] = [
  function flipBit(bytes, random) {
    const at = random.uint32() % header.bytes.byteLength;
    bytes[at]! ^= 1 << (random.uint32() & 7);
    return bytes;
  },
  function overwriteField(bytes, random) {
    const at = fields[random.uint32() % fields.length]!;
    const value = EXTREMES[random.uint32() % EXTREMES.length]!;
    if (at + 8 <= bytes.byteLength) new DataView(bytes.buffer).setBigUint64(at, value, true);
    return bytes;
  },
  function randomBytes(bytes, random) {
    const at = random.uint32() % header.bytes.byteLength;
    for (let i = at; i < at + 16; i++) bytes[i] = random.uint32();
    return bytes;
  },
  function cut(bytes, random) {
    return bytes.slice(0, random.uint32() % bytes.byteLength);
  },
  function dropBytes(bytes, random) {
    const at = random.uint32() % header.bytes.byteLength;
    bytes.copyWithin(at, at + 1 + (random.uint32() % 32));
    return bytes;
  },
  function copyWithinHeader(bytes, random) {
    const from = random.uint32() % header.bytes.byteLength;
    const to = random.uint32() % header.bytes.byteLength;
    bytes.copyWithin(to, from, from + 64);
    return bytes;
  },
];

async function understand(source: ByteSource): Promise<void> {
  const file = await openModelFile([source]);
  try {
    const config = readModelConfig(file.metadata, file.tensors);
    const { used } = takeInventory(config, file.tensors);
    // A stream that does not tell its size may claim a large tensor; the reading below finds the end.
    const limit = source.size ?? Infinity;
    for (const { name, byteLength } of used.values())
      assert.ok(byteLength <= limit, `${name}: ${byteLength} bytes`);
    let nBytes = 0;
    for await (const { tensor, chunks } of file.readTensors()) {
      let nTensor = 0;
      for await (const chunk of chunks) nTensor += chunk.byteLength;
      assert.equal(nTensor, tensor.byteLength);
      nBytes += nTensor;
    }
    assert.ok(nBytes <= original.byteLength);
  } finally {
    await file.close();
  }
}

const streamOf = (bytes: Uint8Array) =>
  streamSource(
    new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(bytes);
        controller.close();
      },
    }),
  );

for (const { name, open } of [
  { name: "in memory", open: (bytes: Uint8Array) => bytesSource(bytes, "fuzz.gguf") },
  { name: "as a stream without a size", open: streamOf },
]) {
  test(`fuzz ${name}: understood or an InlayError`, async () => {
    const before = process.memoryUsage().arrayBuffers;
    let nUnderstood = 0;
    for (let seed = 0; seed < N_ROUNDS; seed++) {
      const random = seededRandom(seed);
      let bytes = original.slice();
      for (let n = 1 + (random.uint32() % 2); n > 0; n--) {
        bytes = MUTATIONS[random.uint32() % MUTATIONS.length]!(bytes, random);
      }
      try {
        await understand(open(bytes));
        nUnderstood++;
      } catch (error) {
        if (!(error instanceof InlayError)) throw new Error(`seed ${seed}`, { cause: error });
        assert.ok(
          error.code === "invalid-model" || error.code === "unsupported-model",
          `seed ${seed}: ${error.code}`,
        );
        assert.ok(
          error.message.length < 600,
          `seed ${seed}: the message has ${error.message.length} characters`,
        );
      }
    }
    // Both outcomes must occur, or the mutations are too tame or too wild to test anything.
    assert.ok(
      nUnderstood > N_ROUNDS / 20 && nUnderstood < N_ROUNDS * 0.95,
      `${nUnderstood} of ${N_ROUNDS} understood`,
    );
    const grown = process.memoryUsage().arrayBuffers - before;
    assert.ok(grown < 1 << 30, `array buffers grew by ${grown} bytes`);
  });
}
