/** `loadModel` for Node: also takes paths of files. */

import { pathToFileURL } from "node:url";
import type { ModelInput } from "../gguf/source.ts";
import { shardPaths } from "../host/node-files.ts";
import type { LoadOptions } from "../options.ts";
import type { PreparedSource } from "../rpc/client.ts";
import { spawnEngineWorker } from "../rpc/spawn.node.ts";
import { toWireSource } from "../rpc/wire-source.ts";
import { type LoadPlatform, loadModelWith } from "./load-model.ts";
import type { Model } from "./model.ts";

const NODE: LoadPlatform<ModelInput> = {
  prepareSource,
  spawnEngineWorker,
  absoluteUrl: (url) => (isUrl(url) ? url : pathToFileURL(url.endsWith("/") ? url : `${url}/`).href),
};

/**
 * Loads a GGUF model into a worker thread.
 *
 * @param source The path of a file (for a split model, of any one of its files), or anything that browsers take.
 * @returns The model, ready to answer; whoever loaded it disposes it.
 * @throws InlayError, or `signal.reason` when aborted.
 */
export function loadModel(source: ModelInput, options?: LoadOptions): Promise<Model> {
  return loadModelWith(NODE, source, options);
}

function prepareSource(source: ModelInput): PreparedSource {
  if (typeof source === "string" && !isUrl(source))
    return { wire: { kind: "paths", paths: shardPaths(source) }, transfer: [] };
  return toWireSource(source);
}

/** A scheme has at least two letters: `C:\models` is a path. */
function isUrl(text: string): boolean {
  return /^[a-z][a-z0-9+.-]+:/i.test(text);
}
