// Encrypted pinned prompts in IndexedDB, through the built bundle: nothing readable is stored, nothing is read without the key.

import { assert } from "chai";
import { clear, createStore, entries, get, set, values } from "idb-keyval";
import { loadModel, type Model, type PinnedPrompt } from "/dist/inlay.js";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { ask as askOf, pages, prompts, rejection } from "./harness/pinned.ts";

const bytes = tinyGguf("tiny-llama", { type: "Q8_0", seed: 8 });
const DOCUMENT = "The diary says: nobody else may read this. ".repeat(8);
const QUESTION = [{ role: "user", content: "What does it say?" }] as const;
const OPTIONS = { id: "diary", encrypt: true } as const;

const keys = createStore("inlay-keys", "keys");

const load = () => loadModel(bytes, { device: "wasm", contextLength: 512 });

const ask = (model: Model, pinned: PinnedPrompt) => askOf(model, pinned, QUESTION);

/** Every byte and text in a stored value, one character a byte. */
function flatten(value: unknown): string {
  if (value instanceof Uint8Array) return Array.from(value, (byte) => String.fromCharCode(byte)).join("");
  if (typeof value === "object" && value !== null) return Object.values(value).map(flatten).join("\n");
  return String(value);
}

async function stored(): Promise<string> {
  return [...(await values(prompts)), ...(await values(pages))].map(flatten).join("\n");
}

describe("encrypted prompts", function () {
  this.timeout(60_000);
  let expected: { text: string; cached: number };

  before(async () => {
    const model = await load();
    for (const { id } of await model.pinned.list()) await model.pinned.delete(id);
    await model.dispose();
    await clear(keys);
  });

  it("store neither text nor ids, and give the same answer after a reload", async () => {
    const first = await load();
    const ids = await first.tokenize("nobody else may read this", {});
    const secrets = ["nobody else may read", flatten(new Uint8Array(ids.slice(1, -1).buffer))];
    const plain = await first.pin(DOCUMENT, { id: "plain" });
    expected = await ask(first, plain);
    const before = await stored();
    for (const secret of secrets) assert.include(before, secret, "the search finds what is there");
    await first.pinned.delete("plain");
    await first.dispose();

    const model = await load();
    const diary = await model.pin(DOCUMENT, OPTIONS);
    assert.isTrue(diary.info.encrypted);
    assert.deepEqual(await ask(model, diary), expected);
    const after = await stored();
    assert.isAbove(after.length, 1000);
    for (const secret of secrets) assert.notInclude(after, secret);
    await model.dispose();

    const reloaded = await load();
    const opened = await reloaded.pinned.open("diary");
    assert.deepEqual(await ask(reloaded, opened), expected);
    assert.deepEqual(
      (await reloaded.pinned.list()).map(({ id, encrypted }) => [id, encrypted]),
      [["diary", true]],
    );
    assert.equal((await rejection(reloaded.pinned.export("diary"))).code, "invalid-option");
    const file = await reloaded.pinned.export("diary", { decrypt: true });
    const imported = await reloaded.pinned.import(file, { encrypt: true });
    assert.isTrue(imported.info.encrypted);
    const more = await reloaded.pin([{ role: "user", content: "And?" }], { id: "more", on: imported });
    assert.isTrue(more.info.encrypted, "what is pinned on a secret has it too");
    assert.isTrue(await reloaded.pinned.delete("more"));
    await reloaded.dispose();
  });

  it("have a key that no script can read", async () => {
    const { key } = (await get<{ key: CryptoKey }>("current", keys))!;
    assert.isFalse(key.extractable);
    let refused: unknown;
    await crypto.subtle.exportKey("raw", key).catch((error: unknown) => {
      refused = error;
    });
    assert.instanceOf(refused, DOMException);
  });

  it("are refused when a byte was changed or records were exchanged, and pinned again", async () => {
    const records = (await entries<string, Uint8Array>(pages)).sort();
    const [[aKey, a], [bKey, b]] = [records.at(-2)!, records.at(-1)!];
    const changed = a.slice();
    changed[20]! ^= 1;
    for (const damage of [
      [[aKey, changed]],
      [
        [aKey, b],
        [bKey, a],
      ],
    ] as const) {
      for (const [key, record] of damage) await set(key, record, pages);
      const model = await load();
      const error = await rejection(model.pinned.open("diary"));
      assert.equal(error.code, "storage-failed");
      assert.match(error.message, /record \d+ of the pinned prompt "diary" is damaged/);
      await model.dispose();
      await set(aKey, a, pages);
      await set(bKey, b, pages);
    }
    await set(aKey, changed, pages);
    const model = await load();
    assert.deepEqual(await ask(model, await model.pin(DOCUMENT, OPTIONS)), expected);
    await model.dispose();
  });

  it("are lost with their key, which is said, and can be pinned again", async () => {
    await clear(keys);
    const model = await load();
    const error = await rejection(model.pinned.open("diary"));
    assert.equal(error.code, "storage-failed");
    assert.match(error.message, /"diary" is stored encrypted, and the key .* is gone/);
    assert.deepEqual(await ask(model, await model.pin(DOCUMENT, OPTIONS)), expected);
    await model.dispose();
  });

  it("pinned in two workers at once are under one key", async () => {
    await clear(keys);
    const models = await Promise.all([load(), load()]);
    await Promise.all(models.map((model, i) => model.pin(`${DOCUMENT} ${i}`, { id: `${i}`, encrypt: true })));
    for (const model of models) await model.dispose();
    const reloaded = await load();
    for (const id of ["0", "1"]) {
      assert.isAbove((await ask(reloaded, await reloaded.pinned.open(id))).cached, 0);
      await reloaded.pinned.delete(id);
    }
    assert.isTrue(await reloaded.pinned.delete("diary"));
    await reloaded.dispose();
  });
});
