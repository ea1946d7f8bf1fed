/** Pinned prompts in the engine: the same answers after a restore, what is refused, and what damage leads to. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { InlayError } from "../../src/errors.ts";
import type { Prompt } from "../../src/generate/request.ts";
import type { LoadOptions } from "../../src/options.ts";
import type { PinBits } from "../../src/prompts/coding.ts";
import type { PinnedContent } from "../../src/prompts/content.ts";
import { openPromptFile, promptFile, readHead, writeHead } from "../../src/prompts/file.ts";
import { sha256 } from "../../src/storage/digest.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import type { Bytes, PromptStore, PromptWriter } from "../../src/storage/prompt-store.ts";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { collect, greedy, loadEngine } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import {
  answer,
  BYTES,
  CHAT,
  GO_ON,
  inlayError,
  load,
  never,
  nextProbability,
  open,
  opened,
  pin,
  QUESTION,
  TEXT,
} from "../fixtures/pinned-prompt.ts";

const gpu = await nodeGpu();
const BOOK = { id: "book", content: CHAT, bits: undefined, encrypt: false } as const;
/** The answer to the same conversation of an engine that pins nothing. */
async function plainAnswer(options: LoadOptions = {}): Promise<number[]> {
  const engine = await loadEngine(BYTES, options);
  const messages = [...CHAT.messages, ...(QUESTION as Extract<Prompt, { kind: "chat" }>).messages];
  const { ids } = await answer(engine, undefined, { ...QUESTION, messages } as Prompt);
  await engine.dispose();
  return ids;
}

