/** Bits chosen head by head: which heads of a pinned prompt get 4, and that such a prompt is stored, shared and restored. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { wholePageBytes } from "../../src/kv/quantize.ts";
import type { LoadOptions } from "../../src/options.ts";
import { openPromptFile, readHead, writeHead } from "../../src/prompts/file.ts";
import { FORMAT_VERSION, type PromptManifest, parseManifest } from "../../src/prompts/manifest.ts";
import type { PinRequest } from "../../src/prompts/pin-request.ts";
import { sha256 } from "../../src/storage/digest.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import type { PromptStore } from "../../src/storage/prompt-store.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import {
  answer,
  GO_ON,
  inlayError,
  load,
  never,
  nextProbability,
  open,
  opened,
  pin,
} from "../fixtures/pinned-prompt.ts";
import { sharpHeads } from "../fixtures/sharp-head.ts";

const gpu = await nodeGpu();
const SHARP = [1, 2];
const BYTES = await sharpHeads(SHARP);
const DOCUMENT = { kind: "text", text: words(700) } as const;

/** Words of a seeded vocabulary, so that pages differ. */
function words(n: number): string {
  let state = 7;
  return Array.from({ length: n }, () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return `w${(state >>> 8) % 97}`;
  }).join(" ");
}

const start = (store: PromptStore = new MemoryPromptStore(), options: LoadOptions = {}) =>
  load(store, { contextLength: 4096, ...options }, BYTES);
const pinAt = (engine: Engine, bits: PinRequest["bits"], more: Partial<PinRequest> = {}) =>
  pin(engine, DOCUMENT, { bits, ...more });

async function manifestOf(store: PromptStore, id = "book"): Promise<PromptManifest> {
  const entry = (await store.list()).find(({ info }) => info.id === id)!;
  return readHead(entry.head, entry.sha256);
}

