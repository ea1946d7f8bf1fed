/** comlink's adapter for Node threads; its declaration file does not carry the .mjs name. */
declare module "comlink/dist/esm/node-adapter.mjs" {
  import type { MessagePort, Worker } from "node:worker_threads";
  import type { Endpoint } from "comlink";

  export default function nodeEndpoint(port: Worker | MessagePort): Endpoint;
}
