/** Entry of the engine's thread in Node. */

import "../src/symbols.ts";
import { parentPort } from "node:worker_threads";
import nodeEndpoint from "comlink/dist/esm/node-adapter.mjs";
import { nodeHost } from "../src/host/node.ts";
import { openPaths } from "../src/host/node-files.ts";
import { serveEngine } from "../src/rpc/server.ts";

const createHost = (wasmBase: string | null) =>
  nodeHost({
    wasmFolder: wasmBase === null ? new URL("./", import.meta.url) : new URL(wasmBase),
    computeWorker: new URL("./compute-worker.node.mjs", import.meta.url),
  });

serveEngine({ createHost, openPaths }, nodeEndpoint(parentPort!));
