/** Pinned prompts on the page's side: `model.pin`, `model.pinned`, and the handle of an open one. */

import { resolveMessages } from "../chat/messages.ts";
import type { ChatMessage } from "../chat/types.ts";
import { InlayError, internalError } from "../errors.ts";
import {
  checkBoolean,
  checkKnownNames,
  checkNumber,
  checkObject,
  checkString,
  invalidOption,
} from "../option-checks.ts";
import type { PinBits } from "../prompts/coding.ts";
import type { PinnedContent } from "../prompts/content.ts";
import type { PinEvent } from "../prompts/pin-events.ts";
import type { EngineClient } from "../rpc/client.ts";
import type { PinnedInfo } from "../storage/prompt-store.ts";

export type { PinBits };

/** How far pinning, opening or importing is. */
export interface PinProgress {
  /** "prefill" counts tokens, "cluster" layers; "download", "store" and "restore" count bytes. */
  readonly phase: "prefill" | "download" | "cluster" | "store" | "restore";
  readonly loaded: number;
  readonly total: number;
  /** 0 to 1 over all phases; never goes back. */
  readonly progress: number;
}

/** Options of `model.pinned.open`, and mostly of everything that ends with an open pinned prompt. */
export interface OpenPinnedOptions {
  onProgress?: ((progress: PinProgress) => void) | undefined;
  /** Aborting it rejects with `signal.reason`; what was begun is undone, unless it was just done. */
  signal?: AbortSignal | undefined;
  /**
   * false: the prompt can be asked as soon as its text is read, while its pages are still being read and checked: see
   * `PinnedPrompt.loaded`.
   * @default true
   */
  wait?: boolean | undefined;
}

export interface PinOptions extends Omit<OpenPinnedOptions, "wait"> {
  /** The name to find it again by; 1 to 256 characters. */
  id: string;
  /** true: the text as it is, for `complete`. @default as `on`; else false for models with a chat template, true for others */
  raw?: boolean | undefined;
  /**
   * Bits of each stored key and value. 2 takes a seventh of the bytes of f16 and costs some accuracy, 4 a quarter and next to
   * none; 16 stores them as the model's cache has them (f32 or f16). The first 32 and the last 128 tokens are f16 always.
   * @default 2, but 4 in KV heads that would lose too much; or what `on` has, or kvCache.format quantizes to
   */
  bits?: PinBits | undefined;
  /**
   * An open prompt that this one goes on: only what follows it is read. The result has both, and is stored by itself.
   * @default none
   */
  on?: PinnedPrompt | undefined;
  /**
   * Stores text, tokens, keys and values encrypted (AES-GCM), with a key of this origin that no script can read. Still to be
   * seen are the id, the model's name, sizes and times: what `list` tells.
   * @default as `on`, else false
   */
  encrypt?: boolean | undefined;
  /**
   * Share of its keys that later queries leave out: they read those clusters of keys that they are likely to attend to, and
   * what surrounds them. 0 reads everything; 0 <= sparsity < 1. Prompts of fewer than 512 tokens are read whole.
   * @default 0
   */
  sparsity?: number | undefined;
  /**
   * Where the keys that would be left out have more than this share of a head's attention, in estimate, all are read.
   * 0 < maxMissingMass <= 1.
   * @default 1: never
   */
  maxMissingMass?: number | undefined;
}

export interface ExportPinnedOptions {
  /** true: an encrypted prompt may be exported. The file is not encrypted. @default false */
  decrypt?: boolean | undefined;
}

export interface ImportPinnedOptions extends Omit<OpenPinnedOptions, "wait"> {
  /** Stores it encrypted, as `PinOptions.encrypt`. @default false */
  encrypt?: boolean | undefined;
}

const PIN_OPTIONS = [
  "id",
  "raw",
  "bits",
  "on",
  "sparsity",
  "maxMissingMass",
  "encrypt",
  "onProgress",
  "signal",
];
const PIN_BITS = [2, 4, 8, 16] as const;

/** Share of the whole that is done when a phase begins. Prefilling, or fetching, is nearly all of the work. */
const PHASE_START = { prefill: 0, download: 0, cluster: 0.9, store: 0.95, restore: 0 } as const;
const PHASE_END = { prefill: 0.9, download: 0.95, cluster: 0.95, store: 1, restore: 1 } as const;

