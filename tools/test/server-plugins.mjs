// What the browser tests' web server does beyond serving files: TypeScript, shaders, shared files, isolation.

import fs from "node:fs";
import path from "node:path";
import { jsonModule, transpile } from "../build-ts.mjs";
import { textModule } from "../build-wgsl.mjs";
import { ROOT } from "../setup/shell.mjs";

/** Serves .ts as JavaScript. */
export const typescriptPlugin = {
  name: "typescript",
  resolveMimeType: ({ path: file }) => (file.endsWith(".ts") ? "js" : undefined),
  transform({ path: file, body }) {
    if (!file.endsWith(".ts")) return;
    try {
      return transpile(body, path.join(ROOT, file), { inlineMap: true }).code;
    } catch (error) {
      // Thrown where it can be read: in the test that imports the file.
      return `throw new SyntaxError(${JSON.stringify(error.message)});`;
    }
  },
};

/** Serves .wgsl as modules that export the text; comments stay, so that line numbers in errors are the file's. */
export const wgslPlugin = {
  name: "wgsl",
  resolveMimeType: ({ path: file }) => (file.endsWith(".wgsl") ? "js" : undefined),
  transform({ path: file, body }) {
    if (file.endsWith(".wgsl")) return textModule(body);
  },
};

/** Serves the JSON of the sources as modules; other JSON stays data. */
const isSourceJson = (file) => file.startsWith("/src/") && file.endsWith(".json");
export const jsonPlugin = {
  name: "json",
  resolveMimeType: ({ path: file }) => (isSourceJson(file) ? "js" : undefined),
  transform({ path: file, body }) {
    if (isSourceJson(file)) return jsonModule(body);
  },
};

/** Makes pages cross-origin isolated, so that they may share memory between threads. */
export async function isolate(context, next) {
  context.set("Cross-Origin-Opener-Policy", "same-origin");
  context.set("Cross-Origin-Embedder-Policy", "require-corp");
  await next();
}

/** The folder of models and texts that the maintainers' machines have beside the checkout. */
const SHARED = path.resolve(ROOT, "../shared");

function parseRange(header, byteLength) {
  const match = header?.match(/^bytes=(\d+)-(\d*)$/);
  if (!match) return undefined;
  const start = Number(match[1]);
  const end = Math.min(match[2] === "" ? byteLength - 1 : Number(match[2]), byteLength - 1);
  return start <= end ? { start, end } : undefined;
}

/** Serves that folder under /shared/, ranges included. */
export async function serveShared(context, next) {
  if (!context.path.startsWith("/shared/")) return next();
  const file = path.join(SHARED, decodeURIComponent(context.path.slice("/shared/".length)));
  if (!file.startsWith(SHARED + path.sep) || !fs.existsSync(file) || !fs.statSync(file).isFile()) {
    context.status = 404;
    return;
  }
  const { size } = fs.statSync(file);
  context.type = "application/octet-stream";
  context.set("Accept-Ranges", "bytes");
  const range = parseRange(context.get("Range"), size);
  if (range) {
    context.status = 206;
    context.set("Content-Range", `bytes ${range.start}-${range.end}/${size}`);
    context.length = range.end - range.start + 1;
  } else {
    context.status = 200;
    context.length = size;
  }
  if (context.method === "GET") context.body = fs.createReadStream(file, range);
}
