/** Encrypted pinned prompts: what is stored tells nothing, and what was tampered with never becomes an answer. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { openPromptFile } from "../../src/prompts/file.ts";
import { Seal } from "../../src/prompts/seal.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import { makePromptKey } from "../../src/storage/prompt-keys.ts";
import type { Bytes, PromptEntry, PromptStore } from "../../src/storage/prompt-store.ts";
import { answer, CHAT, inlayError, load, never, open, opened, pin, TEXT } from "../fixtures/pinned-prompt.ts";

const encrypt = true;

/** A store that hands out what a test puts in the place of records. */
class TamperedStore extends MemoryPromptStore {
  tamper: (record: Bytes | undefined, i: number, entry: PromptEntry) => Bytes | undefined = (record) =>
    record;

  override async read(...[entry, from, to]: Parameters<PromptStore["read"]>): Promise<(Bytes | undefined)[]> {
    const records = await super.read(entry, from, to);
    return records.map((record, i) => this.tamper(record, from + i, entry));
  }

  /** Puts `entry` in the place of the one with its key. */
  async replace(entry: PromptEntry): Promise<void> {
    const writer = await this.startWriting();
    const records = await this.read(entry, 0, 1000);
    for (const record of records) if (record) await writer.write(record);
    await writer.commit(entry);
  }
}

/** All records, their number unknown. */
async function allRecords(store: PromptStore, entry: PromptEntry): Promise<Bytes[]> {
  return (await store.read(entry, 0, 1000)).filter((record) => record !== undefined);
}

const includes = (bytes: Uint8Array, part: Uint8Array) => Buffer.from(bytes).includes(Buffer.from(part));
const utf8 = (text: string) => new TextEncoder().encode(text);

async function pinned(): Promise<{
  store: TamperedStore;
  engine: Engine;
  entry: PromptEntry;
  expected: unknown;
}> {
  const store = new TamperedStore();
  const engine = await load(store);
  const { key, info } = await pin(engine, CHAT, { encrypt });
  assert.equal(info.encrypted, true);
  const expected = await answer(engine, key);
  await engine.pinned.close(key);
  return { store, engine, entry: (await store.list())[0]!, expected };
}

