/** Starts the engine in a Node worker thread. */

import { SHARE_ENV, Worker } from "node:worker_threads";
import nodeEndpoint from "comlink/dist/esm/node-adapter.mjs";
import { InlayError } from "../errors.ts";
import type { EngineWorker } from "./client.ts";

/** `script`: path or file URL of the worker's bundle, when it is not beside this module. */
export function spawnEngineWorker(script: string | null): EngineWorker {
  const worker = startWorker(script);
  return {
    endpoint: nodeEndpoint(worker),
    onDeath: (f) => {
      worker.on("error", (cause) =>
        f(new InlayError("worker-died", `the engine's thread failed: ${cause.message}`, {}, { cause })),
      );
      worker.on("exit", (status) =>
        f(new InlayError("worker-died", `the engine's thread ended with status ${status}`, { status })),
      );
    },
    terminate: () => void worker.terminate(),
  };
}

function startWorker(script: string | null): Worker {
  try {
    const file = script?.startsWith("file:") ? new URL(script) : script;
    // The environment is shared because the GPU driver reads it: see nodeGpu in src/host/node.ts.
    return new Worker(file ?? new URL("./engine-worker.node.mjs", import.meta.url), {
      name: "inlay-engine",
      env: SHARE_ENV,
    });
  } catch (cause) {
    throw new InlayError(
      "worker-died",
      `the engine's thread ${script} could not be started: ${cause instanceof Error ? cause.message : cause}`,
      { script },
      { cause },
    );
  }
}