describe("a pinned prompt", () => {
  for (const format of ["f32", "f16"] as const)
    test(`gives the same tokens before and after a reload, and unpinned; nothing is prefilled again (${format})`, async () => {
      const options = { kvCache: { format } };
      const store = new MemoryPromptStore();
      const first = await load(store, options);
      const made = await pin(first);
      assert.deepEqual(made.phases, ["prefill", "store"]);
      assert.ok(made.info.tokens > 64);
      const before = await answer(first, made.key);
      assert.equal(before.cached, made.info.tokens);
      await first.dispose();

      const second = await load(store, options);
      const restored = await open(second);
      assert.deepEqual(restored.phases, ["restore"]);
      assert.deepEqual({ ...restored.info, usedAt: 0 }, { ...made.info, usedAt: 0 });
      assert.deepEqual(await answer(second, restored.key), before);
      assert.deepEqual(before.ids, await plainAnswer(options));
      await second.dispose();
    });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`made in WASM is restored on ${device}, and the reverse`, { skip: gpu.skip }, async () => {
      const store = new MemoryPromptStore();
      const wasm = await load(store);
      await pin(wasm, CHAT, { id: "from WASM" });
      const expected = await plainAnswer();
      const onGpu = await load(store, { device });
      const here = await open(onGpu, "from WASM");
      const { ids, cached } = await answer(onGpu, here.key);
      assert.deepEqual({ ids, cached }, { ids: expected, cached: here.info.tokens });
      // The pages that the GPU computed differ a little: its activations are not rounded to 8 bits.
      const made = await pin(onGpu, CHAT, { id: "from the GPU" });
      const there = await nextProbability(onGpu, made.key);
      const back = await open(wasm, "from the GPU");
      const again = await nextProbability(wasm, back.key);
      assert.ok(Math.abs(again - there) < 0.03, `${again} ${there}`);
      assert.equal((await answer(wasm, back.key)).cached, back.info.tokens);
      await onGpu.dispose();
      await wasm.dispose();
    });

  test("that is stored already is opened, another one under its id replaces it", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    await pin(engine);
    assert.deepEqual(
      (await pin(engine)).phases,
      [],
      "its pages are still here: nothing to prefill or restore",
    );
    const again = await load(store);
    assert.deepEqual((await pin(again)).phases, ["restore"]);
    const other = await pin(again, TEXT);
    assert.deepEqual(other.phases, ["prefill", "store"]);
    const listed = await again.pinned.list();
    assert.deepEqual(
      listed.map(({ usedAt: _, ...info }) => info),
      [other.info].map(({ usedAt: _, ...info }) => info),
    );
    await engine.dispose();
    await again.dispose();
  });

  test("stays in memory while it is open, whatever else is asked", async () => {
    const engine = await load(new MemoryPromptStore(), { contextLength: 256 });
    const { key, info } = await pin(engine);
    for (let i = 0; i < 10; i++)
      await collect(
        engine.generate(
          greedy(
            Array.from({ length: 200 }, (_, j) => 30 + ((i * 7 + j * 3) % 250)),
            2,
          ),
        ),
      );
    assert.equal((await answer(engine, key)).cached, info.tokens);
    await engine.pinned.close(key);
    await assert.rejects(answer(engine, key), inlayError("disposed", /closed or deleted/));
    assert.equal(await engine.pinned.delete("book"), true);
    assert.equal(await engine.pinned.delete("book"), false);
    await engine.dispose();
  });

  test("frees its pages when it is closed", async () => {
    const engine = await load(new MemoryPromptStore());
    assert.equal(engine.memory().kv, 0);
    const keys = [await pin(engine), await open(engine)].map(({ key }) => key);
    const both = engine.memory().kv;
    await engine.pinned.close(keys[0]!);
    assert.equal(engine.memory().kv, both, "two handles share their pages");
    await engine.pinned.close(keys[1]!);
    assert.equal(engine.memory().kv, 0);
    await engine.dispose();
  });

  test("of raw text is continued by text and ids, and not by messages", async () => {
    const engine = await load(new MemoryPromptStore());
    const { key, info } = await pin(engine, TEXT);
    const prompt: Prompt = { kind: "text", text: "The wind blew", parseSpecial: true };
    const pinned = await answer(engine, key, prompt);
    assert.equal(pinned.cached, info.tokens);
    const alone = await loadEngine(BYTES);
    const whole = await answer(alone, undefined, { ...prompt, text: TEXT.text + prompt.text });
    assert.deepEqual(pinned.ids, whole.ids);
    const byIds = await answer(engine, key, { kind: "ids", ids: Uint32Array.of(40, 41) });
    assert.equal(byIds.cached, info.tokens);
    await assert.rejects(answer(engine, key), inlayError("invalid-option", /"book" was pinned as raw text/));
    await alone.dispose();
    await engine.dispose();
  });

  test("that a template writes differently is refused with the place where they part", async () => {
    const chatTemplate =
      "{{ messages | length }} {% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}";
    const engine = await load(new MemoryPromptStore(), { chatTemplate });
    const { key } = await pin(engine);
    await assert.rejects(
      answer(engine, key),
      inlayError("invalid-option", /part at token \d+ of its \d+.*"3.*"4/),
    );
    await engine.dispose();
  });

  test("that is aborted leaves nothing behind, in memory or stored", async () => {
    for (const phase of ["prefill", "store"]) {
      const store = new MemoryPromptStore();
      const engine = await load(store);
      const controller = new AbortController();
      const reason = new Error("the user left");
      const pinning = (async () => {
        for await (const event of engine.pinned.pin(BOOK, controller.signal))
          if (event.kind === "progress" && event.phase === phase) controller.abort(reason);
      })();
      await assert.rejects(pinning, reason, phase);
      assert.deepEqual(await engine.pinned.list(), [], phase);
      assert.equal(engine.memory().kv, 0, phase);
      for await (const event of engine.pinned.pin(BOOK, never))
        if (event.kind === "progress" && event.phase === phase) break;
      assert.equal(engine.memory().kv, 0, `left while in ${phase}`);
      assert.ok((await answer(engine, undefined)).ids.length > 0, "the queue is free");
      await engine.dispose();
    }
  });

  test("too long for the context is refused before the work", async () => {
    const engine = await load(new MemoryPromptStore(), { contextLength: 64 });
    await assert.rejects(pin(engine), inlayError("context-full", /64 positions/));
    await engine.dispose();
  });
});

/** `nTokens` words or more, none like its neighbour. */
function longText(nTokens: number): PinnedContent {
  const words = Array.from({ length: nTokens }, (_, i) => `${(i * 7919) % 1000} `);
  return { kind: "text", text: words.join("") };
}

const LONG_BYTES = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 4096 }, { type: "Q8_0", seed: 4 });
const loadLong = (store: PromptStore, options: LoadOptions = {}) => load(store, options, LONG_BYTES);

