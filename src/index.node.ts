/**
 * Inlay: language models on the user's own device. The entry for Node; src/index.ts is the browsers' twin.
 */

import "./symbols.ts";

export { loadModel } from "./api/load-model.node.ts";
export * from "./public-names.ts";
