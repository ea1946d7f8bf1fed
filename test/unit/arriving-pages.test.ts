/** Pinned prompts whose pages arrive while a request computes: the same answers, and what goes wrong goes wrong for all. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { InlayError } from "../../src/errors.ts";
import type { Prompt } from "../../src/generate/request.ts";
import type { LoadOptions } from "../../src/options.ts";
import { firstSqueezedRecord } from "../../src/prompts/manifest.ts";
import type { PinEvent } from "../../src/prompts/pin-events.ts";
import { readManifest } from "../../src/prompts/restore.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import type { Bytes, PromptStore } from "../../src/storage/prompt-store.ts";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { collect, greedy } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import {
  answer,
  CHAT,
  GO_ON,
  inlayError,
  load as loadFrom,
  never,
  open,
  pin,
  QUESTION,
} from "../fixtures/pinned-prompt.ts";

const gpu = await nodeGpu();

/** A store that hands out the pages of a prompt one read after the other, when it is told to. */
class SlowStore extends MemoryPromptStore {
  /** Reads of pages that may be answered; each takes one. */
  allowed = Number.POSITIVE_INFINITY;
  damagedRecord = -1;
  nPageReads = 0;
  nHeld = 0;
  /** `delete` only counts. */
  keepsDeleted = false;
  nDeleted = 0;
  #waiting: (() => void)[] = [];

