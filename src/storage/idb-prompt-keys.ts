/**
 * The key in IndexedDB, in a database of its own: `inlay-keys`, "current" → PromptKey. Browsers store a CryptoKey without
 * showing its bytes to any script.
 */

import { createStore, get, type UseStore, update } from "idb-keyval";
import { InlayError } from "../errors.ts";
import { makePromptKey, type PromptKey, type PromptKeys } from "./prompt-keys.ts";

const CURRENT = "current";

export class IdbPromptKeys implements PromptKeys {
  #store: UseStore | undefined;

  async current(): Promise<PromptKey> {
    const known = await this.#read();
    if (known) return known;
    const made = await makePromptKey();
    // Of two tabs that make one, the first keeps its own: an update is one transaction.
    await guarded(() => update<PromptKey>(CURRENT, (there) => there ?? made, this.#keys()));
    return (await this.#read()) ?? made;
  }

  async find(id: string): Promise<CryptoKey | undefined> {
    const known = await this.#read();
    return known?.id === id ? known.key : undefined;
  }

  #read(): Promise<PromptKey | undefined> {
    return guarded(() => get<PromptKey>(CURRENT, this.#keys()));
  }

  /** Opened when it is first needed: most pages encrypt nothing. */
  #keys(): UseStore {
    this.#store ??= createStore("inlay-keys", "keys");
    return this.#store;
  }
}

async function guarded<T>(f: () => Promise<T>): Promise<T> {
  try {
    return await f();
  } catch (cause) {
    throw new InlayError(
      "storage-failed",
      `the key of encrypted prompts cannot be kept in this browser's IndexedDB: ${cause}; pin without encrypt`,
      {},
      { cause },
    );
  }
}
