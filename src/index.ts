/**
 * Inlay: language models on the user's own device. The entry for browsers; src/index.node.ts is Node's twin.
 */

import "./symbols.ts";

export { loadModel } from "./api/load-model.browser.ts";
export * from "./public-names.ts";