  allow(n: number): void {
    this.allowed = n;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  override async hold(...args: Parameters<PromptStore["hold"]>): Promise<() => void> {
    const release = await super.hold(...args);
    this.nHeld++;
    let isHeld = true;
    return () => {
      if (isHeld) this.nHeld--;
      isHeld = false;
      release();
    };
  }

  override async delete(...args: Parameters<PromptStore["delete"]>): Promise<void> {
    this.nDeleted++;
    if (!this.keepsDeleted) await super.delete(...args);
  }

  override async read(...args: Parameters<PromptStore["read"]>): Promise<(Bytes | undefined)[]> {
    const [, from, to] = args;
    if (from >= 2) {
      while (this.allowed <= 0) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      this.allowed--;
      this.nPageReads++;
    }
    const records = await super.read(...args);
    if (this.damagedRecord < from || this.damagedRecord >= to) return records;
    const i = this.damagedRecord - from;
    const record = records[i]!.slice();
    record[record.byteLength >> 1]! ^= 1;
    return records.with(i, record);
  }
}

/** Many layers, so that there are many moments. */
const BYTES = tinyGguf(
  { ...PRESETS["tiny-llama"], nLayers: 6, contextLength: 4096 },
  { type: "Q8_0", seed: 4 },
);
const load = (store: PromptStore, options: LoadOptions = {}) => loadFrom(store, options, BYTES);

/** Long enough for sparse attention: none of its words is like its neighbour. */
const LONG = {
  kind: "text",
  text: Array.from({ length: 1000 }, (_, i) => `${(i * 7919) % 1000} `).join(""),
} as const;

/** Beyond a hybrid device's first tokens. */
const SHORT = { kind: "text", text: LONG.text.slice(0, 400) } as const;

/** Whose pages take two reads. */
const storedLong = () => stored({ contextLength: 4096 }, {}, LONG, GO_ON);
const loadLong = (store: PromptStore) => load(store, { contextLength: 4096 });

/** Opens without waiting for the pages. `events` are those after the prompt is told of. */
async function openEarly(engine: Engine, signal = never) {
  const events = engine.pinned.open("book", false, signal);
  for (;;) {
    const { value, done } = await events.next();
    assert.ok(!done, "it ended without a prompt");
    if (value.kind === "pinned") return { key: value.key, info: value.info, rest: drained(events) };
  }
}

/** Takes the rest of the events; resolves to how far they were. Never left unhandled. */
function drained(events: AsyncIterable<PinEvent>): Promise<number[]> {
  const rest = (async () => {
    const seen: number[] = [];
    for await (const event of events) if (event.kind === "progress") seen.push(event.loaded / event.total);
    return seen;
  })();
  rest.catch(() => {});
  return rest;
}

const soon = () => new Promise((resolve) => setTimeout(resolve, 20));

/** A prompt in a store, and what an engine that waited for its pages answers. */
async function stored(
  options: LoadOptions = {},
  request: Parameters<typeof pin>[2] = {},
  content: Parameters<typeof pin>[1] = CHAT,
  prompt: Prompt = QUESTION,
) {
  const store = new SlowStore();
  const maker = await load(store, options);
  const made = await pin(maker, content, request);
  const first = await answer(maker, made.key, prompt);
  await maker.dispose();
  const waiting = await load(store, options);
  const expected = await answer(waiting, (await open(waiting)).key, prompt);
  assert.deepEqual(expected, first);
  assert.equal(expected.cached, made.info.tokens);
  await waiting.dispose();
  store.nPageReads = 0;
  return { store, expected, nTokens: made.info.tokens };
}

describe("a pinned prompt whose pages arrive", () => {
  for (const [name, options, request, isLong] of [
    ["f32", {}, {}, false],
    ["f16", { kvCache: { format: "f16" } }, {}, false],
    ["encrypted", {}, { encrypt: true }, false],
    ["4 bits, sparse", { contextLength: 4096 }, { bits: 4 }, true],
    ["2 bits, decoding by dhsa", { contextLength: 4096, attention: { decode: "dhsa" } }, { bits: 2 }, true],
    ["of a q4 cache", { contextLength: 4096, kvCache: { format: "q4" } }, { bits: undefined }, true],
    ["2 bits in a q8 cache", { contextLength: 4096, kvCache: { format: "q8" } }, { bits: undefined }, true],
    ["clustered", { contextLength: 4096 }, { bits: 2, sparsity: 0.7 }, true],
  ] as const)
    test(`gives the same tokens as when they are waited for: ${name}`, async () => {
      const [content, prompt] = isLong ? ([LONG, GO_ON] as const) : ([CHAT, QUESTION] as const);
      const { store, expected, nTokens } = await stored(options as LoadOptions, request, content, prompt);
      const engine = await load(store, options as LoadOptions);
      store.allow(request && "sparsity" in request ? 1 : 0); // its clusters are read before it is told of
      const early = await openEarly(engine);
      assert.equal(early.info.tokens, nTokens);
      const answering = answer(engine, early.key, prompt);
      await soon();
      store.allow(Number.POSITIVE_INFINITY);
      assert.deepEqual(await answering, expected);
      const seen = await early.rest;
      assert.equal(seen.at(-1), 1);
      assert.deepEqual(
        seen,
        seen.toSorted((a, b) => a - b),
      );
      // Once more, and with a long question of its own: what the first request left is whole.
      assert.deepEqual((await answer(engine, early.key, prompt)).ids, expected.ids);
      const long: Prompt = { kind: "ids", ids: Uint32Array.from({ length: 90 }, (_, i) => 40 + (i % 50)) };
      const there = await load(store, options as LoadOptions);
      const asked = await answer(there, (await open(there)).key, long);
      assert.deepEqual((await answer(engine, early.key, long)).ids, asked.ids);
      await engine.pinned.close(early.key);
      await engine.dispose();
      await there.dispose();
      assert.equal(store.nHeld, 0);
    });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`on ${device} gives the same tokens as when they are waited for`, { skip: gpu.skip }, async () => {
      // A software GPU takes its time; what is not quantized is written alike on both devices.
      const quantized = { device, kvCache: { format: "q4" } } as const;
      for (const options of device === "webgpu" ? [quantized] : [{ device }, quantized]) {
        const { store, expected } = await stored(options, { bits: 4 }, SHORT, GO_ON);
        const engine = await load(store, options);
        store.allow(0);
        const early = await openEarly(engine);
        const answering = answer(engine, early.key, GO_ON);
        await soon();
        store.allow(Number.POSITIVE_INFINITY);
        assert.deepEqual(await answering, expected);
        await early.rest;
        assert.deepEqual((await answer(engine, early.key, GO_ON)).ids, expected.ids);
        await engine.dispose();
      }
    });

  test("is all there without a request, and others are answered meanwhile", async () => {
    const { store, expected } = await stored();
    const engine = await load(store);
    store.allow(0);
    const early = await openEarly(engine);
    const other = await collect(engine.generate(greedy([40, 41, 42], 4)));
    assert.equal(other.ids.length, 4);
    store.allow(Number.POSITIVE_INFINITY);
    assert.equal((await early.rest).at(-1), 1);
    const { nPageReads } = store;
    assert.deepEqual(await answer(engine, early.key), expected);
    assert.equal(store.nPageReads, nPageReads);
    await engine.dispose();
  });

  test("answers two requests at once, one of its own tokens alone, and is opened twice", async () => {
    const { store, expected } = await stored();
    const engine = await load(store);
    const waited = await open(engine);
    const alone: Prompt = { kind: "ids", ids: new Uint32Array() };
    const all = await answer(engine, waited.key, alone);
    await engine.pinned.close(waited.key);
    store.allow(0);
    const early = await openEarly(engine);
    const answers = [answer(engine, early.key), answer(engine, early.key), answer(engine, early.key, alone)];
    const twice = openEarly(engine);
    await soon();
    store.allow(Number.POSITIVE_INFINITY);
    assert.deepEqual((await answers[0])!.ids, expected.ids);
    assert.deepEqual((await answers[1])!.ids, expected.ids);
    assert.deepEqual((await answers[2])!.ids, all.ids);
    const second = await twice;
    await Promise.all([early.rest, second.rest]);
    assert.deepEqual((await answer(engine, second.key)).ids, expected.ids);
    for (const key of [early.key, second.key]) await engine.pinned.close(key);
    await engine.dispose();
    assert.equal(store.nHeld, 0);
  });

  test("can be pinned on", async () => {
    const { store } = await stored({}, { bits: 16 });
    const engine = await load(store);
    const content = { kind: "chat", messages: [{ role: "user", content: "And then?" }] } as const;
    const on = async (key: string) => {
      const made = await pin(engine, content, { id: "both", on: key });
      const result = await answer(engine, made.key, GO_ON);
      await engine.pinned.delete("both");
      return result;
    };
    const waited = await open(engine);
    const expected = await on(waited.key);
    await engine.pinned.close(waited.key);
    const early = await openEarly(engine);
    assert.deepEqual(await on(early.key), expected);
    await early.rest;
    await engine.dispose();
  });

  test("of which a record is damaged: the request and all later ones say so, nothing stays, and pin reads it again", async () => {
    const { store, expected } = await stored();
    const [entry] = await store.list();
    const { manifest } = await readManifest(store, entry!);
    for (const record of [2, firstSqueezedRecord(manifest) - 1]) {
      const engine = await load(store);
      store.damagedRecord = record;
      const wanted = inlayError(
        "storage-failed",
        new RegExp(`record ${record} of .*damaged; pin the prompt again`),
      );
      store.allow(0);
      const early = await openEarly(engine);
      const answering = [answer(engine, early.key), answer(engine, early.key)];
      for (const each of answering) each.catch(() => {});
      await soon();
      store.allow(Number.POSITIVE_INFINITY);
      for (const each of answering) await assert.rejects(each, wanted);
      await assert.rejects(early.rest, wanted);
      await assert.rejects(answer(engine, early.key), wanted);
      assert.equal(engine.memory().kv, 0, "nothing half restored is kept");
      assert.equal(store.nHeld, 0);
      assert.equal((await collect(engine.generate(greedy([40, 41], 3)))).ids.length, 3);
      await engine.pinned.close(early.key);
      await assert.rejects(answer(engine, early.key), inlayError("disposed", /closed or deleted/));
      store.damagedRecord = -1;
      const again = await open(engine);
      assert.deepEqual(await answer(engine, again.key), expected, "the store is as it was");
      await engine.dispose();
    }
  });

  test("whose request is aborted in the middle goes on arriving", async () => {
    const { store, expected } = await storedLong();
    for (let nReads = 0; nReads < 2; nReads++) {
      const engine = await loadLong(store);
      store.allow(nReads);
      const early = await openEarly(engine);
      const controller = new AbortController();
      const request = { ...greedy([], 16), prompt: { ...GO_ON, pinned: early.key } };
      const answering = collect(engine.generate(request, controller.signal));
      answering.catch(() => {});
      await soon();
      const reason = new Error("the user left");
      controller.abort(reason);
      await assert.rejects(answering, reason);
      store.allow(Number.POSITIVE_INFINITY);
      assert.deepEqual(await answer(engine, early.key, GO_ON), expected);
      await early.rest;
      await engine.pinned.close(early.key);
      await engine.dispose();
      assert.equal(store.nHeld, 0);
    }
  });

  test("whose opening is aborted in the middle is closed", async () => {
    const { store } = await storedLong();
    for (let nReads = 0; nReads < 2; nReads++) {
      const engine = await loadLong(store);
      const controller = new AbortController();
      store.allow(nReads);
      const early = await openEarly(engine, controller.signal);
      await soon();
      const reason = new Error("the user left");
      controller.abort(reason);
      await assert.rejects(early.rest, reason);
      await assert.rejects(answer(engine, early.key, GO_ON), inlayError("disposed", /closed or deleted/));
      assert.equal(engine.memory().kv, 0);
      assert.equal(store.nHeld, 0);
      store.allow(Number.POSITIVE_INFINITY);
      await engine.dispose();
    }
  });

  const isDisposed = (error: unknown) => error instanceof InlayError && error.code === "disposed";
  for (const [name, end] of [
    ["closed", (engine: Engine, key: string) => engine.pinned.close(key)],
    ["deleted", (engine: Engine) => engine.pinned.delete("book")],
    ["disposed of with its model", (engine: Engine) => engine.dispose()],
  ] as const)
    test(`can be ${name} while they do`, async () => {
      const { store } = await storedLong();
      store.keepsDeleted = true;
      for (let nReads = 0; nReads < 2; nReads++) {
        const engine = await loadLong(store);
        store.allow(nReads);
        const early = await openEarly(engine);
        await soon();
        await end(engine, early.key);
        await assert.rejects(early.rest, isDisposed);
        assert.equal(store.nHeld, 0);
        assert.equal(engine.memory().kv, 0);
        store.allow(Number.POSITIVE_INFINITY);
        await engine.dispose();
      }
      assert.equal(store.nDeleted, name === "deleted" ? 2 : 0);
    });

  test("closed while a request waits for them answers that one; disposed of, none", async () => {
    const { store, expected } = await storedLong();
    for (const isClosed of [true, false]) {
      const engine = await loadLong(store);
      store.allow(1);
      const early = await openEarly(engine);
      const answering = answer(engine, early.key, GO_ON);
      answering.catch(() => {});
      await soon();
      const ended = isClosed ? engine.pinned.close(early.key) : engine.dispose();
      await soon();
      store.allow(Number.POSITIVE_INFINITY);
      await ended;
      if (isClosed) {
        assert.deepEqual(await answering, expected);
        await early.rest.catch((error) => assert.ok(isDisposed(error)));
      } else {
        await assert.rejects(answering, isDisposed);
        await assert.rejects(early.rest, isDisposed);
      }
      await engine.dispose();
      assert.equal(store.nHeld, 0);
    }
  });

  test("is not read by requests that only begin like it", async () => {
    const { store } = await stored();
    const engine = await load(store);
    store.allow(0);
    const early = await openEarly(engine);
    const whole = engine.promptIds({ ...QUESTION, pinned: early.key });
    const prompt: Prompt = { kind: "ids", ids: whole.subarray(0, 60) };
    assert.equal((await answer(engine, undefined, prompt)).cached, 0);
    store.allow(Number.POSITIVE_INFINITY);
    await early.rest;
    assert.ok((await answer(engine, undefined, { kind: "ids", ids: whole })).cached >= early.info.tokens);
    await engine.dispose();
  });
});