describe("an encrypted prompt", () => {
  test("gives the same tokens as one that is not, before and after a reload", async () => {
    const { store, engine, expected } = await pinned();
    const plain = await load(new MemoryPromptStore());
    const { key, info } = await pin(plain);
    assert.equal(info.encrypted, false);
    assert.deepEqual(expected, await answer(plain, key));
    await plain.dispose();
    await engine.dispose();
    const reloaded = await load(store);
    const restored = await pin(reloaded, CHAT, { encrypt });
    assert.deepEqual(restored.phases, ["restore"], "it is the prompt that is stored");
    assert.equal(restored.info.encrypted, true);
    assert.deepEqual(await answer(reloaded, restored.key), expected);
    assert.deepEqual(
      (await reloaded.pinned.list()).map(({ id, encrypted }) => [id, encrypted]),
      [["book", true]],
    );
    await reloaded.dispose();
  });

  test("has neither its text nor its ids nor their checksums in what is stored", async () => {
    const { store, engine, entry } = await pinned();
    const file = await openPromptFile(await engine.pinned.export("book", true));
    const secrets = [
      utf8("handbook by heart"),
      (await file.read(1)).subarray(0, 64), // token ids
      (await file.read(2)).subarray(0, 64), // keys
      utf8(file.manifest.records[0]!.sha256),
      utf8(file.sha256),
    ];
    const { head, ...listed } = entry;
    const stored = [head, utf8(JSON.stringify(listed)), ...(await allRecords(store, entry))];
    for (const [i, secret] of secrets.entries())
      assert.equal(
        stored.findIndex((bytes) => includes(bytes, secret)),
        -1,
        `secret ${i}`,
      );
    const plain = new MemoryPromptStore();
    const other = await load(plain);
    await pin(other);
    const open = await plain.list();
    assert.ok(
      includes((await allRecords(plain, open[0]!))[0]!, secrets[0]!),
      "the search finds what is there",
    );
    for (const made of [engine, other]) await made.dispose();
  });

  test("is written with another IV each time", async () => {
    const { store, engine, entry } = await pinned();
    const records = await allRecords(store, entry);
    await engine.pinned.delete("book");
    await pin(engine, CHAT, { encrypt });
    const again = (await store.list())[0]!;
    const ivs = [entry.head, ...records, again.head, ...(await allRecords(store, again))].map((bytes) =>
      Buffer.from(bytes.subarray(0, 12)).toString("hex"),
    );
    assert.equal(new Set(ivs).size, 2 * (records.length + 1));
    await engine.dispose();
  });

  test("with a flipped byte is refused by open, and pinned again by pin", async () => {
    const { store, engine, entry, expected } = await pinned();
    await engine.dispose();
    const records = await allRecords(store, entry);
    for (const [i, { byteLength }] of records.entries())
      for (const at of [0, 12, byteLength >> 1, byteLength - 1]) {
        store.tamper = (record, n) => {
          if (n !== i) return record;
          const flipped = record!.slice();
          flipped[at]! ^= 1;
          return flipped;
        };
        const reloaded = await load(store);
        const damaged = inlayError("storage-failed", new RegExp(`record ${i} of .*damaged`));
        await assert.rejects(open(reloaded), damaged, `byte ${at}`);
        assert.equal(reloaded.memory().kv, 0);
        await reloaded.dispose();
      }
    const reloaded = await load(store);
    const again = await pin(reloaded, CHAT, { encrypt });
    assert.ok(again.phases.includes("prefill"));
    assert.deepEqual(await answer(reloaded, again.key), expected);
    await reloaded.dispose();
  });

  test("with its records exchanged, among themselves or with another prompt's, is refused", async () => {
    const { store, engine, entry } = await pinned();
    const { key } = await pin(engine, TEXT, { id: "other", encrypt });
    await engine.pinned.close(key);
    const other = (await store.list()).find(({ info }) => info.id === "other")!;
    const [mine, theirs] = [await allRecords(store, entry), await allRecords(store, other)];
    const damaged = inlayError("storage-failed", /record \d+ of .*"book" is damaged/);
    store.tamper = (record, i, { pages }) => (pages === entry.pages && i > 1 ? mine[5 - i] : record);
    await assert.rejects(open(engine), damaged);
    store.tamper = (record, i, { pages }) => (pages === entry.pages ? theirs[i] : record);
    await assert.rejects(open(engine), damaged);
    store.tamper = (record) => record;
    await store.replace({ ...other, key: entry.key, info: entry.info });
    await assert.rejects(open(engine), inlayError("storage-failed", /"book" is stored encrypted.*key.*gone/));
    assert.equal((await open(engine, "other")).info.id, "other");
    await engine.dispose();
  });

  test("whose key is gone is listed and deleted, refused by open and export, and pinned again by pin", async () => {
    const { store, engine, expected } = await pinned();
    await engine.dispose();
    // The same entries beside a new key: what a page finds whose other storage was cleared.
    const keys = new MemoryPromptStore().keys;
    const reloaded = await load(Object.assign(store, { keys }));
    const gone = inlayError(
      "storage-failed",
      /"book" is stored encrypted.*key.*is gone.*pin the prompt again/,
    );
    await assert.rejects(open(reloaded), gone);
    await assert.rejects(reloaded.pinned.export("book", true), gone);
    assert.equal((await reloaded.pinned.list()).length, 1);
    const again = await pin(reloaded, CHAT, { encrypt });
    assert.deepEqual(await answer(reloaded, again.key), expected);
    await reloaded.pinned.close(again.key);
    assert.equal(await reloaded.pinned.delete("book"), true);
    await reloaded.dispose();
  });

  test("under another key of its key's name is refused", async () => {
    const { store, engine } = await pinned();
    const { key } = await makePromptKey();
    const keys = { current: () => makePromptKey(), find: async () => key };
    const reloaded = await load(Object.assign(store, { keys }));
    await assert.rejects(
      open(reloaded),
      inlayError("storage-failed", /key that it was encrypted with is gone/),
    );
    await reloaded.dispose();
    await engine.dispose();
  });

  test("is exported only as what it is not: a file in the clear; imported, it may be encrypted again", async () => {
    const { engine, expected } = await pinned();
    await assert.rejects(
      engine.pinned.export("book", false),
      inlayError("invalid-option", /"book" is stored encrypted.*decrypt: true/),
    );
    const file = await engine.pinned.export("book", true);
    const store = new MemoryPromptStore();
    const other = await load(store);
    const made = await opened(other.pinned.import(file, encrypt, never));
    assert.equal(made.info.encrypted, true);
    assert.deepEqual(await answer(other, made.key), expected);
    const stored = (await store.list())[0]!;
    assert.ok(!includes((await allRecords(store, stored))[0]!, utf8("handbook")));
    const again = await opened(other.pinned.import(file, encrypt, never));
    assert.deepEqual(again.phases, [], "it is there already");
    const plain = await opened(other.pinned.import(file, false, never));
    assert.equal(plain.info.encrypted, false);
    assert.deepEqual(
      new Uint8Array(await (await other.pinned.export("book", false)).arrayBuffer()),
      new Uint8Array(await file.arrayBuffer()),
    );
    await other.dispose();
    await engine.dispose();
  });

  test("takes the place of one that is not encrypted, and the reverse", async () => {
    const store = new MemoryPromptStore();
    const engine = await load(store);
    for (const encrypted of [false, true, false]) {
      const { key, info, phases } = await pin(engine, CHAT, { encrypt: encrypted });
      assert.equal(info.encrypted, encrypted);
      assert.ok(phases.includes("store"));
      assert.equal((await store.list()).length, 1);
      await engine.pinned.close(key);
    }
    await engine.dispose();
  });
});

describe("a seal", () => {
  test("opens only what it closed, as what it closed it", async () => {
    const { key } = await makePromptKey();
    const owner = { key: "model/book", pages: "p" };
    const seal = new Seal(key, owner);
    const bytes = utf8("some record");
    const closed = await seal.close(3, bytes);
    assert.equal(closed.byteLength, bytes.byteLength + 28);
    assert.deepEqual(await seal.open(3, closed), bytes);
    assert.equal(await seal.open(4, closed), undefined);
    assert.equal(await seal.open("head", closed), undefined);
    assert.equal(await new Seal(key, { ...owner, pages: "q" }).open(3, closed), undefined);
    assert.equal(await new Seal(key, { ...owner, key: "model/other" }).open(3, closed), undefined);
    assert.equal(await new Seal((await makePromptKey()).key, owner).open(3, closed), undefined);
    for (const length of [0, 5, 12, 20, closed.byteLength - 1])
      assert.equal(await seal.open(3, closed.slice(0, length)), undefined, `${length} bytes`);
  });
});
