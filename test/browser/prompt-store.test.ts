// The store of pinned prompts in IndexedDB by itself: room, eviction, a full disk, and what listing reads.

import { assert } from "chai";
import { createStore, keys, set, setMany } from "idb-keyval";
import { InlayError } from "../../src/errors.ts";
import { IdbPromptStore } from "../../src/storage/idb-prompt-store.ts";
import type { PromptEntry } from "../../src/storage/prompt-store.ts";

const RECORD_BYTES = 1000;

/** Stores a prompt of 3 records; `usedAt` says how long ago it was used. */
async function put(store: IdbPromptStore, id: string, usedAt = 1): Promise<PromptEntry> {
  const writer = await store.startWriting();
  try {
    for (let i = 0; i < 3; i++) await writer.write(new Uint8Array(RECORD_BYTES).fill(i));
    const info = {
      id,
      tokens: 100,
      bits: 4,
      sparsity: 0,
      attention: "dense",
      prefillSeconds: 1,
      byteLength: 3 * RECORD_BYTES,
      raw: true,
      encrypted: false,
      createdAt: 1,
      usedAt,
    };
    const entry = {
      key: `test/${id}`,
      fingerprint: "test",
      modelName: "test",
      pages: writer.pages,
      info,
      head: new Uint8Array(8),
      sha256: "",
    };
    await writer.commit(entry);
    return entry;
  } finally {
    await writer.close();
  }
}

async function ids(store: IdbPromptStore): Promise<string[]> {
  return (await store.list()).map(({ info }) => info.id).sort();
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    assert.instanceOf(error, InlayError, String(error));
    return (error as InlayError).code;
  }
  return "none";
}

/** Runs `f` while the browser claims to have `room` bytes left. */
async function withRoom(room: number, f: () => Promise<void>): Promise<void> {
  const estimate = async () => ({ usage: 1_000_000, quota: 1_000_000 + room });
  // WebKitGTK has no `storage` of its own.
  Object.defineProperty(navigator, "storage", { value: { estimate }, configurable: true });
  try {
    await f();
  } finally {
    Reflect.deleteProperty(navigator, "storage");
  }
}

/** Calls of a method of object stores while `f` runs, by the store's name; `replace` may throw in its place. */
async function watched(
  methods: readonly ("get" | "getAll" | "openCursor" | "put")[],
  f: () => Promise<unknown>,
  replace: (store: string, key: unknown) => void = () => {},
): Promise<[store: string, key: unknown][]> {
  const calls: [string, unknown][] = [];
  const { prototype } = IDBObjectStore;
  const originals = methods.map((name) => [name, prototype[name]] as const);
  for (const [name, original] of originals)
    Object.defineProperty(prototype, name, {
      configurable: true,
      writable: true,
      value: function (this: IDBObjectStore, ...args: unknown[]) {
        const key = name === "put" ? args[1] : args[0];
        calls.push([this.name, key]);
        replace(this.name, key);
        return Reflect.apply(original, this, args);
      },
    });
  try {
    await f();
  } finally {
    for (const [name, value] of originals)
      Object.defineProperty(prototype, name, { configurable: true, writable: true, value });
  }
  return calls;
}

