// The demo's web server: the examples, the built SDK, the sample model, and nothing else.
//
//   /examples/…          examples/; TypeScript is served as JavaScript, `from "inlay"` finds the built bundle
//   /dist/…              dist/
//   /sample/sample.json  { name, about, document, opening, file, byteLength }
//   /sample/model.gguf   the sample model, ranges included
//
// Pages are cross-origin isolated, so that the engine may use threads, and have the strict content security policy
// that the README recommends: what the examples do works under it.

import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { ROOT, SetupError } from "../setup/shell.mjs";

const FOLDERS = { examples: path.join(ROOT, "examples"), dist: path.join(ROOT, "dist") };

const HOME = "/examples/chat/";

const MIME_TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".ts": "text/javascript; charset=utf-8",
  ".json": "application/json; charset=utf-8",
  ".map": "application/json; charset=utf-8",
  ".md": "text/markdown; charset=utf-8",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".gguf": "application/octet-stream",
};

const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  // Models may come from anywhere.
  "connect-src 'self' https: http:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'self'",
].join("; ");

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy": CONTENT_SECURITY_POLICY,
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-cache",
};

/** An answer other than a file: a status with a line of text. */
class Refusal extends Error {
  constructor(status, message, headers = {}) {
    super(message);
    Object.assign(this, { status, headers });
  }
}

/** The file below `folder` at `parts`, links resolved. Throws a Refusal when there is none or it lies outside. */
function fileIn(folder, parts) {
  const isStrange = (part) => part === "" || part.startsWith(".") || /[\\/:\0]/.test(part);
  let file;
  try {
    if (!parts.some(isStrange)) file = fs.realpathSync(path.join(folder, ...parts));
  } catch {
    // There is no such file.
  }
  const isInside = file === folder || file?.startsWith(folder + path.sep);
  if (!isInside) throw new Refusal(404, "There is no such file.");
  return file;
}

/** The file that a path of a URL stands for, or a Refusal. */
function findFile(pathname, sample) {
  let parts;
  try {
    // Decoded part by part: an encoded slash is no separator.
    parts = pathname.slice(1).split("/").map(decodeURIComponent);
  } catch {
    throw new Refusal(400, "The address is not encoded properly.");
  }
  if (pathname === "/sample/model.gguf") return sample.path;
  if (pathname === "/") throw new Refusal(302, `See ${HOME}`, { Location: HOME });
  const [top, ...rest] = parts;
  const folder = Object.hasOwn(FOLDERS, top) ? FOLDERS[top] : undefined;
  if (folder === undefined) throw new Refusal(404, "There is no such file.");
  const isFolder = rest.at(-1) === "";
  const file = fileIn(folder, isFolder ? [...rest.slice(0, -1), "index.html"] : rest);
  const stat = fs.statSync(file);
  if (stat.isDirectory()) throw new Refusal(301, "This is a folder.", { Location: `${pathname}/` });
  const isKnown = path.extname(file) in MIME_TYPES && !file.endsWith(".d.ts");
  if (!stat.isFile() || !isKnown) throw new Refusal(404, "There is no such file.");
  return file;
}

/** TypeScript as the browser takes it. What a bundler does with the name "inlay", the server does here. */
async function compile(file) {
  const { transpile } = await import("../build-ts.mjs");
  const { code } = transpile(await fs.promises.readFile(file, "utf8"), file);
  return code
    .replace(/\bfrom "inlay"/g, 'from "/dist/inlay.js"')
    .replace(/\n\/\/# sourceMappingURL=.*\s*$/, "\n");
}

/** The bytes that a Range header asks for; undefined: all of them. Throws a Refusal for a range outside the file. */
function parseRange(header, size) {
  const [, first = "", last = ""] = /^bytes=(\d*)-(\d*)$/.exec(header ?? "") ?? [];
  if (first === "" && last === "") return undefined;
  const start = first === "" ? Math.max(0, size - Number(last)) : Number(first);
  const end = first === "" || last === "" ? size - 1 : Math.min(Number(last), size - 1);
  if (start <= end) return { start, end };
  throw new Refusal(416, "The file has no such bytes.", { "Content-Range": `bytes */${size}` });
}

function sendText(request, response, status, headers, text) {
  const body = Buffer.from(text);
  response.writeHead(status, { ...HEADERS, "Content-Length": body.length, ...headers });
  response.end(request.method === "HEAD" ? undefined : body);
}

async function sendFile(request, response, file) {
  const { size, mtimeMs } = fs.statSync(file);
  const etag = `"${size.toString(36)}-${Math.floor(mtimeMs).toString(36)}"`;
  // A range of another version of the file is of no use: then the whole is sent.
  const isSameVersion = [undefined, etag].includes(request.headers["if-range"]);
  const range = isSameVersion ? parseRange(request.headers.range, size) : undefined;
  const { start, end } = range ?? { start: 0, end: size - 1 };
  response.writeHead(range ? 206 : 200, {
    ...HEADERS,
    "Content-Type": MIME_TYPES[path.extname(file)],
    "Content-Length": end - start + 1,
    "Accept-Ranges": "bytes",
    ETag: etag,
    ...(range && { "Content-Range": `bytes ${start}-${end}/${size}` }),
  });
  if (request.method === "HEAD" || size === 0) response.end();
  else await pipeline(fs.createReadStream(file, { start, end }), response);
}

async function answer(request, response, sample) {
  if (request.method !== "GET" && request.method !== "HEAD")
    throw new Refusal(405, "Only GET and HEAD are answered.", { Allow: "GET, HEAD" });
  const [pathname] = request.url.split("?");
  if (pathname === "/sample/sample.json") {
    const { name, about, document, opening } = sample;
    const byteLength = fs.statSync(sample.path).size;
    const json = JSON.stringify({ name, about, document, opening, file: "model.gguf", byteLength });
    return sendText(request, response, 200, { "Content-Type": MIME_TYPES[".json"] }, json);
  }
  const file = findFile(pathname, sample);
  if (!file.endsWith(".ts")) return sendFile(request, response, file);
  sendText(request, response, 200, { "Content-Type": MIME_TYPES[".ts"] }, await compile(file));
}

/** Answers one request; whatever goes wrong is an answer too. */
async function handle(request, response, sample) {
  try {
    await answer(request, response, sample);
  } catch (error) {
    // The page left while a file was on its way.
    if (response.headersSent) return void response.destroy();
    const isRefusal = error instanceof Refusal;
    const headers = { "Content-Type": "text/plain; charset=utf-8", ...(isRefusal && error.headers) };
    sendText(request, response, isRefusal ? error.status : 500, headers, `${error.message}\n`);
  }
}

const MAX_TRIES = 100;

/** Listens on `port` of this machine only; resolves to false when the port is taken. */
function listen(server, port) {
  return new Promise((resolve, reject) => {
    server.once("error", (error) => (error.code === "EADDRINUSE" ? resolve(false) : reject(error)));
    server.listen(port, "localhost", () => resolve(true));
  });
}

/** Starts the server on the first free port from `firstPort` on; 0 takes any. Returns { url, close() }. */
export async function startServer(sample, firstPort) {
  for (let port = firstPort; port < firstPort + MAX_TRIES; port++) {
    const server = http.createServer((request, response) => void handle(request, response, sample));
    if (!(await listen(server, port))) continue;
    const close = () =>
      new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      });
    return { url: `http://localhost:${server.address().port}`, close };
  }
  throw new SetupError(`ports ${firstPort} to ${firstPort + MAX_TRIES - 1} are all taken; try --port N`);
}
