/** Entry of the engine's worker in a browser. */

import "../src/symbols.ts";
import { browserHost } from "../src/host/browser.ts";
import { serveEngine } from "../src/rpc/server.ts";

serveEngine({ createHost: browserHost });
