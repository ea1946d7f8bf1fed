/**
 * Pinned prompts in IndexedDB, in two databases, so that listing prompts does not touch their bytes:
 *
 *     inlay-prompts   key → PromptEntry
 *     inlay-pages     `${pages}/${record number}` → bytes
 *
 * Locks say who needs which records. Whoever writes has their lock for itself, whoever uses them shares it, and records
 * are removed only by who gets it without waiting. Records that no entry names and nobody has locked were left by a
 * writer that died; they are removed when the store is first used.
 */

import {
  createStore,
  del,
  get,
  getMany,
  promisifyRequest,
  set,
  setMany,
  type UseStore,
  values,
} from "idb-keyval";
import { InlayError } from "../errors.ts";
import { insecurePage } from "./digest.ts";
import { IdbPromptKeys } from "./idb-prompt-keys.ts";
import { acquireLock, ifUnlocked } from "./locks.ts";
import type { Bytes, PromptEntry, PromptStore, PromptWriter } from "./prompt-store.ts";

/** Written in one transaction. */
const BATCH_BYTES = 4 << 20;

/** No transaction here takes seconds; but WebKit keeps that of a killed worker for ever, and all others wait for it. */
const PATIENCE_MS = 30_000;

export class IdbPromptStore implements PromptStore {
  readonly keys = new IdbPromptKeys((what, f) => this.#guarded(what, f));
  readonly #prompts: UseStore;
  readonly #pages: UseStore;
  /** Transactions that have not ended. */
  readonly #running = new Set<Promise<unknown>>();
  readonly #patienceMs: number;
  #isClosed = false;
  #collected: Promise<void> | undefined;

  /** Throws `unsupported-environment` where pages have no locks. `patienceMs`: how long a transaction may take. */
  constructor(patienceMs = PATIENCE_MS) {
    if (navigator.locks === undefined) throw insecurePage();
    this.#patienceMs = patienceMs;
    this.#prompts = createStore("inlay-prompts", "manifests");
    this.#pages = createStore("inlay-pages", "records");
  }

  /** Does not wait for what dead writers left to be removed. */
  async list(): Promise<PromptEntry[]> {
    const entries = await this.#entries();
    this.#collectOnce(entries).catch(() => {}); // whoever writes waits for it, and is told
    return entries;
  }

  async get(key: string): Promise<PromptEntry | undefined> {
    await this.#collectOnce();
    const entry = await this.#guarded("read", () => get<PromptEntry>(key, this.#prompts));
    return entry && complete(entry);
  }

  async makeRoom(bytes: number): Promise<void> {
    await this.#collectOnce();
    // WebKitGTK and Safari before 17 do not tell; there a write that does not fit says so.
    const storage = navigator.storage as Partial<StorageManager> | undefined;
    const { usage = 0, quota = Infinity } = (await storage?.estimate?.()) ?? {};
    let missing = bytes - (quota - usage);
    if (missing <= 0) return;
    const oldestFirst = (await this.#entries()).sort((a, b) => a.info.usedAt - b.info.usedAt);
    const removable = oldestFirst.reduce((sum, { info }) => sum + info.byteLength, 0);
    // Nothing is lost for a prompt that would not fit anyway.
    if (removable >= missing)
      for (const entry of oldestFirst) {
        const isRemoved = await ifUnlocked(lockOf(entry.pages), async () => {
          await this.#guarded("write", () => del(entry.key, this.#prompts));
          await this.#deleteRecords(entry.pages);
        });
        if (isRemoved) missing -= entry.info.byteLength;
        if (missing <= 0) return;
      }
    throw new InlayError(
      "storage-quota",
      `the prompt needs ${mib(bytes)} of storage; this origin uses ${mib(usage)} of the ${mib(quota)} that the browser ` +
        "allows it, and other pinned prompts are in use or too small: delete some, or pin a shorter prompt",
      { neededBytes: bytes, usage, quota },
    );
  }

  async startWriting(): Promise<PromptWriter> {
    await this.#collectOnce();
    const pages = Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join(
      "-",
    );
    const release = await acquireLock(lockOf(pages), "exclusive");
    let batch: [string, Bytes][] = [];
    let batchBytes = 0;
    let nRecords = 0;
    let isCommitted = false;
    const flush = async () => {
      const written = batch;
      batch = [];
      batchBytes = 0;
      await this.#guarded("write", () => setMany(written, this.#pages));
    };
    return {
      pages,
      write: async (record) => {
        batch.push([recordKey(pages, nRecords++), record]);
        batchBytes += record.byteLength;
        if (batchBytes >= BATCH_BYTES) await flush();
      },
      commit: async (entry) => {
        await flush();
        const before = await this.get(entry.key);
        await this.#guarded("write", () => set(entry.key, entry, this.#prompts));
        isCommitted = true;
        if (before) await ifUnlocked(lockOf(before.pages), () => this.#deleteRecords(before.pages));
      },
      close: async () => {
        try {
          if (!isCommitted) await this.#deleteRecords(pages);
        } finally {
          release();
        }
      },
    };
  }

  read(entry: PromptEntry, from: number, to: number): Promise<(Bytes | undefined)[]> {
    const wanted = Array.from({ length: to - from }, (_, i) => recordKey(entry.pages, from + i));
    return this.#guarded("read", () => getMany<Bytes>(wanted, this.#pages));
  }

  async touch(entry: PromptEntry): Promise<void> {
    // One transaction: who deletes the prompt meanwhile must not find it there again.
    await this.#guarded("write", () =>
      this.#prompts("readwrite", async (store) => {
        const found = await promisifyRequest<PromptEntry | undefined>(store.get(entry.key));
        if (found?.pages === entry.pages) {
          const now = complete(found);
          store.put({ ...now, info: { ...now.info, usedAt: Date.now() } }, entry.key);
        }
        await promisifyRequest(store.transaction);
      }),
    );
  }

