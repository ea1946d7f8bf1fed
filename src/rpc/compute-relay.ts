/**
 * Compute workers in browsers: the engine asks for them, the page starts them.
 *
 * `new Worker` inside a worker blocks that worker for ever in about one of 140 calls in Firefox 153 when workers of an earlier
 * model have just been terminated. Everything crosses as messages of the workers themselves and not over a
 * MessagePort, for WebKit clones WASM modules and shared memory only there.
 */

import type { ComputeWorker } from "../host/host.ts";

/** From the engine to the page. `compute` numbers the engine's compute workers. */
type ToPage =
  | { readonly compute: number; readonly kind: "start" }
  | { readonly compute: number; readonly kind: "post"; readonly message: unknown }
  | { readonly compute: number; readonly kind: "terminate" };

/** From the page to the engine. */
type ToEngine =
  | { readonly compute: number; readonly kind: "message"; readonly message: unknown }
  | { readonly compute: number; readonly kind: "failure"; readonly what: string };

/** The part of a worker's global scope that the engine's side uses. */
export interface WorkerScope {
  postMessage(message: unknown): void;
  addEventListener(type: "message", listener: (event: MessageEvent<unknown>) => void): void;
  removeEventListener(type: "message", listener: (event: MessageEvent<unknown>) => void): void;
}

let nComputeWorkers = 0;

/** The engine's side: a compute worker that the page starts. */
export function relayedComputeWorker(scope: WorkerScope): ComputeWorker {
  const compute = ++nComputeWorkers;
  const tell = (message: ToPage) => scope.postMessage(message);
  let stopListening = () => {};
  tell({ compute, kind: "start" });
  return {
    post: (message) => tell({ compute, kind: "post", message }),
    listen(onMessage, onFailure) {
      const listener = ({ data }: MessageEvent<unknown>) => {
        if (!isAboutCompute<ToEngine>(data) || data.compute !== compute) return;
        if (data.kind === "message") onMessage(data.message);
        else onFailure(new Error(data.what));
      };
      scope.addEventListener("message", listener);
      stopListening = () => scope.removeEventListener("message", listener);
    },
    terminate() {
      stopListening();
      tell({ compute, kind: "terminate" });
    },
  };
}

/** The page's side: starts compute workers for the engine in `engine`. The result terminates all of them. */
export function startsComputeWorkers(engine: Worker, start: () => Worker): () => void {
  const workers = new Map<number, Worker>();
  const tell = (message: ToEngine) => engine.postMessage(message);
  const listener = ({ data }: MessageEvent<unknown>) => {
    if (!isAboutCompute<ToPage>(data)) return;
    const { compute } = data;
    const worker = workers.get(compute);
    if (data.kind === "post") worker?.postMessage(data.message);
    else if (data.kind === "terminate") {
      worker?.terminate();
      workers.delete(compute);
    } else {
      try {
        workers.set(compute, started(compute, start(), tell));
      } catch (error) {
        tell({ compute, kind: "failure", what: error instanceof Error ? error.message : String(error) });
      }
    }
  };
  engine.addEventListener("message", listener);
  return () => {
    engine.removeEventListener("message", listener);
    for (const worker of workers.values()) worker.terminate();
    workers.clear();
  };
}

function started(compute: number, worker: Worker, tell: (message: ToEngine) => void): Worker {
  worker.addEventListener("message", ({ data }: MessageEvent<unknown>) =>
    tell({ compute, kind: "message", message: data }),
  );
  worker.addEventListener("error", (event) =>
    tell({ compute, kind: "failure", what: event.message || "the script did not load" }),
  );
  return worker;
}

function isAboutCompute<T>(data: unknown): data is T {
  return typeof data === "object" && data !== null && "compute" in data;
}
