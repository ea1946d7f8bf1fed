/** `loadModel` for browsers. */

import type { ModelInput } from "../gguf/source.ts";
import type { LoadOptions } from "../options.ts";
import { spawnEngineWorker } from "../rpc/spawn.browser.ts";
import { toWireSource } from "../rpc/wire-source.ts";
import { type LoadPlatform, loadModelWith } from "./load-model.ts";
import type { Model } from "./model.ts";

const BROWSER: LoadPlatform<ModelInput> = {
  prepareSource: toWireSource,
  spawnEngineWorker,
  absoluteUrl: (url) => new URL(url, location.href).href,
};

/**
 * Loads a GGUF model into a worker of its own.
 *
 * @param source A URL (relative ones mean the page's address), `{ repo, file }` on Hugging Face, a File or Blob, the
 *   Blobs of a split model, an ArrayBuffer, or a ReadableStream.
 * @returns The model, ready to answer; whoever loaded it disposes it.
 * @throws InlayError, or `signal.reason` when aborted.
 */
export function loadModel(source: ModelInput, options?: LoadOptions): Promise<Model> {
  return loadModelWith(BROWSER, source, options);
}
