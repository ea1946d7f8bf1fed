// Pinned prompts that are asked while their pages are still being read from IndexedDB, through the built bundle.

import { assert } from "chai";
import { entries, keys, set } from "idb-keyval";
import { type InlayError, loadModel, type Model, type PinnedPrompt } from "/dist/inlay.js";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { uniform } from "../fixtures/random.ts";
import { ask as askOf, orphans, pages, rejection, skipKilling, watchWorkers } from "./harness/pinned.ts";

/** Layers and tokens enough for many moments. */
const bytes = tinyGguf(
  { ...PRESETS["tiny-llama"], nLayers: 6, contextLength: 4096 },
  { type: "Q8_0", seed: 8 },
);
const DOCUMENT = "The handbook says: be kind, and be brief. ".repeat(60);
const QUESTION = [{ role: "user", content: "What does it say?" }] as const;
const OPTIONS = { device: "wasm", contextLength: 4096, prefillChunk: 256 } as const;

const load = () => loadModel(bytes, OPTIONS);
const ask = (model: Model, pinned: PinnedPrompt) => askOf(model, pinned, QUESTION);
const openEarly = (model: Model) => model.pinned.open("handbook", { wait: false });

describe("pinned prompts whose pages arrive", function () {
  this.timeout(120_000);
  let expected: { text: string; cached: number };
  const workers = watchWorkers();

  before(async () => {
    const model = await load();
    const handbook = await model.pin(DOCUMENT, { id: "handbook", bits: 16 });
    await handbook.loaded;
    assert.isAbove(handbook.info.tokens, 1000);
    expected = await ask(model, handbook);
    assert.equal(expected.cached, handbook.info.tokens);
    const plain = await model.chat.completions.create({
      messages: [{ role: "system", content: DOCUMENT }, ...QUESTION],
      temperature: 0,
      max_tokens: 16,
    });
    assert.equal(expected.text, plain.choices[0]!.message.content);
    await model.dispose();
  });
  after(async () => {
    const model = await load();
    for (const { id } of await model.pinned.list()) await model.pinned.delete(id);
    assert.deepEqual(await orphans(), []);
    await model.dispose();
  });

  it("give the same tokens as those that are waited for, and tell how far they are", async () => {
    const waiting = await load();
    const waited = await waiting.pinned.open("handbook");
    assert.deepEqual(await ask(waiting, waited), expected);
    await waiting.dispose();
    const model = await load();
    let progress = 0;
    const early = await model.pinned.open("handbook", {
      wait: false,
      onProgress: (p) => {
        assert.equal(p.phase, "restore");
        assert.isAtLeast(p.progress, progress);
        progress = p.progress;
      },
    });
    assert.deepEqual(await ask(model, early), expected);
    await early.loaded;
    assert.equal(progress, 1);
    await model.dispose();
    const wrong = { wait: "no" as unknown as boolean };
    const other = await load();
    assert.equal((await rejection(other.pinned.open("handbook", wrong))).code, "invalid-option");
    assert.equal((await rejection(other.pinned.open("none", { wait: false }))).code, "storage-failed");
    await other.dispose();
  });

  it("encrypted, and with a sparsity, give the same tokens too", async () => {
    for (const [id, options] of [
      ["secret", { encrypt: true, bits: 4 }],
      ["squeezed", { sparsity: 0.8, bits: 2 }],
    ] as const) {
      const model = await load();
      const before = await ask(model, await model.pin(DOCUMENT, { id, ...options }));
      await model.dispose();
      const reloaded = await load();
      assert.deepEqual(await ask(reloaded, await reloaded.pinned.open(id, { wait: false })), before, id);
      assert.isTrue(await reloaded.pinned.delete(id));
      await reloaded.dispose();
    }
  });

  it("serve many sessions and their clones at once", async () => {
    const model = await load();
    const early = await openEarly(model);
    const options = { pinned: early, temperature: 0, max_tokens: 16 };
    const sessions = await Promise.all(Array.from({ length: 3 }, () => model.createSession(options)));
    const clones = await Promise.all([...sessions, ...sessions].map((session) => session.clone()));
    const answers = await Promise.all([...sessions, ...clones].map((each) => each.prompt(QUESTION)));
    assert.deepEqual([...new Set(answers)], [expected.text]);
    const texts = await Promise.all(clones.map((clone, i) => clone.prompt(`And ${i}?`)));
    assert.isTrue(texts.every((text) => text.length > 0));
    await early.loaded;
    await model.dispose();
  });

  it("a flipped byte in the last layer is a clear error for the request; nothing else is lost", async () => {
    const before = (await keys<string>(pages)).sort();
    const stored = await entries<string, Uint8Array>(pages);
    const numberOf = (key: string) => Number(key.slice(key.indexOf("/") + 1));
    const [key, record] = stored.reduce((a, b) => (numberOf(b[0]) > numberOf(a[0]) ? b : a));
    const changed = record.slice();
    changed[changed.length >> 1]! ^= 4;
    await set(key, changed, pages);
    const model = await load();
    const early = await openEarly(model);
    const wanted = new RegExp(`record ${numberOf(key)} of the pinned prompt "handbook" is damaged`);
    let delivered = "";
    const request = { messages: QUESTION, pinned: early, stream: true, max_tokens: 16 } as const;
    const streaming = (async () => {
      for await (const { choices } of await model.chat.completions.create(request))
        delivered += choices[0]?.delta.content ?? "";
    })();
    for (const error of [
      await rejection(streaming),
      await rejection(early.loaded),
      await rejection(ask(model, early)),
    ]) {
      assert.equal(error.code, "storage-failed");
      assert.match(error.message, wanted);
    }
    assert.equal(delivered, "");
    assert.deepEqual((await keys<string>(pages)).sort(), before);
    const again = await model.pin(DOCUMENT, { id: "handbook", bits: 16 });
    assert.equal((await ask(model, again)).text, expected.text);
    await early.close();
    assert.equal((await rejection(ask(model, early))).code, "disposed");
    await model.dispose();
    assert.deepEqual(await orphans(), []);
    const reloaded = await load();
    assert.deepEqual(await ask(reloaded, await openEarly(reloaded)), expected);
    await reloaded.dispose();
  });

  it("an aborted request leaves them arriving; an aborted opening does not", async () => {
    const model = await load();
    const early = await openEarly(model);
    const reason = new Error("the user left");
    const controller = new AbortController();
    const request = { messages: QUESTION, pinned: early };
    const answering = model.chat.completions.create(request, { signal: controller.signal });
    controller.abort(reason);
    assert.equal(await answering.catch((error: unknown) => error), reason);
    await early.loaded;
    assert.deepEqual(await ask(model, early), expected);
    await early.close();
    const { kv } = await model.memory(); // of the answer, which is kept
    const opening = new AbortController();
    const { signal } = opening;
    const second = await model.pinned.open("handbook", { wait: false, signal });
    opening.abort(reason);
    assert.equal(await second.loaded.catch((error: unknown) => error), reason);
    assert.equal((await rejection(ask(model, second))).code, "disposed");
    assert.equal((await model.memory()).kv, kv);
    await model.dispose();
  });

  it("closed, deleted or disposed of while they arrive, they are gone", async () => {
    const model = await load();
    const early = await openEarly(model);
    const code = early.loaded.then(
      () => "loaded",
      (error: InlayError) => error.code,
    );
    await early.close();
    assert.include(["loaded", "disposed"], await code);
    assert.equal((await rejection(ask(model, early))).code, "disposed");
    assert.equal((await model.memory()).kv, 0);

    const copy = await model.pinned.export("handbook");
    const deleted = await openEarly(model);
    deleted.loaded.catch(() => {}); // it may have been
    assert.isTrue(await model.pinned.delete("handbook"));
    assert.equal((await rejection(ask(model, deleted))).code, "disposed");
    assert.deepEqual(await orphans(), []);
    const imported = await model.pinned.import(copy);
    await imported.close();

    const last = await openEarly(model);
    const answering = rejection(ask(model, last));
    await model.dispose();
    assert.equal((await answering).code, "disposed");
    const reloaded = await load();
    assert.deepEqual(await ask(reloaded, await openEarly(reloaded)), expected);
    await reloaded.dispose();
  });

  it("a worker killed at 20 random moments while they arrive and are asked changes nothing that is stored", async function () {
    skipKilling(this);
    const timed = await load();
    const start = performance.now();
    await ask(timed, await openEarly(timed));
    const wholeMs = performance.now() - start;
    await timed.dispose();
    const before = (await keys<string>(pages)).sort();
    const random = uniform(7);
    for (let i = 0; i < 20; i++) {
      const model = await load();
      const worker = workers.at(-1)!;
      openEarly(model).then(
        (early) => ask(model, early).catch(() => {}),
        () => {}, // a killed worker never answers
      );
      await new Promise((resolve) => setTimeout(resolve, 1.1 * wholeMs * random()));
      worker.terminate();
    }
    const reloaded = await load();
    assert.deepEqual(await ask(reloaded, await openEarly(reloaded)), expected);
    assert.deepEqual((await keys<string>(pages)).sort(), before);
    assert.deepEqual(await orphans(), []);
    await reloaded.dispose();
  });
});