describe("bits chosen head by head", () => {
  test("4 for heads whose outputs 2 would change, and 2 for the others", async () => {
    const store = new MemoryPromptStore();
    const engine = await start(store);
    await pinAt(engine, undefined);
    const { shape } = await manifestOf(store);
    assert.equal(shape.cold, "q2");
    assert.deepEqual(shape.wide, SHARP);
    await engine.dispose();
    const plain = new MemoryPromptStore();
    const other = await load(plain, { contextLength: 4096 }, await sharpHeads([]));
    await pinAt(other, undefined);
    assert.deepEqual((await manifestOf(plain)).shape.wide, [], "the same model without sharp heads");
    await other.dispose();
  });

  test("between those of 2 bits and of 4 in bytes, stored and in memory", async () => {
    const probe = async (bits: PinRequest["bits"]) => {
      const engine = await start();
      const { info } = await pinAt(engine, bits);
      const result = { info, kv: engine.memory().kv };
      await engine.dispose();
      return result;
    };
    const [mixed, q2, q4] = [await probe(undefined), await probe(2), await probe(4)];
    const nCold = Math.floor((mixed.info.tokens - 128) / 32) - 1;
    const more = nCold * SHARP.length * (wholePageBytes("q4", 16) - wholePageBytes("q2", 16));
    assert.ok(nCold > 20);
    // The manifest has a few bytes for the list of heads.
    assert.ok(Math.abs(mixed.info.byteLength - q2.info.byteLength - more) < 100);
    // And each page's slot a table of its heads.
    assert.equal(mixed.kv - q2.kv, more + nCold * 16);
    assert.ok(mixed.info.bits > q2.info.bits && mixed.info.bits < q4.info.bits);
  });

  for (const [name, options, more] of [
    ["dense", {}, {}],
    ["sorted by clusters", {}, { sparsity: 0.5 }],
    ["decoded by dhsa", { attention: { decode: "dhsa" } }, {}],
    ["from an f16 cache", { kvCache: { format: "f16" } }, {}],
  ] as const)
    test(`the same tokens before and after a reload, and elsewhere: ${name}`, async () => {
      const store = new MemoryPromptStore();
      const first = await start(store, options);
      const made = await pinAt(first, undefined, more);
      assert.ok((await manifestOf(store)).shape.wide!.length > 0);
      const before = await answer(first, made.key, GO_ON);
      const file = await first.pinned.export("book", false);
      await first.dispose();
      const second = await start(store, options);
      const restored = await open(second);
      assert.equal(restored.info.bits, made.info.bits);
      assert.deepEqual(await answer(second, restored.key, GO_ON), before);
      const again = await pinAt(second, undefined, more);
      assert.deepEqual(again.phases, [], "it is the same prompt: nothing to prefill");
      await second.dispose();
      const third = await start(new MemoryPromptStore(), options);
      const imported = await opened(third.pinned.import(file, false, never));
      assert.deepEqual(await answer(third, imported.key, GO_ON), before);
      await third.dispose();
    });

  test("is another prompt than one whose heads all have 2 bits or 4", async () => {
    const store = new MemoryPromptStore();
    const engine = await start(store);
    for (const [bits, phases] of [
      [undefined, ["prefill", "store"]],
      [2, ["prefill", "store"]],
      [2, []],
      [4, ["prefill", "store"]],
      [undefined, ["prefill", "store"]],
      [undefined, []],
    ] as const)
      assert.deepEqual((await pinAt(engine, bits)).phases, phases, `${bits}`);
    await engine.dispose();
  });

  test("is what a cache that quantizes by itself has", async () => {
    const store = new MemoryPromptStore();
    const engine = await start(store, { kvCache: { format: "q2" } });
    await pinAt(engine, undefined);
    const { shape } = await manifestOf(store);
    assert.deepEqual([shape.format, shape.cold, shape.wide], ["f32", "q2", null]);
    await engine.dispose();
  });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`chosen on ${device}, restored in WASM, and the reverse`, { skip: gpu.skip }, async () => {
      const store = new MemoryPromptStore();
      const onGpu = await start(store, { device });
      const made = await pinAt(onGpu, undefined);
      assert.deepEqual((await manifestOf(store)).shape.wide, SHARP);
      const there = await nextProbability(onGpu, made.key);
      const wasm = await start(store);
      const here = await nextProbability(wasm, (await open(wasm)).key);
      assert.ok(Math.abs(here - there) < 0.03, `${here} ${there}`);
      const back = await pinAt(wasm, undefined, { id: "back" });
      const expected = await nextProbability(wasm, back.key);
      const restored = await nextProbability(onGpu, (await open(onGpu, "back")).key);
      assert.ok(Math.abs(restored - expected) < 0.03, `${restored} ${expected}`);
      await onGpu.dispose();
      await wasm.dispose();
    });
});

describe("a prompt pinned on one with bits chosen head by head", () => {
  const MORE = { kind: "text", text: ` ${words(300)}` } as const;
  const pinOn = (engine: Engine, on: string, bits?: PinRequest["bits"]) =>
    opened(engine.pinned.pin({ id: "both", content: MORE, bits, encrypt: false, on }, never));

  test("keeps the choice, and shares the pages", async () => {
    const store = new MemoryPromptStore();
    const engine = await start(store);
    const base = await pinAt(engine, undefined);
    const kv = engine.memory().kv;
    const before = await answer(engine, base.key, GO_ON);
    const both = await pinOn(engine, base.key);
    assert.ok(engine.memory().kv < 2.2 * kv);
    assert.deepEqual((await manifestOf(store, "both")).shape.wide, SHARP);
    const expected = await answer(engine, both.key, GO_ON);
    assert.deepEqual((await answer(engine, base.key, GO_ON)).ids, before.ids);
    assert.deepEqual((await pinOn(engine, base.key)).phases, []);
    for (const bits of [2, 4] as const)
      await assert.rejects(
        pinOn(engine, base.key, bits),
        inlayError("invalid-option", /has 2 bits, 2 of its heads 4: leave bits out/),
      );
    await engine.dispose();
    const reloaded = await start(store);
    assert.deepEqual(await answer(reloaded, (await open(reloaded, "both")).key, GO_ON), expected);
    await reloaded.dispose();
  });

  test("chooses where the other has nothing coded", async () => {
    for (const bits of [16, undefined] as const) {
      const store = new MemoryPromptStore();
      const engine = await start(store);
      const short = { kind: "text", text: words(30) } as const;
      const base = await pin(engine, bits === 16 ? DOCUMENT : short, { bits });
      const both = await pinOn(engine, base.key);
      assert.deepEqual((await manifestOf(store, "both")).shape.wide, SHARP);
      const expected = await answer(engine, both.key, GO_ON);
      await engine.dispose();
      const reloaded = await start(store);
      assert.deepEqual(await answer(reloaded, (await open(reloaded, "both")).key, GO_ON), expected);
      await reloaded.dispose();
    }
  });

  test("is refused the choice by a cache that quantizes by itself", async () => {
    const store = new MemoryPromptStore();
    const plain = await start(store);
    await pinAt(plain, undefined);
    const engine = await start(store, { kvCache: { format: "q2" } });
    const { key } = await open(engine);
    assert.ok((await answer(engine, key, GO_ON)).ids.length > 0);
    await assert.rejects(
      pinOn(engine, key),
      inlayError("invalid-option", /kvCache.format is "q2".*2 of its heads 4/),
    );
    await plain.dispose();
    await engine.dispose();
  });
});

