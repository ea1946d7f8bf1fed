/** Pinned prompts with a sparsity: clustered, stored, restored, read through their clusters. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { InlayError } from "../../src/errors.ts";
import type { Prompt } from "../../src/generate/request.ts";
import type { LoadOptions } from "../../src/options.ts";
import { openPromptFile, promptFile, readHead, writeHead } from "../../src/prompts/file.ts";
import { firstSqueezedRecord, type PromptManifest } from "../../src/prompts/manifest.ts";
import type { PinEvent } from "../../src/prompts/pin-events.ts";
import type { PinRequest } from "../../src/prompts/pin-request.ts";
import { sha256 } from "../../src/storage/digest.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import type { Bytes, PinnedInfo, PromptStore } from "../../src/storage/prompt-store.ts";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { collect, greedy, loadEngine, TEST_HOST } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { uniform } from "../fixtures/random.ts";

const BYTES = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 4096 }, { type: "Q8_0", seed: 4 });
const gpu = await nodeGpu();
const never = new AbortController().signal;

const load = (store: PromptStore, options: LoadOptions = {}, bytes = BYTES): Promise<Engine> =>
  loadEngine(bytes, { contextLength: 4096, ...options }, { ...TEST_HOST, openPromptStore: () => store });

async function opened(events: AsyncIterable<PinEvent>) {
  const phases = new Set<string>();
  let prompt: { key: string; info: PinnedInfo } | undefined;
  for await (const event of events) {
    if (event.kind === "pinned") prompt = event;
    else phases.add(event.phase);
  }
  if (!prompt) throw new Error("there was no prompt");
  return { ...prompt, phases: [...phases] };
}

/** Text of about two tokens a word. */
function text(nWords: number): PinRequest["content"] {
  const next = uniform(9);
  const words = ["river", "stone", "lamp", "keeper", "storm", "boat", "night", "bread"];
  return {
    kind: "text",
    text: Array.from({ length: nWords }, () => words[Math.floor(next() * 8)]).join(" "),
  };
}

const pin = (engine: Engine, request: Partial<PinRequest> = {}) =>
  opened(
    engine.pinned.pin(
      { id: "book", content: text(300), bits: 16, sparsity: 0.8, encrypt: false, ...request },
      never,
    ),
  );
const open = (engine: Engine) => opened(engine.pinned.open("book", true, never));

const QUESTION: Prompt = { kind: "ids", ids: Uint32Array.from({ length: 21 }, (_, i) => 40 + 3 * i) };

async function answer(engine: Engine, key: string, prompt = QUESTION) {
  const { ids, end } = await collect(
    engine.generate({ ...greedy([], 16), prompt: { ...prompt, pinned: key } }),
  );
  const { cachedTokens, attention } = end.usage;
  return { ids, cachedTokens, attention };
}