describe("a long pinned prompt", () => {
  const options = { contextLength: 4096 };

  for (const [name, bits, loadOptions] of [
    ["as it is", 16, options],
    ["8 bits", 8, options],
    ["4 bits", 4, options],
    ["2 bits", 2, options],
    ["2 bits from an f16 cache", 2, { ...options, kvCache: { format: "f16" } }],
    ["as a q4 cache has it", undefined, { ...options, kvCache: { format: "q4" } }],
    ["with decoding by dhsa", 4, { ...options, attention: { decode: "dhsa" } }],
  ] as const)
    test(`beyond dense attention gives the same tokens before and after a reload: ${name}`, async () => {
      const store = new MemoryPromptStore();
      const first = await loadLong(store, loadOptions);
      const made = await pin(first, longText(1000), { bits });
      assert.ok(made.info.tokens > 2100, `${made.info.tokens} tokens`);
      assert.equal(made.info.attention, "dhsa 0.25");
      const before = await answer(first, made.key, GO_ON);
      assert.equal(before.cached, made.info.tokens);
      const second = await loadLong(store, loadOptions);
      const restored = await open(second);
      assert.deepEqual(await answer(second, restored.key, GO_ON), before);
      // A question that parts from the first where an idle cache has more of it than the pinned one.
      const other: Prompt = { kind: "ids", ids: Uint32Array.of(40, 41, 7, 8) };
      const again = await answer(second, restored.key, other);
      assert.ok(again.cached >= made.info.tokens, `${again.cached} of ${made.info.tokens} were cached`);
      assert.deepEqual(again.ids, (await answer(first, made.key, other)).ids);
      await first.dispose();
      await second.dispose();
    });

  test("is attended to as the policy says, whatever it was prefilled with", async () => {
    const store = new MemoryPromptStore();
    const dense = await loadLong(store, { ...options, attention: { prefill: "dense" } });
    const { info } = await pin(dense, longText(1000));
    assert.equal(info.attention, "dense");
    await dense.dispose();
    const sparse = await loadLong(store, { ...options, attention: { prefill: "dhsa", decode: "dhsa" } });
    const { key } = await open(sparse);
    const { end } = await collect(sparse.generate({ ...greedy([], 8), prompt: { ...GO_ON, pinned: key } }));
    const { decode } = end.usage.attention;
    assert.equal(decode.policy, "dhsa");
    assert.ok(decode.keysRead! < 0.5, `${decode.keysRead}`);
    await sparse.dispose();
  });

  test("is smaller with fewer bits, stored and in memory, and nearer to the truth with more", async () => {
    const probe = async (bits: PinBits) => {
      // An engine of its own: of two prompts with the same tokens, a request reads either.
      const engine = await loadLong(new MemoryPromptStore(), options);
      const { info, key } = await pin(engine, longText(1000), { bits });
      const result = { info, kv: engine.memory().kv, probability: await nextProbability(engine, key) };
      await engine.dispose();
      return result;
    };
    const exact = await probe(16);
    assert.equal(exact.info.bits, 32, "as the cache has them: f32 in WASM");
    const errors: number[] = [];
    // Heads of 16: a range is shared by 16 channels, so ranges take a bit per element.
    for (const [bits, least, most] of [
      [8, 3, 3.5],
      [4, 4.8, 5.8],
      [2, 6.5, 8.5],
    ] as const) {
      const { info, kv, probability } = await probe(bits);
      // Ranges take a bit, sinks and window are f16.
      assert.ok(info.bits > bits + 1 && info.bits < bits + 2.5, `${info.bits} bits on average`);
      assert.ok(Math.abs(info.bits / exact.info.bits - info.byteLength / exact.info.byteLength) < 0.01);
      const ratio = exact.info.byteLength / info.byteLength;
      assert.ok(ratio > least && ratio < most, `${bits} bits: ${ratio} times fewer bytes than f32`);
      assert.ok(kv < exact.kv / (least * 0.7), `${kv} of ${exact.kv} bytes in memory`);
      errors.push(Math.abs(probability - exact.probability));
    }
    const [q8, q4, q2] = errors as [number, number, number];
    // Weights are random: the model magnifies small differences, by about as much as the distance of codes grows.
    assert.ok(q8 > 0 && q8 < 0.05, `8 bits: ${q8}`);
    assert.ok(q4 < 0.15 && q2 < 0.5, `4 bits: ${q4}, 2 bits: ${q2}`);
  });

  test("quantized in WASM is restored where caches are f16, and the reverse", async () => {
    const store = new MemoryPromptStore();
    const f32 = await loadLong(store, options);
    const made = await pin(f32, longText(1000), { bits: 4 });
    const f16 = await loadLong(store, { ...options, kvCache: { format: "f16" } });
    const restored = await open(f16);
    const [a, b] = [await nextProbability(f32, made.key), await nextProbability(f16, restored.key)];
    assert.ok(Math.abs(a - b) < 0.01, `${a} ${b}`);
    await pin(f16, longText(1000), { id: "back", bits: 16 });
    const back = await open(f32, "back");
    assert.equal(back.info.bits, 16);
    assert.ok((await answer(f32, back.key, GO_ON)).ids.length > 0);
    await f32.dispose();
    await f16.dispose();
  });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`of 2 bits from WASM is restored on ${device}, and the reverse`, { skip: gpu.skip }, async () => {
      const store = new MemoryPromptStore();
      const content = longText(120);
      const wasm = await loadLong(store);
      const made = await pin(wasm, content, { id: "from WASM", bits: 2 });
      const expected = await nextProbability(wasm, made.key);
      const onGpu = await loadLong(store, { device });
      const there = await nextProbability(onGpu, (await open(onGpu, "from WASM")).key);
      assert.ok(Math.abs(there - expected) < 0.01, `${there} ${expected}`);
      const second = await pin(onGpu, content, { id: "from the GPU", bits: 2 });
      const before = await nextProbability(onGpu, second.key);
      const after = await nextProbability(wasm, (await open(wasm, "from the GPU")).key);
      assert.ok(Math.abs(after - before) < 0.01, `${after} ${before}`);
      await onGpu.dispose();
      await wasm.dispose();
    });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`of a q4 cache on ${device} has its pages as they are`, { skip: gpu.skip }, async () => {
      const store = new MemoryPromptStore();
      const options: LoadOptions = { device, kvCache: { format: "q4" } };
      const first = await loadLong(store, options);
      const made = await pin(first, longText(120), { bits: 4 });
      const expected = await nextProbability(first, made.key);
      const second = await loadLong(store, options);
      const restored = await nextProbability(second, (await open(second)).key);
      assert.equal(restored, expected, "the same bytes give the same bits");
      // Decoded in WASM.
      const decoded = await loadLong(store, { device, kvCache: { format: "f32" } });
      const there = await nextProbability(decoded, (await open(decoded)).key);
      assert.ok(Math.abs(there - expected) < 1e-4, `${there} ${expected}`);
      for (const engine of [first, second, decoded]) await engine.dispose();
    });

  test("bits that a quantizing cache does not have are refused", async () => {
    const engine = await loadLong(new MemoryPromptStore(), { kvCache: { format: "q8" } });
    await assert.rejects(pin(engine, CHAT, { bits: 4 }), inlayError("invalid-option", /"q8" has 8 already/));
    const long = await pin(engine, longText(500), { bits: 8 });
    assert.ok(long.info.bits > 8 && long.info.bits < 14, `${long.info.bits}`);
    await engine.dispose();
  });
});