describe("the list of heads in a manifest", () => {
  async function stored() {
    const store = new MemoryPromptStore();
    const engine = await start(store);
    await pinAt(engine, undefined);
    const file = await engine.pinned.export("book", false);
    await engine.dispose();
    return { manifest: await manifestOf(store), file };
  }

  test("that contradicts the model or the records is damage", async () => {
    const { manifest } = await stored();
    const read = (shape: object) => parseManifest(JSON.stringify({ ...manifest, shape }), FORMAT_VERSION);
    assert.deepEqual(read(manifest.shape), manifest);
    const nHeads = manifest.shape.nLayers * manifest.shape.nKvHeads;
    const big = 2 ** 31 - 1;
    for (const [name, changes] of [
      ["twice the same head", { wide: [1, 1, 2] }],
      ["not ascending", { wide: [2, 1] }],
      ["a head too many", { wide: [1, nHeads] }],
      ["below 0", { wide: [-1, 2] }],
      ["not whole", { wide: [1.5, 2] }],
      ["not numbers", { wide: ["1", "2"] }],
      ["not a list", { wide: { length: 2, 0: 1, 1: 2 } }],
      ["a number", { wide: 2 }],
      ["other lengths than the records'", { wide: [1] }],
      ["none, though the records have some", { wide: null }],
      ["none at all", { wide: [] }],
      ["of pages of 4 bits", { cold: "q4" }],
      ["of pages that are not quantized", { cold: null }],
      ["of billions of layers", { nLayers: big }],
      ["of billions of heads", { nKvHeads: big }],
      ["the last of billions of heads", { nLayers: big, nKvHeads: big, wide: [2 ** 53 - 1] }],
    ] as const)
      assert.throws(() => read({ ...manifest.shape, ...changes }), { code: "storage-failed" }, name);
  });

  test("is not there in format version 2, whose prompts are read", async () => {
    const store = new MemoryPromptStore();
    const engine = await start(store);
    const { key } = await pinAt(engine, 4);
    const expected = await answer(engine, key, GO_ON);
    const { manifest, read } = await openPromptFile(await engine.pinned.export("book", false));
    await engine.dispose();
    const { wide: _, ...shape } = manifest.shape;
    const { head } = await writeHead({ ...manifest, shape } as PromptManifest);
    head[8] = 2;
    const records = await Promise.all(manifest.records.map((_, i) => read(i)));
    const digest = Buffer.from(await sha256(head), "hex");
    const old = new Blob([head, ...records, digest]);
    const other = await start();
    const imported = await opened(other.pinned.import(old, false, never));
    assert.deepEqual(await answer(other, imported.key, GO_ON), expected);
    assert.deepEqual((await pinAt(other, 4)).phases, [], "it is the same prompt");
    await other.dispose();
  });
});
