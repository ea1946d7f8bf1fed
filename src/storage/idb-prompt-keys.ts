/**
 * The key in IndexedDB, in a database of its own: `inlay-keys`, "current" → PromptKey. Browsers store a CryptoKey without
 * showing its bytes to any script.
 */

import { createStore, get, type UseStore, update } from "idb-keyval";
import { makePromptKey, type PromptKey, type PromptKeys } from "./prompt-keys.ts";

const CURRENT = "current";

type RunTransaction = <T>(what: "read" | "write", f: () => Promise<T>) => Promise<T>;

export class IdbPromptKeys implements PromptKeys {
  #store: UseStore | undefined;

  /** `run`: runs a transaction, and says what its errors mean. */
  constructor(private readonly run: RunTransaction) {}

  async current(): Promise<PromptKey> {
    const known = await this.#read();
    if (known) return known;
    const made = await makePromptKey();
    // Of two tabs that make one, the first keeps its own: an update is one transaction.
    await this.run("write", () => update<PromptKey>(CURRENT, (there) => there ?? made, this.#keys()));
    return (await this.#read()) ?? made;
  }

  async find(id: string): Promise<CryptoKey | undefined> {
    const known = await this.#read();
    return known?.id === id ? known.key : undefined;
  }

  #read(): Promise<PromptKey | undefined> {
    return this.run("read", () => get<PromptKey>(CURRENT, this.#keys()));
  }

  /** Opened when it is first needed: most pages encrypt nothing. */
  #keys(): UseStore {
    this.#store ??= createStore("inlay-keys", "keys");
    return this.#store;
  }
}