/**
 * An open pinned prompt: pass it as `pinned` to requests and sessions of the model that opened it. Its pages stay in
 * memory, and its stored bytes where they are, until `close`, or until the model is disposed.
 */
export class PinnedPrompt {
  readonly id: string;
  readonly info: PinnedInfo;
  /**
   * Resolves when all of its pages are in memory and were checked: at once, unless it was opened with `wait: false`. Else
   * rejects as `open` would, as do requests with it, or with `disposed` if it was closed before.
   */
  readonly loaded: Promise<void>;
  /** @internal Names it to the engine. */
  readonly key: string;
  readonly #client: EngineClient;

  /** @internal They come from `model.pin` and `model.pinned`. */
  constructor(client: EngineClient, key: string, info: PinnedInfo, loaded: Promise<void>) {
    this.#client = client;
    this.key = key;
    this.info = info;
    this.loaded = loaded;
    this.id = info.id;
  }

  /** Lets go of it: requests with it then reject with `disposed`. What is stored stays. Idempotent. */
  async close(): Promise<void> {
    try {
      await this.#client.call((engine) => engine.closePinned(this.key));
    } catch (error) {
      // It went with the model.
      if (!(error instanceof InlayError && ["disposed", "worker-died"].includes(error.code))) throw error;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** `model.pinned`: the stored prompts of one model. */
export class PinnedPrompts {
  readonly #client: EngineClient;

  /** @internal */
  constructor(client: EngineClient) {
    this.#client = client;
  }

  /** What is stored for this model, most recently used first. Reads none of it. */
  list(): Promise<PinnedInfo[]> {
    return this.#client.call((engine) => engine.listPinned());
  }

  /** Restores a stored prompt. Rejects with `storage-failed` if there is none or it is damaged, and with `cache-mismatch`. */
  async open(id: string, options: OpenPinnedOptions = {}): Promise<PinnedPrompt> {
    checkString("id", id);
    checkKnownNames("", checkObject("options", options), ["wait", "onProgress", "signal"]);
    const waits = checkBoolean("wait", options.wait ?? true);
    const start = (signal: AbortSignal | undefined) =>
      this.#client.pinEvents((engine, port) => engine.openPinned(id, waits, port), signal);
    return openPinned(this.#client, options, start, waits);
  }

  /** Removes a stored prompt, and closes it; false if there was none. */
  async delete(id: string): Promise<boolean> {
    checkString("id", id);
    return this.#client.call((engine) => engine.deletePinned(id));
  }

  /** A stored prompt as an `.inlaykv` file. Rejects with `invalid-option` for an encrypted one unless `decrypt` is set. */
  async export(id: string, options: ExportPinnedOptions = {}): Promise<Blob> {
    checkString("id", id);
    checkKnownNames("", checkObject("options", options), ["decrypt"]);
    const decrypt = checkBoolean("decrypt", options.decrypt ?? false);
    return this.#client.call((engine) => engine.exportPinned(id, decrypt));
  }

  /**
   * Stores an `.inlaykv` file of this model, or the one behind a URL, under the id in it, and opens it. Replaces another
   * prompt of that id. Rejects with `source-failed` for a URL that cannot be fetched.
   */
  async import(source: Blob | URL | string, options: ImportPinnedOptions = {}): Promise<PinnedPrompt> {
    const file = source instanceof Blob ? source : absoluteUrl(source);
    const encrypt = checkBoolean("encrypt", options.encrypt ?? false);
    return openPinned(this.#client, options, (signal) =>
      this.#client.pinEvents((engine, port) => engine.importPinned(file, encrypt, port), signal),
    );
  }
}

function absoluteUrl(source: URL | string): string {
  const { location } = globalThis as { location?: { href: string } };
  try {
    if (typeof source === "string" || source instanceof URL) return new URL(source, location?.href).href;
  } catch {
    // no URL either
  }
  throw invalidOption("source", source, "a Blob, a File or a URL");
}

/** `model.pin`. */
export async function pin(
  client: EngineClient,
  hasChatTemplate: boolean,
  input: string | readonly ChatMessage[],
  options: PinOptions,
): Promise<PinnedPrompt> {
  checkKnownNames("", checkObject("options", options), PIN_OPTIONS);
  const id = checkString("id", options.id);
  if (id.length < 1 || id.length > 256) throw invalidOption("id", id, "a name of 1 to 256 characters");
  const { on } = options;
  if (on !== undefined && !(on instanceof PinnedPrompt))
    throw invalidOption("on", on, "an open pinned prompt, as model.pin and model.pinned.open give it");
  const raw = options.raw === undefined ? undefined : checkBoolean("raw", options.raw);
  const bits = options.bits === undefined ? undefined : checkBits(options.bits);
  const sparsity =
    options.sparsity === undefined
      ? undefined
      : checkNumber("sparsity", options.sparsity, { min: 0, max: 1, belowMax: true });
  const maxMissing =
    options.maxMissingMass === undefined
      ? undefined
      : checkNumber("maxMissingMass", options.maxMissingMass, { min: 0, aboveMin: true, max: 1 });
  const encrypt = checkBoolean("encrypt", options.encrypt ?? on?.info.encrypted ?? false);
  const content = contentOf(input, raw, on?.info.raw ?? !hasChatTemplate);
  const request = { id, content, bits, sparsity, maxMissing, encrypt, on: on?.key };
  requestPersistence();
  return openPinned(client, options, (signal) =>
    client.pinEvents((engine, port) => engine.pin(request, port), signal),
  );
}

function checkBits(bits: unknown): PinBits {
  if (PIN_BITS.includes(bits as PinBits)) return bits as PinBits;
  throw invalidOption("bits", bits, "2, 4, 8 or 16");
}

/** Text is raw text if that is asked for or the default, else a system message. */
function contentOf(
  input: string | readonly ChatMessage[],
  raw: boolean | undefined,
  isRawByDefault: boolean,
): PinnedContent {
  if (typeof input !== "string") {
    if (raw === true) throw invalidOption("raw", raw, "false, or absent, for messages");
    return { kind: "chat", messages: resolveMessages(input) };
  }
  if (raw ?? isRawByDefault) return { kind: "text", text: input };
  return { kind: "chat", messages: resolveMessages([{ role: "system", content: input }]) };
}

/** Asks the browser not to clear this origin's storage for want of space. Firefox asks its user, so nobody waits for it. */
function requestPersistence(): void {
  const { storage } = (globalThis.navigator ?? {}) as { storage?: Partial<StorageManager> };
  // A browser that refuses keeps the prompt for as long as it has room.
  storage?.persist?.().catch(() => {});
}

/** `waits`: until its pages are in. */
async function openPinned(
  client: EngineClient,
  { onProgress, signal }: OpenPinnedOptions,
  start: (signal: AbortSignal | undefined) => AsyncGenerator<PinEvent, void>,
  waits = true,
): Promise<PinnedPrompt> {
  let prompt: PinnedPrompt | undefined;
  let done = 0;
  let tell = (_prompt: PinnedPrompt) => {};
  const told = new Promise<PinnedPrompt>((resolve) => {
    tell = resolve;
  });
  const follow = async () => {
    try {
      for await (const event of start(signal)) {
        if (event.kind === "pinned") {
          prompt = new PinnedPrompt(client, event.key, event.info, waits ? Promise.resolve() : loaded);
          if (!waits) tell(prompt);
          continue;
        }
        const { phase, loaded: n, total } = event;
        const from = PHASE_START[phase];
        done = Math.max(done, from + (n / total) * (PHASE_END[phase] - from));
        onProgress?.({ phase, loaded: n, total, progress: done });
      }
    } catch (error) {
      if (waits) await prompt?.close(); // else the engine has closed it, and knows why
      throw error;
    }
    if (!prompt) throw internalError("pinning ended without a prompt");
    tell(prompt);
  };
  // It begins after `loaded` is there to be handed on.
  const loaded: Promise<void> = Promise.resolve().then(follow);
  loaded.catch(() => {}); // whoever waits for it, or asks, hears of it
  return Promise.race([told, loaded.then(() => told)]);
}