describe("a template that shows the date", () => {
  const chatTemplate =
    "{{ strftime_now('%d %B %Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";

  test("keeps the day that a prompt was pinned on: next day it is still the same, here, elsewhere and gone on from", async (t) => {
    t.mock.timers.enable({ apis: ["Date"], now: new Date(2026, 10, 21, 12) });
    const store = new MemoryPromptStore();
    const engine = await load(store, { chatTemplate });
    const { key, info } = await pin(engine);
    const expected = await answer(engine, key);
    assert.equal(expected.cached, info.tokens);
    const file = await engine.pinned.export("book", false);
    t.mock.timers.tick(24 * 60 * 60 * 1000);
    assert.deepEqual((await answer(engine, key)).ids, expected.ids);
    await engine.dispose();

    const next = await load(store, { chatTemplate });
    const again = await pin(next);
    assert.deepEqual(again.phases, ["restore"]);
    assert.deepEqual(await answer(next, again.key), expected);
    const more = { kind: "chat", messages: [{ role: "user", content: "And then?" }] } as const;
    const on = await pin(next, more, { id: "more", on: again.key });
    assert.equal((await answer(next, on.key)).cached, on.info.tokens);
    const changed = { ...CHAT, messages: CHAT.messages.slice(0, 1) };
    assert.ok(
      (await pin(next, changed)).phases.includes("prefill"),
      "another text is prefilled, with the new date",
    );
    await next.dispose();

    const other = await load(new MemoryPromptStore(), { chatTemplate });
    const imported = await opened(other.pinned.import(file, false, never));
    assert.deepEqual(await answer(other, imported.key), expected);
    await other.dispose();
  });
});

