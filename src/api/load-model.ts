/** Loading: a source and options in, a running model out. */

import type { LoadOptions } from "../options.ts";
import { resolveLoadOptions } from "../options.ts";
import { EngineClient, type EngineWorker, type PreparedSource } from "../rpc/client.ts";
import { Model } from "./model.ts";

/** What differs between browsers and Node. */
export interface LoadPlatform<Source> {
  prepareSource(source: Source): PreparedSource;
  spawnEngineWorker(script: string | null): EngineWorker;
  /** `assets.wasm` as an absolute URL. */
  absoluteUrl(url: string): string;
}

/**
 * Starts a worker and loads a model into it. Rejects with an InlayError that says what is wrong with the source,
 * the file, the options or the device, or with `signal.reason`; the worker is gone then.
 */
export async function loadModelWith<Source>(
  platform: LoadPlatform<Source>,
  source: Source,
  options: LoadOptions = {},
): Promise<Model> {
  const { assets, onProgress, signal, ...engineOptions } = resolveLoadOptions(options);
  signal?.throwIfAborted();
  const prepared = platform.prepareSource(source);
  const client = new EngineClient(platform.spawnEngineWorker(assets.worker));
  try {
    const wasmBase = assets.wasm === null ? null : platform.absoluteUrl(assets.wasm);
    const info = await client.load(prepared, engineOptions, wasmBase, onProgress, signal);
    return new Model(client, info);
  } catch (error) {
    client.terminate();
    throw error;
  }
}