describe("the store of pinned prompts", () => {
  const store = new IdbPromptStore();
  const empty = async () => {
    for (const entry of await store.list()) await store.delete(entry);
  };
  before(empty); // of what tests before left, if they failed
  afterEach(empty);

  it("makes room by removing what was used longest ago, and never what is in use", async () => {
    const oldest = await put(store, "oldest", 1);
    await put(store, "older", 2);
    await put(store, "newer", 3);
    const release = await store.hold(oldest);
    await withRoom(0, () => store.makeRoom(2 * RECORD_BYTES));
    assert.deepEqual(await ids(store), ["newer", "oldest"]);
    assert.deepEqual(
      (await store.read(oldest, 0, 3)).map((record) => record?.[0]),
      [0, 1, 2],
    );
    release();
    await withRoom(RECORD_BYTES, () => store.makeRoom(RECORD_BYTES));
    assert.deepEqual(await ids(store), ["newer", "oldest"], "there is room already");
  });

  it("removes nothing for what would not fit anyway", async () => {
    await put(store, "one");
    await put(store, "two");
    await withRoom(0, async () => {
      assert.equal(await codeOf(store.makeRoom(100 * RECORD_BYTES)), "storage-quota");
    });
    assert.deepEqual(await ids(store), ["one", "two"]);
  });

  it("a disk that is full while records are written: nothing is left of them, and the older prompt is", async () => {
    const older = await put(store, "same");
    const full = (name: string) => {
      if (name === "records") throw new DOMException("full", "QuotaExceededError");
    };
    await watched(
      ["put"],
      async () => {
        assert.equal(await codeOf(put(store, "same")), "storage-quota");
      },
      full,
    );
    assert.deepEqual(await ids(store), ["same"]);
    assert.deepEqual(
      (await store.read(older, 0, 4)).map((record) => record?.byteLength),
      [RECORD_BYTES, RECORD_BYTES, RECORD_BYTES, undefined],
    );
  });

  it("a disk that is full when the manifest is written: the same", async () => {
    const older = await put(store, "same");
    const full = (name: string) => {
      if (name === "manifests") throw new DOMException("full", "QuotaExceededError");
    };
    await watched(
      ["put"],
      async () => {
        assert.equal(await codeOf(put(store, "same")), "storage-quota");
      },
      full,
    );
    assert.deepEqual(
      (await store.list()).map(({ pages }) => pages),
      [older.pages],
    );
    const reopened = new IdbPromptStore();
    assert.deepEqual(await ids(reopened), ["same"]);
  });

  it("removes records that nobody names, wherever their keys are, and no others", async () => {
    const records = createStore("inlay-pages", "records");
    const entries = [await put(store, "a"), await put(store, "b"), await put(store, "c")];
    const kept = (await keys<string>(records)).sort();
    const names = entries.map(({ pages }) => pages);
    const orphans = [
      "0",
      "zzzz",
      ...names.flatMap((pages) => [`${pages}-1`, `${pages}x`, pages.slice(0, -1)]),
    ];
    await setMany(
      orphans.flatMap((pages) =>
        [0, 1, 10].map((i): [string, Uint8Array] => [`${pages}/${i}`, new Uint8Array(9)]),
      ),
      records,
    );
    assert.lengthOf(await keys(records), kept.length + 3 * orphans.length);
    await new IdbPromptStore().get("test/a");
    assert.deepEqual((await keys<string>(records)).sort(), kept);
    for (const entry of entries) await store.delete(entry);
    assert.deepEqual(await keys(records), []);
    await set("left/0", new Uint8Array(9), records);
    await new IdbPromptStore().get("test/a");
    assert.deepEqual(await keys(records), [], "with no prompt at all");
  });

  it("lists 100 prompts without reading records, and reads the records of one only", async () => {
    const entries: PromptEntry[] = [];
    for (let i = 0; i < 100; i++) entries.push(await put(store, `${i}`));
    const fresh = new IdbPromptStore();
    const listing = await watched(["get", "getAll", "openCursor"], () => fresh.list());
    assert.deepEqual(
      listing.filter(([name]) => name === "records"),
      [],
    );
    assert.lengthOf(await fresh.list(), 100);
    await fresh.get("test/0"); // waits until nothing goes on in the background
    const reading = await watched(["get", "getAll", "openCursor"], () => fresh.read(entries[42]!, 0, 3));
    assert.lengthOf(reading, 3);
    for (const [name, key] of reading) {
      assert.equal(name, "records");
      assert.isTrue(String(key).startsWith(`${entries[42]!.pages}/`), String(key));
    }
  });

  it("a transaction that never ends, as WebKit leaves of a killed worker, is a clear error; the store goes on after it", async () => {
    await put(store, "kept");
    const database = await new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open("inlay-prompts");
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    let isHeld = true;
    const transaction = database.transaction("manifests", "readwrite");
    const ended = new Promise((resolve) => {
      transaction.oncomplete = resolve;
    });
    const goOn = () => {
      if (isHeld) transaction.objectStore("manifests").get("nothing").onsuccess = goOn;
    };
    goOn();
    const impatient = new IdbPromptStore(200);
    const listing = impatient.list();
    const getting = impatient.get("test/kept");
    try {
      await listing;
      assert.fail("it was read while another transaction wrote");
    } catch (error) {
      assert.instanceOf(error, InlayError, String(error));
      assert.equal((error as InlayError).code, "storage-failed");
      assert.match((error as InlayError).message, /IndexedDB has not answered for 0\.2 s/);
    }
    assert.equal(await codeOf(getting), "storage-failed");
    isHeld = false;
    await ended;
    database.close();
    assert.deepEqual(await ids(impatient), ["kept"]);
    assert.equal((await impatient.get("test/kept"))?.info.id, "kept");
  });

  it("once closed, has written what had begun and begins nothing more", async () => {
    const entry = await put(store, "touched");
    const closing = new IdbPromptStore();
    const writer = await closing.startWriting();
    let isWritten = false;
    const written = writer.write(new Uint8Array(20 << 20)).then(() => {
      isWritten = true;
    });
    await closing.close();
    // What waits for the transaction hears of it in the same turn.
    for (let i = 0; i < 20; i++) await Promise.resolve();
    assert.isTrue(isWritten, "it closed before what had begun was written");
    await written;
    assert.equal(await codeOf(closing.touch(entry)), "disposed");
    assert.equal(await codeOf(writer.commit(entry)), "disposed");
    assert.equal(await codeOf(writer.close()), "disposed");
    assert.deepEqual(await ids(new IdbPromptStore()), ["touched"]);
    // Its lock is given up a moment later; then the next store to be used removes what it left.
    const deadline = Date.now() + 10_000;
    let left: unknown[];
    do {
      await new IdbPromptStore().get("any");
      left = await store.read({ ...entry, pages: writer.pages }, 0, 1);
    } while (left[0] !== undefined && Date.now() < deadline);
    assert.deepEqual(left, [undefined]);
  });
});