describe("a pinned prompt with a sparsity", () => {
  for (const [name, bits, options] of [
    ["as it is", 16, {}],
    ["4 bits", 4, {}],
    ["2 bits from an f16 cache", 2, { kvCache: { format: "f16" } }],
    ["as a q4 cache has it", undefined, { kvCache: { format: "q4" } }],
    ["with dhsa", 4, { attention: { prefill: "dhsa", decode: "dhsa" } }],
  ] as const)
    test(`gives the same tokens before and after a reload: ${name}`, async () => {
      const store = new MemoryPromptStore();
      const first = await load(store, options);
      const made = await pin(first, { bits });
      assert.deepEqual(made.phases, ["prefill", "cluster", "store"]);
      assert.ok(made.info.tokens > 512, `${made.info.tokens} tokens`);
      assert.equal(made.info.sparsity, 0.8);
      const before = await answer(first, made.key);
      assert.equal(before.cachedTokens, made.info.tokens);
      for (const phase of ["prefill", "decode"] as const) {
        const { policy, keysRead, missingMass } = before.attention[phase];
        assert.equal(policy, "squeezed");
        assert.ok(keysRead! > 0.1 && keysRead! < 0.75, `${phase} read ${keysRead}`);
        assert.ok(missingMass! > 0 && missingMass! < 1, `${phase} misses ${missingMass}`);
      }
      const second = await load(store, options);
      const restored = await open(second);
      assert.deepEqual(await answer(second, restored.key), before);
      // The next turn goes on from the first one's cache, another question from the prompt.
      const other: Prompt = {
        kind: "ids",
        ids: Uint32Array.of(...(QUESTION as { ids: Uint32Array }).ids.slice(0, 9), 7, 8),
      };
      const again = await answer(second, restored.key, other);
      assert.ok(again.cachedTokens >= made.info.tokens);
      assert.deepEqual(again.ids, (await answer(first, made.key, other)).ids);
      await first.dispose();
      await second.dispose();
    });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`is made on ${device} and restored in WASM, and the reverse`, { skip: gpu.skip }, async () => {
      const store = new MemoryPromptStore();
      const onGpu = await load(store, { device });
      const wasm = await load(store);
      for (const [from, to] of [
        [onGpu, wasm],
        [wasm, onGpu],
      ] as const) {
        const made = await pin(from, { sparsity: from === wasm ? 0.7 : 0.8, content: text(200) });
        const before = await answer(from, made.key);
        const there = await answer(to, (await open(to)).key);
        // On webgpu activations are not rounded to 8 bits: of clusters at the threshold others are read.
        if (device === "hybrid") assert.deepEqual(there.ids, before.ids);
        const shares = [before, there].map(({ attention }) => attention.decode.keysRead!);
        assert.ok(Math.abs(shares[0]! - shares[1]!) < 0.02, `${shares} of the keys were read`);
      }
      await onGpu.dispose();
      await wasm.dispose();
    });

  test("reads everything with maxMissing, and then answers as without clusters", async () => {
    const engine = await load(new MemoryPromptStore());
    const plain = await pin(engine, { sparsity: 0 });
    assert.deepEqual(plain.phases, ["prefill", "store"]);
    assert.equal(plain.info.sparsity, 0);
    const expected = await answer(engine, plain.key);
    assert.equal(expected.attention.decode.policy, "dense");
    await engine.dispose();
    const other = await load(new MemoryPromptStore());
    const { key } = await pin(other, { maxMissing: 1e-9 });
    const dense = await answer(other, key);
    assert.deepEqual([dense.ids, dense.attention.decode.policy], [expected.ids, "dense"]);
    await other.dispose();
  });

  test("is left as it is when it is short, and by default", async () => {
    const engine = await load(new MemoryPromptStore());
    assert.equal((await pin(engine, { content: text(30) })).info.sparsity, 0);
    assert.equal((await pin(engine, { sparsity: undefined })).info.sparsity, 0);
    await engine.dispose();
  });

  test("is encrypted with its clusters, and gives the same tokens", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    const plain = await pin(engine);
    const expected = await answer(engine, plain.key);
    const secret = await pin(engine, { id: "secret", encrypt: true });
    const entry = (await store.list()).find(({ info }) => info.id === "secret")!;
    await engine.dispose();
    const again = await load(store);
    const reopened = await opened(again.pinned.open("secret", true, never));
    assert.equal(reopened.info.sparsity, secret.info.sparsity);
    assert.deepEqual(await answer(again, reopened.key), expected);
    await again.dispose();
    // The last record is of clusters: its stored bytes are not those of the file in the clear.
    const other = await load(store);
    const file = await openPromptFile(await other.pinned.export("book", false));
    const last = file.manifest.records.length - 1;
    const [stored] = await store.read(entry, last, last + 1);
    assert.equal(stored!.byteLength, file.manifest.records[last]!.byteLength + 28, "an IV and a tag");
    await other.dispose();
  });

  test("is neither gone on from nor pinned on another, and nothing is lost by asking", async () => {
    const engine = await load(new MemoryPromptStore());
    const squeezed = await pin(engine);
    const whole = await pin(engine, { id: "whole", sparsity: 0 });
    const { kv } = engine.memory();
    const more = { id: "more", content: { kind: "text", text: " and then" } } as const;
    const refused = (message: RegExp) => (error: unknown) =>
      error instanceof InlayError && error.code === "invalid-option" && message.test(error.message);
    await assert.rejects(
      pin(engine, { ...more, sparsity: 0, on: squeezed.key }),
      refused(/"book" was pinned with a sparsity of 0\.8, and only those with sparsity: 0/),
    );
    await assert.rejects(
      pin(engine, { ...more, sparsity: 0.5, on: whole.key }),
      refused(/sparsity is 0\.5, and a prompt that goes on another one is read whole/),
    );
    assert.equal(engine.memory().kv, kv);
    assert.deepEqual((await engine.pinned.list()).map(({ id }) => id).sort(), ["book", "whole"]);
    const both = await pin(engine, { ...more, sparsity: 0, on: whole.key });
    assert.equal(both.info.sparsity, 0);
    await engine.dispose();
  });

  test("is computed again for another sparsity, opened for the same", async () => {
    const store = new MemoryPromptStore();
    const first = await load(store);
    await pin(first);
    await first.dispose();
    const engine = await load(store);
    assert.deepEqual((await pin(engine)).phases, ["restore"]);
    assert.deepEqual((await pin(engine, { sparsity: 0.5 })).phases, ["prefill", "cluster", "store"]);
    await engine.dispose();
  });

  test("is never cut: a request that shares a part of it is computed anew", async () => {
    const engine = await load(new MemoryPromptStore());
    const { key, info } = await pin(engine);
    const whole = engine.promptIds({ kind: "ids", ids: Uint32Array.of(1), pinned: key });
    const part = whole.slice(0, info.tokens - 7);
    const { ids, end } = await collect(engine.generate(greedy([...part, 50, 51], 8)));
    assert.equal(end.usage.cachedTokens, 0);
    const other = await load(new MemoryPromptStore());
    assert.deepEqual(ids, (await collect(other.generate(greedy([...part, 50, 51], 8)))).ids);
    await engine.dispose();
    await other.dispose();
  });

  test("layers with a sliding window are not clustered, and see the order of tokens", async () => {
    const bytes = tinyGguf(
      { ...PRESETS["tiny-llama"], contextLength: 4096, architecture: "qwen2", slidingWindow: 64 },
      { type: "Q8_0", seed: 4 },
    );
    const plain = await load(new MemoryPromptStore(), {}, bytes);
    const expected = await answer(plain, (await pin(plain, { sparsity: 0 })).key);
    const engine = await load(new MemoryPromptStore(), {}, bytes);
    const { key, info } = await pin(engine);
    assert.equal(info.sparsity, 0, "there is no layer without a window");
    assert.deepEqual((await answer(engine, key)).ids, expected.ids);
    await plain.dispose();
    await engine.dispose();
  });

  test("stopped while it is clustered leaves nothing", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    for await (const event of engine.pinned.pin(
      { id: "book", content: text(300), encrypt: false, bits: 4, sparsity: 0.8 },
      never,
    ))
      if (event.kind === "progress" && event.phase === "cluster") break;
    assert.equal(engine.memory().kv, 0);
    assert.deepEqual(await store.list(), []);
    assert.equal((await pin(engine)).info.sparsity, 0.8);
    await engine.dispose();
  });

  test("frees its centroids with the last cache that uses them", async () => {
    const engine = await load(new MemoryPromptStore());
    const heap = () => engine.memory().wasmHeap;
    const once = async () => {
      const { key } = await pin(engine);
      await answer(engine, key);
      await engine.pinned.delete("book");
    };
    await once();
    const before = heap();
    for (let i = 0; i < 5; i++) await once();
    assert.ok(heap() <= before * 1.1, `the heap grew from ${before} to ${heap()}`);
    await engine.dispose();
  });

  test("clusters that do not fit the tokens are refused, with checksums that are right", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    await pin(engine);
    const file = await openPromptFile(await engine.pinned.export("book", false));
    const first = firstSqueezedRecord(file.manifest);
    const withRecord = async (change: (words: Uint32Array) => void): Promise<Blob> => {
      const records: Bytes[] = [];
      for (let i = 0; i < file.manifest.records.length; i++) records.push(await file.read(i));
      change(new Uint32Array(records[first]!.buffer, 0, 64));
      const listed = await Promise.all(
        records.map(async (bytes) => ({ byteLength: bytes.byteLength, sha256: await sha256(bytes) })),
      );
      const manifest: PromptManifest = { ...file.manifest, id: "forged", records: listed };
      const { head, sha256: digest } = await writeHead(manifest);
      return promptFile(
        head,
        records.map((record) => new Blob([record])),
        digest,
      );
    };
    for (const change of [
      (words: Uint32Array) => words.fill(1_000_000, 40),
      (words: Uint32Array) => words.fill(0, 33, 34),
      (words: Uint32Array) => words.fill(5, 0, 1),
    ])
      await assert.rejects(
        opened(engine.pinned.import(await withRecord(change), false, never)),
        (error) =>
          error instanceof InlayError && error.code === "storage-failed" && /do not fit/.test(error.message),
      );
    for (const squeezed of [
      {},
      { ...file.manifest.squeezed, layers: [] },
      { ...file.manifest.squeezed, maxMissing: 0 },
    ]) {
      const { head, sha256: digest } = await writeHead({ ...file.manifest, squeezed } as PromptManifest);
      await assert.rejects(
        readHead(head, digest),
        (error) =>
          error instanceof InlayError &&
          error.code === "storage-failed" &&
          /lacks fields/.test(error.message),
      );
    }
    const { head } = await writeHead(file.manifest);
    head[8] = 2; // the format version, whose clusters had no spreads
    await assert.rejects(
      readHead(head, await sha256(head)),
      (error) =>
        error instanceof InlayError &&
        error.code === "cache-mismatch" &&
        /"book" has clusters of format version 2; this version of Inlay reads those of 3: pin it again/.test(
          error.message,
        ),
    );
    await engine.dispose();
  });
});
