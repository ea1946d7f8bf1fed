// Pinned prompts in IndexedDB, through the built bundle: reloads, damage, tabs that close while they pin.

import { assert } from "chai";
import { entries, keys, set } from "idb-keyval";
import { loadModel, type Model, type PinnedPrompt } from "/dist/inlay.js";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { uniform } from "../fixtures/random.ts";
import { requireWebGpu } from "./harness/index.ts";
import { ask as askOf, orphans, pages, rejection, skipKilling, watchWorkers } from "./harness/pinned.ts";

const bytes = tinyGguf("tiny-llama", { type: "Q8_0", seed: 8 });
const DOCUMENT = "The handbook says: be kind, and be brief. ".repeat(8);
const QUESTION = [{ role: "user", content: "What does it say?" }] as const;
const OPTIONS = { device: "wasm", contextLength: 512, prefillChunk: 32 } as const;

const ask = (model: Model, pinned: PinnedPrompt) => askOf(model, pinned, QUESTION);

describe("pinned prompts", function () {
  this.timeout(120_000);
  let expected: { text: string; cached: number };
  const load = () => loadModel(bytes, OPTIONS);

  const workers = watchWorkers();

  it("survive a reload with the same tokens; nothing is prefilled again", async () => {
    const model = await load();
    const seen: string[] = [];
    let progress = 0;
    const handbook = await model.pin(DOCUMENT, {
      id: "handbook",
      onProgress: (p) => {
        assert.isAtLeast(p.progress, progress);
        progress = p.progress;
        if (seen.at(-1) !== p.phase) seen.push(p.phase);
      },
    });
    assert.deepEqual(seen, ["prefill", "store"]);
    assert.equal(progress, 1);
    expected = await ask(model, handbook);
    assert.equal(expected.cached, handbook.info.tokens);
    const plain = await model.chat.completions.create({
      messages: [{ role: "system", content: DOCUMENT }, ...QUESTION],
      temperature: 0,
      max_tokens: 16,
    });
    assert.equal(expected.text, plain.choices[0]!.message.content);
    await model.dispose();

    const reloaded = await load();
    const phases = new Set<string>();
    const onProgress = ({ phase }: { phase: string }) => phases.add(phase);
    const opened = await reloaded.pinned.open("handbook", { onProgress });
    assert.deepEqual(await ask(reloaded, opened), expected);
    assert.equal(
      (await reloaded.pin(DOCUMENT, { id: "handbook", onProgress })).info.tokens,
      opened.info.tokens,
    );
    assert.notInclude([...phases], "prefill");
    const session = await reloaded.createSession({ pinned: opened, temperature: 0, max_tokens: 16 });
    assert.equal(session.contextUsage, opened.info.tokens);
    assert.equal(await session.prompt(QUESTION[0].content), expected.text);
    await reloaded.dispose();
  });

  it("with a sparsity are read through their clusters, with the same tokens after a reload", async () => {
    const long = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 2048 }, { type: "Q8_0", seed: 8 });
    const options = { ...OPTIONS, contextLength: 2048, prefillChunk: 256 };
    const askFor = async (model: Model, pinned: PinnedPrompt) => {
      const request = { messages: QUESTION, pinned, temperature: 0, max_tokens: 16 };
      const { choices, usage } = await model.chat.completions.create(request);
      return { text: choices[0]!.message.content, attention: usage.extra.attention };
    };
    const model = await loadModel(long, options);
    const phases = new Set<string>();
    const made = await model.pin(DOCUMENT.repeat(6), {
      id: "squeezed",
      sparsity: 0.8,
      onProgress: ({ phase }) => phases.add(phase),
    });
    assert.deepEqual([...phases], ["prefill", "cluster", "store"]);
    assert.equal(made.info.sparsity, 0.8);
    const before = await askFor(model, made);
    assert.equal(before.attention.decode.policy, "squeezed");
    assert.isBelow(before.attention.decode.keys_read!, 0.8);
    assert.isAbove(before.attention.decode.missing_mass!, 0);
    await model.dispose();
    const reloaded = await loadModel(long, options);
    assert.deepEqual(await askFor(reloaded, await reloaded.pinned.open("squeezed")), before);
    await reloaded.pinned.delete("squeezed");
    await reloaded.dispose();
  });

  it("with a sparsity are read on device webgpu as in WASM, with the same tokens", async function () {
    await requireWebGpu(this);
    // Without quantized weights neither device rounds activations.
    const long = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 2048 }, { type: "F32", seed: 8 });
    const options = { contextLength: 2048, kvCache: { format: "f32" } } as const;
    const askFor = async (model: Model, pinned: PinnedPrompt) => {
      const request = { messages: QUESTION, pinned, temperature: 0, max_tokens: 12 };
      const { choices, usage } = await model.chat.completions.create(request);
      return { text: choices[0]!.message.content, decode: usage.extra.attention.decode };
    };
    const model = await loadModel(long, { ...options, device: "wasm" });
    const inWasm = await askFor(
      model,
      await model.pin(DOCUMENT.repeat(6), { id: "both", sparsity: 0.8, bits: 4 }),
    );
    await model.dispose();
    const onGpu = await loadModel(long, { ...options, device: "webgpu" });
    const { text, decode } = await askFor(onGpu, await onGpu.pinned.open("both"));
    assert.equal(text, inWasm.text);
    assert.equal(decode.policy, "squeezed");
    assert.closeTo(decode.keys_read!, inWasm.decode.keys_read!, 0.01);
    assert.closeTo(decode.missing_mass!, inWasm.decode.missing_mass!, 0.01);
    await onGpu.pinned.delete("both");
    await onGpu.dispose();
  });

  it("are listed, deleted, and refused once they are closed", async () => {
    const model = await load();
    const second = await model.pin([{ role: "system", content: "Be terse." }], { id: "second" });
    assert.deepEqual(
      (await model.pinned.list()).map(({ id }) => id),
      ["second", "handbook"],
    );
    await second.close();
    await second.close();
    assert.equal((await rejection(ask(model, second))).code, "disposed");
    assert.isTrue(await model.pinned.delete("second"));
    assert.isFalse(await model.pinned.delete("second"));
    assert.equal((await rejection(model.pinned.open("second"))).code, "storage-failed");
    assert.deepEqual(await orphans(), []);
    await model.dispose();
  });

  it("two workers that pin the same id at once prefill it once", async () => {
    const [a, b] = await Promise.all([load(), load()]);
    let nPrefills = 0;
    const pin = (model: Model) =>
      model.pin(DOCUMENT, {
        id: "both",
        onProgress: ({ phase, loaded }) => {
          if (phase === "prefill" && loaded === 0) nPrefills++;
        },
      });
    const [first, second] = await Promise.all([pin(a!), pin(b!)]);
    assert.equal(nPrefills, 1);
    assert.deepEqual(await ask(a!, first!), expected);
    assert.deepEqual(await ask(b!, second!), expected);
    await a!.dispose();
    assert.isTrue(await b!.pinned.delete("both"));
    await b!.dispose();
  });

  it("a worker killed at 20 random moments of pinning leaves the older prompt, no wrong answer and no bytes", async function () {
    skipKilling(this);
    // How long the whole takes here: moments are taken from all of it.
    const timed = await load();
    const start = performance.now();
    await timed.pin(`${DOCUMENT} timed`, { id: "killed" });
    const wholeMs = performance.now() - start;
    await timed.pinned.delete("killed");
    await timed.dispose();
    const random = uniform(5);
    const outcomes: string[] = [];
    for (let i = 0; i < 20; i++) {
      const model = await load();
      const worker = workers.at(-1)!;
      const pinning = model.pin(`${DOCUMENT} ${i}`, { id: "killed" });
      pinning.catch(() => {}); // a killed worker never answers
      const afterMs = 1.1 * wholeMs * random();
      await new Promise((resolve) => setTimeout(resolve, afterMs));
      worker.terminate();

      const reloaded = await load();
      const listed = await reloaded.pinned.list();
      assert.include(
        listed.map(({ id }) => id),
        "handbook",
      );
      const isThere = listed.some(({ id }) => id === "killed");
      outcomes.push(isThere ? "there" : "gone");
      if (isThere) {
        const prompt = await reloaded.pinned.open("killed");
        assert.equal((await ask(reloaded, prompt)).cached, prompt.info.tokens);
        await reloaded.pinned.delete("killed");
      } else {
        assert.equal((await rejection(reloaded.pinned.open("killed"))).code, "storage-failed");
      }
      assert.deepEqual(await orphans(), [], `killed after ${afterMs} ms`);
      if (i % 4 === 0)
        assert.deepEqual(await ask(reloaded, await reloaded.pinned.open("handbook")), expected);
      await reloaded.dispose();
    }
    assert.include(outcomes, "gone");
  });

  it("a worker killed at 20 random moments of opening changes nothing that is stored", async function () {
    skipKilling(this);
    const timed = await load();
    const start = performance.now();
    await timed.pinned.open("handbook");
    const wholeMs = performance.now() - start;
    await timed.dispose();
    const before = (await keys<string>(pages)).sort();
    const random = uniform(6);
    for (let i = 0; i < 20; i++) {
      const model = await load();
      const worker = workers.at(-1)!;
      model.pinned.open("handbook").catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 1.1 * wholeMs * random()));
      worker.terminate();
    }
    const reloaded = await load();
    assert.deepEqual(await ask(reloaded, await reloaded.pinned.open("handbook")), expected);
    assert.deepEqual((await keys<string>(pages)).sort(), before);
    assert.deepEqual(await orphans(), []);
    await reloaded.dispose();
  });

  it("at 2, 4 and 8 bits give the same tokens after a reload, and take less room the fewer they are", async () => {
    const sizes: number[] = [];
    for (const bits of [2, 4, 8, 16] as const) {
      const model = await load();
      const prompt = await model.pin(DOCUMENT, { id: `${bits}`, bits });
      const answer = await ask(model, prompt);
      assert.equal(answer.cached, prompt.info.tokens);
      sizes.push(prompt.info.byteLength);
      await model.dispose();
      const reloaded = await load();
      assert.deepEqual(await ask(reloaded, await reloaded.pinned.open(`${bits}`)), answer, `${bits} bits`);
      await reloaded.pinned.delete(`${bits}`);
      await reloaded.dispose();
    }
    assert.deepEqual(
      sizes,
      [...sizes].sort((a, b) => a - b),
    );
  });

  it("a flipped byte or a missing record is a clear error, and pin prefills again", async () => {
    for (const damage of ["flip", "remove"]) {
      const model = await load();
      const stored = await entries<string, Uint8Array>(pages);
      const [key, record] = stored.find(([name]) => name.endsWith("/3"))!;
      const changed = record.slice();
      changed[changed.length >> 1]! ^= 4;
      await set(key, damage === "flip" ? changed : undefined, pages);
      const error = await rejection(model.pinned.open("handbook"));
      assert.equal(error.code, "storage-failed");
      assert.match(error.message, /record 3 of the pinned prompt "handbook" is (damaged|missing)/);
      assert.deepEqual(await ask(model, await model.pin(DOCUMENT, { id: "handbook" })), expected);
      await model.dispose();
      const reloaded = await load();
      assert.deepEqual(await ask(reloaded, await reloaded.pinned.open("handbook")), expected);
      assert.deepEqual(await orphans(), []);
      await reloaded.dispose();
    }
  });

  it("export and import go on after everything was deleted; another model's file is refused", async () => {
    const model = await load();
    const file = await model.pinned.export("handbook");
    await model.pinned.delete("handbook");
    assert.deepEqual(await model.pinned.list(), []);
    assert.deepEqual(await ask(model, await model.pinned.import(file)), expected);
    await model.pinned.delete("handbook");
    const url = URL.createObjectURL(file);
    const phases = new Set<string>();
    const fetched = await model.pinned.import(url, { onProgress: ({ phase }) => phases.add(phase) });
    URL.revokeObjectURL(url);
    assert.equal((await ask(model, fetched)).text, expected.text);
    assert.deepEqual([...phases], ["download", "store", "restore"]);
    const noUrl = await rejection(model.pinned.import(7 as unknown as string));
    assert.equal(noUrl.code, "invalid-option");
    const cut = file.slice(0, file.size - 100);
    assert.equal((await rejection(model.pinned.import(cut))).code, "storage-failed");
    await model.dispose();
    const other = await loadModel(tinyGguf("tiny-llama", { type: "Q8_0", seed: 9 }), OPTIONS);
    const error = await rejection(other.pinned.import(file));
    assert.equal(error.code, "cache-mismatch");
    assert.match(error.message, /was pinned for the model .*; this is /);
    assert.deepEqual(await other.pinned.list(), []);
    await other.dispose();
  });

  it("one pinned on another reads only what follows, and stands by itself", async () => {
    const model = await load();
    const first = await model.pin(DOCUMENT, { id: "first", bits: 16 });
    const more = [
      { role: "user", content: "And then?" },
      { role: "assistant", content: "Then rest." },
    ] as const;
    let nLoaded: number | undefined;
    const both = await model.pin(more, {
      id: "both",
      on: first,
      bits: 16,
      onProgress: ({ phase, loaded }) => {
        if (phase === "prefill") nLoaded ??= loaded;
      },
    });
    assert.equal(nLoaded, first.info.tokens);
    assert.isAbove(both.info.tokens, first.info.tokens);
    const answer = await ask(model, both);
    assert.equal(answer.cached, both.info.tokens);
    assert.isTrue(await model.pinned.delete("first"));
    await model.dispose();
    const reloaded = await load();
    assert.deepEqual(await ask(reloaded, await reloaded.pinned.open("both")), answer);
    const whole = await reloaded.pin([{ role: "system", content: DOCUMENT }, ...more], {
      id: "whole",
      bits: 16,
    });
    assert.deepEqual(await ask(reloaded, whole), answer);
    const on = {} as PinnedPrompt;
    assert.equal((await rejection(reloaded.pin("x", { id: "x", on }))).code, "invalid-option");
    for (const id of ["both", "whole"]) await reloaded.pinned.delete(id);
    assert.deepEqual(await orphans(), []);
    await reloaded.dispose();
  });

  it("an aborted pin rejects with the reason and leaves nothing", async () => {
    const model = await load();
    const reason = new Error("the user left");
    const controller = new AbortController();
    const pinning = model.pin(`${DOCUMENT}!`, {
      id: "aborted",
      signal: controller.signal,
      onProgress: () => controller.abort(reason),
    });
    assert.equal(await pinning.catch((error: unknown) => error), reason);
    assert.deepEqual(await orphans(), []);
    assert.notInclude(
      (await model.pinned.list()).map(({ id }) => id),
      "aborted",
    );
    await model.dispose();
  });
});
