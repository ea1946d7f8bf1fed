/** SHA-256 by WebCrypto, which pages have only over HTTPS or on localhost. */

import { InlayError } from "../errors.ts";

/** Whether `sha256` can be computed here. */
export const hasSha256 = (): boolean => globalThis.crypto?.subtle !== undefined;

/** What pinned prompts reject with on a page that has no WebCrypto, or no Web Locks. */
export function insecurePage(): InlayError {
  return new InlayError(
    "unsupported-environment",
    "pinned prompts need WebCrypto and Web Locks, which browsers give only to pages over HTTPS or on localhost",
  );
}

/** As 64 hexadecimal digits. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return toHex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function fromHex(hex: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(hex.match(/../g) ?? [], (digits) => Number.parseInt(digits, 16));
}
