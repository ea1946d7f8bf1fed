/** Entry of a helper thread in Node. */

import "../src/symbols.ts";
import { parentPort } from "node:worker_threads";
import { type ComputeStart, runComputeWorker } from "../src/backend/wasm/threads.ts";

const port = parentPort!;
port.once("message", (start: ComputeStart) =>
  runComputeWorker(start, (message) => port.postMessage(message)),
);
