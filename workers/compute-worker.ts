/** Entry of a helper thread in a browser. */

import "../src/symbols.ts";
import { type ComputeStart, runComputeWorker } from "../src/backend/wasm/threads.ts";

addEventListener("message", (event: MessageEvent<ComputeStart>) => runComputeWorker(event.data, postMessage));
