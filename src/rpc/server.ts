/** The worker's side: one engine behind comlink. */

import { type Endpoint, expose } from "comlink";
import { Engine } from "../engine/engine.ts";
import { InlayError } from "../errors.ts";
import type { ByteSource } from "../gguf/source.ts";
import type { Host } from "../host/host.ts";
import type { EngineApi } from "./engine-api.ts";
import { sendEvents } from "./stream.ts";
import { registerTransferHandlers } from "./transfer.ts";
import { fromWireSource } from "./wire-source.ts";

/** What differs between a browser's worker and a Node thread. */
export interface ServerSetup {
  createHost(wasmBase: string | null): Host;
  /** Opens files by path; Node only. */
  readonly openPaths?: (paths: readonly string[]) => ByteSource[];
}

/** Serves one engine on `endpoint`. */
export function serveEngine(setup: ServerSetup, endpoint?: Endpoint): void {
  let engine: Engine | undefined;
  const loads = new Map<number, AbortController>();
  const loaded = (): Engine => {
    if (engine) return engine;
    throw new InlayError("internal", "internal: the engine was called before it was loaded");
  };
  const api: EngineApi = {
    async load(call, source, options, wasmBase, onProgress) {
      const controller = new AbortController();
      loads.set(call, controller);
      try {
        engine = await Engine.load({
          host: setup.createHost(wasmBase),
          sources: fromWireSource(source, setup.openPaths),
          options,
          onProgress,
          signal: controller.signal,
        });
        return engine.info;
      } finally {
        loads.delete(call);
      }
    },
    cancel: (call) => loads.get(call)?.abort(new DOMException("Loading was cancelled.", "AbortError")),
    generate(request, port) {
      void sendEvents(port, (signal) => loaded().generate(request, signal));
    },
    prefill(prompt, port) {
      void sendEvents(port, (signal) => loaded().prefill(prompt, signal));
    },
    pin(request, port) {
      void sendEvents(port, (signal) => loaded().pinned.pin(request, signal));
    },
    openPinned(id, waits, port) {
      void sendEvents(port, (signal) => loaded().pinned.open(id, waits, signal));
    },
    importPinned(source, encrypt, port) {
      void sendEvents(port, (signal) => loaded().pinned.import(source, encrypt, signal));
    },
    closePinned: (key) => loaded().pinned.close(key),
    listPinned: () => loaded().pinned.list(),
    deletePinned: (id) => loaded().pinned.delete(id),
    exportPinned: (id, decrypt) => loaded().pinned.export(id, decrypt),
    promptIds: (prompt) => loaded().promptIds(prompt),
    tokenize: (text, options) => loaded().tokenizer.encode(text, options),
    detokenize: (ids, options) => loaded().tokenizer.decode(ids, options),
    attentionMap: (text, options) => loaded().attentionMap(text, options),
    memory: () => loaded().memory(),
    dispose: async () => engine?.dispose(),
  };
  registerTransferHandlers();
  expose(api, endpoint);
}