describe("damage and mismatch", () => {
  async function exported(): Promise<{ file: Uint8Array<ArrayBuffer>; engine: Engine }> {
    const engine = await load(new MemoryPromptStore());
    await pin(engine);
    const blob = await engine.pinned.export("book", false);
    return { file: new Uint8Array(await blob.arrayBuffer()), engine };
  }
  const imported = async (file: Uint8Array<ArrayBuffer>, options?: LoadOptions, bytes?: typeof BYTES) => {
    const engine = await load(new MemoryPromptStore(), options, bytes);
    try {
      return await answer(engine, (await opened(engine.pinned.import(new Blob([file]), false, never))).key);
    } finally {
      assert.ok((await engine.pinned.list()).length <= 1);
      await engine.dispose();
    }
  };

  test("an exported file gives the same answer elsewhere, and the same file again", async () => {
    const { file, engine } = await exported();
    const { ids, cached } = await imported(file);
    const { key, info } = await open(engine);
    assert.deepEqual({ ids, cached }, { ids: (await answer(engine, key)).ids, cached: info.tokens });
    const again = await load(new MemoryPromptStore());
    await opened(again.pinned.import(new Blob([file]), false, never));
    assert.deepEqual(new Uint8Array(await (await again.pinned.export("book", false)).arrayBuffer()), file);
    await again.dispose();
    await engine.dispose();
  });

  test("a file behind a URL is imported with progress; one that cannot be fetched is refused", async () => {
    const { file, engine } = await exported();
    await engine.dispose();
    const other = await load(new MemoryPromptStore());
    const url = URL.createObjectURL(new Blob([file]));
    const { info, phases } = await opened(other.pinned.import(url, false, never));
    assert.deepEqual(phases, ["download", "store", "restore"]);
    assert.equal(info.id, "book");
    URL.revokeObjectURL(url);
    await assert.rejects(opened(other.pinned.import(url, false, never)), inlayError("source-failed", /./));
    await assert.rejects(
      opened(other.pinned.import(url, false, AbortSignal.abort("left"))),
      (error) => error === "left",
    );
    await other.dispose();
  });

  test("a file with right checksums whose text or tokens are no prompt's is refused, and an older prompt stays", async () => {
    const { file, engine } = await exported();
    const { manifest, read } = await openPromptFile(new Blob([file]));
    const records = await Promise.all(manifest.records.map((_, i) => read(i)));
    const forged = async (at: number, bytes: Uint8Array<ArrayBuffer>) => {
      const all = records.with(at, bytes);
      const listed = await Promise.all(
        all.map(async (record) => ({ byteLength: record.byteLength, sha256: await sha256(record) })),
      );
      const { head, sha256: digest } = await writeHead({ ...manifest, records: listed });
      return promptFile(
        head,
        all.map((record) => new Blob([record])),
        digest,
      );
    };
    const json = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));
    const ids = new Uint8Array(Uint32Array.from({ length: manifest.nTokens }, () => 2 ** 31).buffer);
    const before = await answer(engine, (await open(engine)).key);
    for (const [name, at, bytes] of [
      ["no JSON", 0, new TextEncoder().encode("{")],
      ["null", 0, json(null)],
      ["no text", 0, json({ kind: "text", text: 7 })],
      ["messages that are none", 0, json({ kind: "chat", messages: 7 })],
      ["tokens that the vocabulary does not have", 1, ids],
    ] as const) {
      const blob = await forged(at, bytes);
      await assert.rejects(
        opened(engine.pinned.import(blob, false, never)),
        inlayError(at === 1 ? "cache-mismatch" : "storage-failed", /pin the prompt again/),
        name,
      );
      assert.equal((await engine.pinned.list()).length, 1);
      assert.deepEqual(await answer(engine, (await open(engine)).key), before, name);
    }
    await engine.dispose();
  });

  test("a flipped byte anywhere in a file is refused", async () => {
    const { file, engine } = await exported();
    await engine.dispose();
    const other = await load(new MemoryPromptStore());
    const step = Math.floor(file.byteLength / 60);
    const places = Array.from({ length: 60 }, (_, i) => 16 + i * step).filter((at) => at < file.byteLength);
    for (const at of [...Array(16).keys(), ...places, file.byteLength - 1]) {
      const damaged = file.slice();
      damaged[at]! ^= 0x10;
      const isVersion = at >= 8 && at < 12;
      const expected = inlayError(isVersion ? "cache-mismatch" : "storage-failed", /./);
      await assert.rejects(
        opened(other.pinned.import(new Blob([damaged]), false, never)),
        expected,
        `byte ${at}`,
      );
    }
    assert.deepEqual(await other.pinned.list(), []);
    assert.equal(other.memory().kv, 0);
    await other.dispose();
  });

  test("a truncated file, one with more behind it, and one that is none are refused", async () => {
    const { file, engine } = await exported();
    await engine.dispose();
    for (const length of [0, 4, 15, 16, 200, 5000, file.byteLength - 33, file.byteLength - 1])
      await assert.rejects(
        imported(file.slice(0, length)),
        inlayError("storage-failed", /./),
        `${length} bytes`,
      );
    await assert.rejects(imported(file.slice(0, -1)), inlayError("storage-failed", /truncated/));
    const longer = new Uint8Array([...file, 0]);
    await assert.rejects(imported(longer), inlayError("storage-failed", /./));
    await assert.rejects(imported(BYTES), inlayError("storage-failed", /not an \.inlaykv file.*47475546/));
  });

  test("another model's file is refused by the names of both", async () => {
    const { file, engine } = await exported();
    await engine.dispose();
    // The same shapes, other weights: only the sample of their bytes tells.
    const other = tinyGguf("tiny-llama", { type: "Q8_0", seed: 5 });
    const expected = inlayError(
      "cache-mismatch",
      /pinned for the model .+\(Q8_0, \w{8}\); this is .+\(Q8_0, \w{8}\)/,
    );
    await assert.rejects(imported(file, {}, other), expected);
  });

  test("a prompt of another model under the id is named", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    await pin(engine);
    const other = await load(store, {}, tinyGguf("tiny-llama", { type: "Q8_0", seed: 5 }));
    assert.deepEqual(await other.pinned.list(), []);
    await assert.rejects(open(other), inlayError("cache-mismatch", /"book" was pinned for the model/));
    await assert.rejects(open(other, "no such"), inlayError("storage-failed", /none at all/));
    await assert.rejects(open(engine, "no such"), inlayError("storage-failed", /there are "book"/));
    await engine.dispose();
    await other.dispose();
  });

  /** A store that hands out record `damagedRecord` changed, or not at all. */
  class DamagedStore extends MemoryPromptStore {
    damagedRecord = -1;
    kind: "flipped" | "missing" = "flipped";

    override async read(...args: Parameters<PromptStore["read"]>): Promise<(Bytes | undefined)[]> {
      const records = await super.read(...args);
      const i = this.damagedRecord - args[1];
      if (i < 0 || i >= records.length) return records;
      const record = records[i]!.slice();
      record[record.byteLength >> 1]! ^= 1;
      return records.with(i, this.kind === "missing" ? undefined : record);
    }
  }

  for (const kind of ["flipped", "missing"] as const)
    test(`a ${kind} byte or record anywhere in the store: open is refused, pin prefills again`, async () => {
      const store = new DamagedStore();
      const engine = await load(store);
      await pin(engine);
      const expected = await answer(engine, (await open(engine)).key);
      await engine.dispose();
      store.kind = kind;
      const [entry] = await store.list();
      const { records } = await readHead(entry!.head, entry!.sha256);
      for (const record of records.keys()) {
        store.damagedRecord = record;
        const reloaded = await load(store);
        const wanted = new RegExp(`record ${record} of .*${kind === "flipped" ? "damaged" : "missing"}`);
        await assert.rejects(open(reloaded), inlayError("storage-failed", wanted));
        await assert.rejects(reloaded.pinned.export("book", false), inlayError("storage-failed", wanted));
        assert.equal(reloaded.memory().kv, 0);
        const again = await pin(reloaded);
        assert.deepEqual(again.phases.includes("prefill"), true);
        assert.deepEqual(await answer(reloaded, again.key), expected);
        await reloaded.dispose();
      }
    });

  test("a prompt stored by another version of Inlay is refused by open, and pinned again by pin", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    const { key } = await pin(engine);
    const expected = await answer(engine, key);
    await engine.dispose();
    const entry = (await store.list())[0]!;
    const head = entry.head.slice();
    head[8]! += 1;
    const writer = await store.startWriting();
    for (const record of await store.read(entry, 0, 4)) await writer.write(record!);
    await writer.commit({ ...entry, head, sha256: await sha256(head), pages: writer.pages });
    const other = await load(store);
    await assert.rejects(open(other), inlayError("cache-mismatch", /format version 4; .* reads 2 and 3/));
    const again = await pin(other);
    assert.ok(again.phases.includes("prefill"));
    assert.deepEqual(await answer(other, again.key), expected);
    await other.dispose();
  });

  test("storage that is full while pages are written: nothing is left of them, and the older prompt is", async () => {
    /** Has room for `room` records more. */
    class FullStore extends MemoryPromptStore {
      room = Number.POSITIVE_INFINITY;

      override async startWriting(): Promise<PromptWriter> {
        const writer = await super.startWriting();
        const write = async (record: Bytes) => {
          if (this.room-- <= 0) throw new InlayError("storage-quota", "the browser has no room");
          await writer.write(record);
        };
        return { ...writer, write };
      }
    }
    const store = new FullStore();
    const engine = await load(store);
    const older = await pin(engine);
    const expected = await answer(engine, older.key);
    await engine.pinned.close(older.key);
    const file = await engine.pinned.export("book", false);
    for (const room of [0, 1, 2, 3]) {
      store.room = room;
      await assert.rejects(pin(engine, TEXT), inlayError("storage-quota", /no room/));
      await assert.rejects(opened(engine.pinned.import(await reExported(file), false, never)), {
        code: "storage-quota",
      });
    }
    store.room = Number.POSITIVE_INFINITY;
    const reloaded = await load(store);
    assert.deepEqual(await answer(reloaded, (await open(reloaded)).key), expected);
    assert.equal((await reloaded.pinned.list()).length, 1);
    await reloaded.dispose();
    await engine.dispose();
  });

  test("100 prompts are listed without reading any, and one is opened without reading the others", async () => {
    const reads: string[] = [];
    class CountingStore extends MemoryPromptStore {
      override read(...args: Parameters<PromptStore["read"]>): Promise<(Bytes | undefined)[]> {
        reads.push(args[0].info.id);
        return super.read(...args);
      }
    }
    const store = new CountingStore();
    const engine = await load(store);
    for (let i = 0; i < 100; i++) {
      const { key } = await pin(engine, { kind: "text", text: `Page ${i}.` }, { id: `page ${i}` });
      await engine.pinned.close(key);
    }
    reads.length = 0;
    assert.equal((await engine.pinned.list()).length, 100);
    assert.deepEqual(reads, []);
    await open(engine, "page 42");
    assert.deepEqual([...new Set(reads)], ["page 42"]);
    await engine.dispose();
  });
});

/** The same prompt as another file: one that is not known to be stored already. */
async function reExported(file: Blob): Promise<Blob> {
  const { manifest, read } = await openPromptFile(file);
  const { head, sha256: digest } = await writeHead({ ...manifest, createdAt: manifest.createdAt + 1 });
  const records = await Promise.all(manifest.records.map(async (_, i) => new Blob([await read(i)])));
  return promptFile(head, records, digest);
}
