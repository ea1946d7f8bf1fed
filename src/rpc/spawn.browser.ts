/** Starts the engine's worker in a browser. */

import { InlayError } from "../errors.ts";
import type { EngineWorker } from "./client.ts";
import { startsComputeWorkers } from "./compute-relay.ts";
import { besideModule, startable } from "./worker-url.ts";

/** `script`: the worker's address, when it is not beside this module. */
export function spawnEngineWorker(script: string | null): EngineWorker {
  const name = "inlay-engine";
  const url =
    script === null ? besideModule("engine-worker.js", import.meta.url) : new URL(script, location.href);
  let worker: Worker;
  try {
    worker =
      script === null && url.origin === location.origin
        ? // Bundlers look for exactly these words; they bundle the worker with what it needs.
          new Worker(new URL("./engine-worker.js", import.meta.url), { type: "module", name })
        : new Worker(startable(url), { type: "module", name });
  } catch (cause) {
    throw new InlayError(
      "worker-died",
      `the engine's worker ${url.href} could not be started: ${cause instanceof Error ? cause.message : cause}`,
      { url: url.href },
      { cause },
    );
  }
  const endComputeWorkers = startsComputeWorkers(worker, () => startComputeWorker(url, script === null));
  return {
    endpoint: worker,
    onDeath: (f) => {
      worker.addEventListener("error", (event) =>
        f(
          new InlayError(
            "worker-died",
            event.message
              ? `the engine's worker failed: ${event.message} (${event.filename}:${event.lineno})`
              : `the engine's worker ${url.href} did not load; check that the file is there, or set assets.worker`,
            { url: url.href },
          ),
        ),
      );
      worker.addEventListener("messageerror", () =>
        f(new InlayError("worker-died", "a message of the engine's worker could not be read")),
      );
    },
    terminate() {
      endComputeWorkers();
      worker.terminate();
    },
  };
}

/** `engine`: the address of the engine's worker, beside which the script is. */
function startComputeWorker(engine: URL, isBesideModule: boolean): Worker {
  const name = "inlay-compute";
  return isBesideModule && engine.origin === location.origin
    ? // Bundlers look for exactly these words.
      new Worker(new URL("./compute-worker.js", import.meta.url), { type: "module", name })
    : new Worker(startable(new URL("compute-worker.js", engine)), { type: "module", name });
}
