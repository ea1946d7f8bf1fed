/**
 * Encryption of a stored prompt: AES-GCM, each part under a random 96-bit IV of its own. What a part is, of which prompt
 * and which write of it, is authenticated with it, so that parts that were changed or exchanged do not open.
 *
 *     IV (12 bytes) · ciphertext · tag (16 bytes)
 *
 * Random IVs are safe for 2^32 parts under one key (NIST SP 800-38D, 8.3), which at 1 MiB each no disk has.
 */

import { InlayError } from "../errors.ts";
import type { Bytes, PromptEntry, PromptStore } from "../storage/prompt-store.ts";

const IV_BYTES = 12;

/** A record by its number, or the manifest. */
export type SealedPart = number | "head";

export class Seal {
  /** `owner`: key and pages of the prompt's entry. */
  constructor(
    private readonly key: CryptoKey,
    private readonly owner: Pick<PromptEntry, "key" | "pages">,
  ) {}

  async close(part: SealedPart, bytes: Bytes): Promise<Bytes> {
    const iv = crypto.getRandomValues(new Uint8Array(IV_BYTES));
    const ciphertext = await crypto.subtle.encrypt(this.#algorithm(part, iv), this.key, bytes);
    const sealed = new Uint8Array(IV_BYTES + ciphertext.byteLength);
    sealed.set(iv);
    sealed.set(new Uint8Array(ciphertext), IV_BYTES);
    return sealed;
  }

  /** undefined for what is not this part as it was closed, under this key. */
  async open(part: SealedPart, sealed: Bytes): Promise<Bytes | undefined> {
    const iv = sealed.subarray(0, IV_BYTES);
    try {
      const algorithm = this.#algorithm(part, iv);
      return new Uint8Array(await crypto.subtle.decrypt(algorithm, this.key, sealed.subarray(IV_BYTES)));
    } catch (error) {
      // Too short to have a tag, or a tag that is wrong.
      if (error instanceof DOMException && error.name === "OperationError") return undefined;
      throw error;
    }
  }

  #algorithm(part: SealedPart, iv: Bytes): AesGcmParams {
    const { key, pages } = this.owner;
    return {
      name: "AES-GCM",
      iv,
      additionalData: new TextEncoder().encode(JSON.stringify([key, pages, part])),
    };
  }
}

/** The seal of an encrypted prompt; undefined for one that is not. Rejects with `storage-failed` if its key is gone. */
export async function sealOf(store: PromptStore, entry: PromptEntry): Promise<Seal | undefined> {
  if (entry.sealedBy === undefined) return undefined;
  const key = await store.keys.find(entry.sealedBy);
  if (key) return new Seal(key, entry);
  throw keyGone(entry);
}

/** The error for a prompt that nobody can read any more. */
export function keyGone({ info: { id } }: PromptEntry): InlayError {
  return new InlayError(
    "storage-failed",
    `the prompt ${JSON.stringify(id)} is stored encrypted, and the key that it was encrypted with is gone from this ` +
      "browser's storage: nothing can read it any more; pin the prompt again",
    { id },
  );
}
