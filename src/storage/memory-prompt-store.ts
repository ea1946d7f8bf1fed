/** Pinned prompts in memory: gone with the model. Node programs keep them as files by export and import. */

import { makePromptKey, type PromptKey, type PromptKeys } from "./prompt-keys.ts";
import type { Bytes, PromptEntry, PromptStore, PromptWriter } from "./prompt-store.ts";

/** A key that goes with the prompts. */
class MemoryPromptKeys implements PromptKeys {
  #made: Promise<PromptKey> | undefined;

  current(): Promise<PromptKey> {
    this.#made ??= makePromptKey();
    return this.#made;
  }

  async find(id: string): Promise<CryptoKey | undefined> {
    const made = await this.#made;
    return made?.id === id ? made.key : undefined;
  }
}

export class MemoryPromptStore implements PromptStore {
  readonly keys: PromptKeys = new MemoryPromptKeys();
  readonly #entries = new Map<string, PromptEntry>();
  readonly #records = new Map<string, Bytes[]>();
  /** The last in line for each key. */
  readonly #locks = new Map<string, Promise<void>>();
  #nWrites = 0;

  async list(): Promise<PromptEntry[]> {
    return [...this.#entries.values()];
  }

  async get(key: string): Promise<PromptEntry | undefined> {
    return this.#entries.get(key);
  }

  /** Memory that runs out says so itself. */
  async makeRoom(): Promise<void> {}

  async startWriting(): Promise<PromptWriter> {
    const records: Bytes[] = [];
    const pages = `memory-${++this.#nWrites}`;
    return {
      pages,
      write: async (record) => {
        records.push(record);
      },
      commit: async (entry) => {
        this.#records.set(pages, records);
        this.#entries.set(entry.key, entry);
      },
      close: async () => {},
    };
  }

  async read(entry: PromptEntry, from: number, to: number): Promise<(Bytes | undefined)[]> {
    const records = this.#records.get(entry.pages);
    return Array.from({ length: to - from }, (_, i) => records?.[from + i]);
  }

  async touch(entry: PromptEntry): Promise<void> {
    const info = { ...entry.info, usedAt: Date.now() };
    if (this.#entries.get(entry.key)?.pages === entry.pages) this.#entries.set(entry.key, { ...entry, info });
  }

  async delete(entry: PromptEntry): Promise<void> {
    this.#entries.delete(entry.key);
    this.#records.delete(entry.pages);
  }

  /** Records of a replaced prompt stay for those who hold it. */
  async hold(entry: PromptEntry): Promise<() => void> {
    return () => {
      if (this.#entries.get(entry.key)?.pages !== entry.pages) this.#records.delete(entry.pages);
    };
  }

  async lock(key: string, signal: AbortSignal): Promise<() => void> {
    const before = this.#locks.get(key) ?? Promise.resolve();
    let release = () => {};
    const mine = new Promise<void>((resolve) => {
      release = resolve;
    });
    this.#locks.set(
      key,
      before.then(() => mine),
    );
    await before;
    if (signal.aborted) {
      release();
      throw signal.reason;
    }
    return release;
  }

  async close(): Promise<void> {}
}
