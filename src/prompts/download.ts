/** Fetching a prompt file. */

import { httpSource } from "../gguf/http-source.ts";
import type { Bytes } from "../storage/prompt-store.ts";
import { type PinProgress, progress } from "./pin-events.ts";

/** The file behind an absolute URL. */
export async function* download(url: string, signal: AbortSignal): AsyncGenerator<PinProgress, Blob> {
  const source = httpSource(new URL(url));
  const parts: Blob[] = [];
  let loaded = 0;
  for await (const chunk of source.open(0, signal)) {
    // A browser may keep blobs on disk.
    parts.push(new Blob([chunk as Bytes]));
    loaded += chunk.byteLength;
    yield progress("download", loaded, source.size ?? loaded);
  }
  return new Blob(parts);
}