  async delete(entry: PromptEntry): Promise<void> {
    await this.#guarded("write", () => del(entry.key, this.#prompts));
    // Where another tab has it open, its records go when the store is next used after that.
    await ifUnlocked(lockOf(entry.pages), () => this.#deleteRecords(entry.pages));
  }

  hold(entry: PromptEntry): Promise<() => void> {
    return acquireLock(lockOf(entry.pages), "shared");
  }

  lock(key: string, signal: AbortSignal): Promise<() => void> {
    return acquireLock(`inlay-pin/${key}`, "exclusive", signal);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.allSettled(this.#running);
  }

  async #entries(): Promise<PromptEntry[]> {
    return (await this.#guarded("read", () => values<PromptEntry>(this.#prompts))).map(complete);
  }

  /** Removes what writers left behind that died. `entries`: if they have just been read. */
  #collectOnce(entries?: readonly PromptEntry[]): Promise<void> {
    this.#collected ??= this.#collect(entries).catch((error: unknown) => {
      this.#collected = undefined; // a store that answers again is to be used again
      throw error;
    });
    return this.#collected;
  }

  async #collect(entries?: readonly PromptEntry[]): Promise<void> {
    for (const pages of await this.#unnamed(entries ?? (await this.#entries()))) {
      await ifUnlocked(lockOf(pages), async () => {
        // It may have been committed since.
        if ((await this.#entries()).some((entry) => entry.pages === pages)) return;
        await this.#deleteRecords(pages);
      });
    }
  }

  /** The `pages` of records that no entry names: those between the records of two. To list all keys would read all records. */
  async #unnamed(entries: readonly PromptEntry[]): Promise<Set<string>> {
    const named = entries
      .map(({ pages }) => recordRange(pages))
      .sort(({ lower: a }, { lower: b }) => (a < b ? -1 : 1));
    const ends = [...named.map(({ lower }) => lower), undefined];
    const gaps = ends.map((end, i) => keyRange(named[i - 1]?.upper, end));
    const found = await this.#guarded("read", () =>
      this.#pages("readonly", (store) =>
        Promise.all(gaps.map((gap) => promisifyRequest(store.getAllKeys(gap)))),
      ),
    );
    return new Set(found.flat().map((key) => String(key).slice(0, String(key).indexOf("/"))));
  }

  async #deleteRecords(pages: string): Promise<void> {
    const { lower, upper } = recordRange(pages);
    await this.#guarded("write", () =>
      this.#pages("readwrite", (store) => {
        store.delete(keyRange(lower, upper)!);
        return promisifyRequest(store.transaction);
      }),
    );
  }

  /** Runs one transaction. */
  async #guarded<T>(what: "read" | "write", f: () => Promise<T>): Promise<T> {
    if (this.#isClosed) throw new InlayError("disposed", "the model was disposed");
    const running = withPatience(f, this.#patienceMs);
    this.#running.add(running);
    try {
      return await running;
    } catch (cause) {
      if (cause instanceof InlayError) throw cause;
      const isFull = cause instanceof DOMException && cause.name === "QuotaExceededError";
      throw new InlayError(
        isFull ? "storage-quota" : "storage-failed",
        isFull
          ? "the browser has no room for this pinned prompt; delete others, or pin a shorter one"
          : `pinned prompts cannot be ${what === "read" ? "read from" : "written to"} IndexedDB: ${cause}`,
        {},
        { cause },
      );
    } finally {
      this.#running.delete(running);
    }
  }
}

/** Entries of before there was encryption do not say that they are not encrypted. */
function complete(entry: PromptEntry): PromptEntry {
  const { info } = entry as { info: Partial<PromptEntry["info"]> };
  return info.encrypted === undefined ? { ...entry, info: { ...entry.info, encrypted: false } } : entry;
}

function recordKey(pages: string, record: number): string {
  return `${pages}/${record}`;
}

/** Where the keys of records lie: from `lower` to before `upper`; "0" comes after "/". */
function recordRange(pages: string): { lower: string; upper: string } {
  return { lower: `${pages}/`, upper: `${pages}0` };
}

/** Keys from `lower` to before `upper`; undefined: all of them. */
function keyRange(lower: string | undefined, upper: string | undefined): IDBKeyRange | undefined {
  if (lower === undefined) return upper === undefined ? undefined : IDBKeyRange.upperBound(upper, true);
  return upper === undefined ? IDBKeyRange.lowerBound(lower) : IDBKeyRange.bound(lower, upper, false, true);
}

function lockOf(pages: string): string {
  return `inlay-pages/${pages}`;
}

function mib(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** As `f`, or rejects with `storage-failed` if it has not ended after `ms`. */
async function withPatience<T>(f: () => Promise<T>, ms: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const standsStill = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(
        new InlayError(
          "storage-failed",
          `IndexedDB has not answered for ${ms / 1000} s: a worker that was killed, or another tab, may hold it. Close ` +
            "all tabs of this site and open it again; nothing that is stored is lost",
          { waitedMs: ms },
        ),
      );
    }, ms);
  });
  try {
    return await Promise.race([f(), standsStill]);
  } finally {
    clearTimeout(timer);
  }
}
