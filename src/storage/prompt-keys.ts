/** The key of encrypted prompts: made once per origin, AES-GCM with 256 bits, and never to be had as bytes. */

/** A key and the name that entries know it by. */
export interface PromptKey {
  readonly id: string;
  readonly key: CryptoKey;
}

export interface PromptKeys {
  /** The key to encrypt with; made if there is none. */
  current(): Promise<PromptKey>;
  /** The key that something was encrypted with; undefined if it is gone. */
  find(id: string): Promise<CryptoKey | undefined>;
}

/** A new key under a random name. */
export async function makePromptKey(): Promise<PromptKey> {
  const key = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, [
    "encrypt",
    "decrypt",
  ]);
  return { id: crypto.randomUUID(), key };
}
