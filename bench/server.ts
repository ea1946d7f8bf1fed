/**
 * The benchmarks' web server: one cross-origin isolated page and what it loads.
 *
 *   /                        an empty page that runs /page.js
 *   /page.js /kernel-worker.js   bench/page/*.ts, bundled when they are first asked for
 *   /dist/…                  the built SDK
 *   /plain/…                 its WASM without relaxed SIMD, under the names of the relaxed builds
 *   /wllama-2/… /wllama-3/…  the rivals' packages
 *   /models/…                generated models
 *   /shared/…                the maintainers' texts and vocabularies, where there are any
 */

import fs from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { nodeResolve } from "@rollup/plugin-node-resolve";
import { rollup } from "rollup";
import { transpile } from "../tools/build-ts.mjs";
import { ROOT } from "../tools/setup/shell.mjs";
import { MODELS } from "./models.ts";

const FOLDERS: Readonly<Record<string, string>> = {
  dist: path.join(ROOT, "dist"),
  plain: path.join(ROOT, "dist"),
  "wllama-2": path.join(ROOT, "node_modules/wllama-2/esm"),
  "wllama-3": path.join(ROOT, "node_modules/@wllama/wllama/esm"),
  models: MODELS,
  shared: path.resolve(ROOT, "../shared"),
};

/** Bundles of bench/page by address. */
const BUNDLES: Readonly<Record<string, string>> = {
  "/page.js": "bench/page/page.ts",
  "/kernel-worker.js": "bench/page/kernel-worker.ts",
};

const MIME_TYPES: Readonly<Record<string, string>> = {
  ".js": "text/javascript; charset=utf-8",
  ".wasm": "application/wasm",
  ".json": "application/json",
};

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
};

const PAGE =
  '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Inlay, benchmarks</title>' +
  '<link rel="icon" href="data:,"><script type="module" src="/page.js"></script></head><body></body></html>';

const typescript = {
  name: "typescript",
  transform: (source: string, id: string) => (id.endsWith(".ts") ? transpile(source, id) : null),
};

/** A module of bench/page and what it imports, as one script. */
async function bundle(input: string): Promise<string> {
  const build = await rollup({
    input: path.join(ROOT, input),
    plugins: [typescript, nodeResolve({ browser: true })],
    onwarn(warning) {
      throw new Error(warning.message);
    },
  });
  const { output } = await build.generate({ format: "es", inlineDynamicImports: true });
  await build.close();
  return output[0].code;
}

/** The file of an address; undefined when there is none. */
function findFile(pathname: string): string | undefined {
  const [top = "", ...rest] = pathname.slice(1).split("/").map(decodeURIComponent);
  const folder = FOLDERS[top];
  if (folder === undefined || rest.some((part) => part === "" || part.startsWith("."))) return undefined;
  let name = path.join(...rest);
  if (top === "plain") name = name.replace("inlay-relaxed", "inlay-simd");
  const file = path.join(folder, name);
  return fs.existsSync(file) && fs.statSync(file).isFile() ? file : undefined;
}

async function answer(pathname: string, response: http.ServerResponse): Promise<void> {
  const send = (status: number, type: string, body: string) =>
    response.writeHead(status, { ...HEADERS, "Content-Type": type }).end(body);
  if (pathname === "/") return void send(200, "text/html; charset=utf-8", PAGE);
  const input = BUNDLES[pathname];
  if (input !== undefined) return void send(200, MIME_TYPES[".js"]!, await bundle(input));
  const file = findFile(pathname);
  if (file === undefined) return void send(404, "text/plain", `${pathname} is not there\n`);
  response.writeHead(200, {
    ...HEADERS,
    "Content-Type": MIME_TYPES[path.extname(file)] ?? "application/octet-stream",
    "Content-Length": fs.statSync(file).size,
  });
  await pipeline(fs.createReadStream(file), response);
}

export interface BenchServer {
  /** "http://localhost:12345", without a slash. */
  readonly url: string;
  close(): Promise<void>;
}

/** Starts the server on a free port of this machine. */
export async function startServer(): Promise<BenchServer> {
  const server = http.createServer((request, response) => {
    const [pathname = "/"] = (request.url ?? "/").split("?");
    answer(pathname, response).catch((error: unknown) => {
      // The browser shows the text as the module's error; a broken-off transfer is one by itself.
      if (response.headersSent) response.destroy();
      else response.writeHead(500, HEADERS).end(String(error));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "localhost", resolve));
  return {
    url: `http://localhost:${(server.address() as AddressInfo).port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
