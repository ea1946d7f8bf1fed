/**
 * Where pinned prompts are kept: in a browser two IndexedDB databases (idb-prompt-store.ts), in Node the memory of the
 * process (memory-prompt-store.ts). Records are written first and the entry that names them last, so that a prompt is
 * either there with all of its bytes or not there at all.
 */

import type { PromptKeys } from "./prompt-keys.ts";

export type Bytes = Uint8Array<ArrayBuffer>;

/** What is told of a pinned prompt without reading it. */
export interface PinnedInfo {
  /** The name it was pinned under. */
  readonly id: string;
  readonly tokens: number;
  /** Of a stored key or value on average, with all that is stored beside it: ranges, clusters, the f16 at both ends. */
  readonly bits: number;
  /** Share of its keys that answers leave out, in estimate; 0: they read all. */
  readonly sparsity: number;
  /** How it was attended to when it was prefilled: "dense", or a method and the share of the keys read, as "dhsa 0.25". */
  readonly attention: string;
  /** How long it took to prefill it, which is what an answer without the pinned prompt would wait for. */
  readonly prefillSeconds: number;
  /** Stored bytes, its text and token ids included. */
  readonly byteLength: number;
  /** Raw text, for `complete`; false: messages, for chats. */
  readonly raw: boolean;
  /** Its text, tokens and pages are stored encrypted. */
  readonly encrypted: boolean;
  /** Milliseconds since 1970. */
  readonly createdAt: number;
  /** Milliseconds since 1970. */
  readonly usedAt: number;
}

/** One stored prompt: everything but its records. Only `head` is encrypted in an encrypted prompt; the rest can be listed. */
export interface PromptEntry {
  /** Fingerprint of its model and id; one prompt a key. */
  readonly key: string;
  readonly fingerprint: string;
  /** For messages: the model's name and file type. */
  readonly modelName: string;
  /** Names its records, anew for every write. */
  readonly pages: string;
  readonly info: PinnedInfo;
  /** The key that records and head are encrypted with (src/prompts/seal.ts); absent: they are not. */
  readonly sealedBy?: string | undefined;
  /** The head of its `.inlaykv` file (src/prompts/file.ts), sealed if the prompt is encrypted. */
  readonly head: Bytes;
  /** SHA-256 of `head`, hexadecimal. */
  readonly sha256: string;
}

/** Writes one prompt. Nothing of it is seen before `commit`. */
export interface PromptWriter {
  /** Names the records. */
  readonly pages: string;
  /** Appends a record. Rejects with `storage-quota` or `storage-failed`. */
  write(record: Bytes): Promise<void>;
  /** Makes the prompt visible, in place of an earlier one with its key. */
  commit(entry: PromptEntry): Promise<void>;
  /** Ends writing; what was not committed is removed. Idempotent. */
  close(): Promise<void>;
}

/** Everything rejects with `storage-failed` when the store cannot be used. */
export interface PromptStore {
  /** What encrypted prompts are encrypted with. */
  readonly keys: PromptKeys;
  /** All prompts, of all models. */
  list(): Promise<PromptEntry[]>;
  get(key: string): Promise<PromptEntry | undefined>;
  /** Makes sure that `bytes` more fit, removing prompts not in use, least recently used first. Rejects with `storage-quota`. */
  makeRoom(bytes: number): Promise<void>;
  startWriting(): Promise<PromptWriter>;
  /** Records [from, to); undefined for one that is missing. */
  read(entry: PromptEntry, from: number, to: number): Promise<(Bytes | undefined)[]>;
  /** Notes that it is being used. */
  touch(entry: PromptEntry): Promise<void>;
  delete(entry: PromptEntry): Promise<void>;
  /** Keeps its records from being removed, by other tabs too, until the result is called. */
  hold(entry: PromptEntry): Promise<() => void>;
  /** Waits until nobody else, in any tab, has the lock of this key; the result gives it back. */
  lock(key: string, signal: AbortSignal): Promise<() => void>;
  /**
   * Ends reading and writing: waits for what has begun, so that a worker that ends then leaves no transaction behind.
   * Later calls may reject with `disposed`. Never rejects.
   */
  close(): Promise<void>;
}
