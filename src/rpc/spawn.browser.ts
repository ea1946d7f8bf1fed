/** Starts the engine's worker in a browser. */

import { InlayError } from "../errors.ts";
import type { EngineWorker } from "./client.ts";

/** `script`: the worker's address, when it is not beside this module. */
export function spawnEngineWorker(script: string | null): EngineWorker {
  // Written like this for bundlers, which look for exactly `new URL("…", import.meta.url)`.
  const url =
    script === null ? new URL("./engine-worker.js", import.meta.url) : new URL(script, location.href);
  let worker: Worker;
  try {
    worker = new Worker(sameOrigin(url), { type: "module", name: "inlay-engine" });
  } catch (cause) {
    throw new InlayError(
      "worker-died",
      `the engine's worker ${url.href} could not be started: ${cause instanceof Error ? cause.message : cause}`,
      { url: url.href },
      { cause },
    );
  }
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
    terminate: () => worker.terminate(),
  };
}

/**
 * Workers must come from the page's own origin; modules they import need not. A worker elsewhere (a CDN) is
 * therefore started through a one-line module of our own.
 */
function sameOrigin(url: URL): URL | string {
  if (url.origin === location.origin || url.protocol === "blob:" || url.protocol === "data:") return url;
  const starter = new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" });
  return URL.createObjectURL(starter);
}
