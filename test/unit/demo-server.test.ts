// The demo's web server: types, isolation, ranges, and nothing outside its folders.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { startServer } from "../../tools/demo/server.mjs";

const MODEL = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);

let folder: string;
let server: Awaited<ReturnType<typeof startServer>>;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "inlay-demo-"));
  const path = join(folder, "a.gguf");
  writeFileSync(path, MODEL);
  server = await startServer({ path, name: "a", about: "b", document: "d", opening: "c" }, 18_080);
});

after(async () => {
  await server.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Buffer;
}

/** A request whose path is sent as it stands; `fetch` would tidy it up. */
function request(path: string, headers: Record<string, string> = {}, method = "GET"): Promise<Answer> {
  const { port } = new URL(server.url);
  return new Promise((resolve, reject) => {
    const sent = http.request(
      { host: "localhost", port, path, method, headers, agent: false },
      (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("end", () =>
          resolve({ status: response.statusCode!, headers: response.headers, body: Buffer.concat(chunks) }),
        );
      },
    );
    sent.on("error", reject).end();
  });
}

const FILES = [
  { path: "/examples/chat/", type: "text/html", holds: "<h1>Inlay chat</h1>" },
  { path: "/examples/chat/index.html?a=b", type: "text/html", holds: "<h1>Inlay chat</h1>" },
  { path: "/examples/chat/chat.css", type: "text/css", holds: "#log" },
  { path: "/examples/chat/chat.ts", type: "text/javascript", holds: 'from "/dist/inlay.js"' },
  { path: "/examples/shared/page.css", type: "text/css", holds: ":root" },
  { path: "/examples/shared/icon.svg", type: "image/svg+xml", holds: "<title>Inlay</title>" },
  { path: "/examples/minimal/", type: "text/html", holds: "minimal.ts" },
  { path: "/sample/sample.json", type: "application/json", holds: '"byteLength":1000' },
];

for (const { path, type, holds } of FILES)
  test(`serves ${path}`, async () => {
    const { status, headers, body } = await request(path);
    assert.equal(status, 200);
    assert.ok(headers["content-type"]!.startsWith(type), headers["content-type"]);
    assert.ok(body.toString().includes(holds), body.toString());
    assert.equal(headers["cross-origin-opener-policy"], "same-origin");
    assert.equal(headers["cross-origin-embedder-policy"], "require-corp");
    assert.match(headers["content-security-policy"] as string, /script-src 'self' 'wasm-unsafe-eval';/);
  });

test("TypeScript is served without its types", async () => {
  const { body } = await request("/examples/shared/model-source.ts");
  assert.doesNotMatch(body.toString(), /interface|readonly|sourceMappingURL/);
});

test("leads to the chat, and from a folder's name to the folder", async () => {
  for (const [path, location] of [
    ["/", "/examples/chat/"],
    ["/examples/chat", "/examples/chat/"],
  ] as const) {
    const { status, headers } = await request(path);
    assert.ok(status === 301 || status === 302, `${path}: ${status}`);
    assert.equal(headers.location, location);
  }
});

const REFUSED = [
  "/package.json",
  "/src/index.ts",
  "/examples/../package.json",
  "/examples/%2e%2e/package.json",
  "/examples/..%2fpackage.json",
  "/examples/chat/..%5c..%5cpackage.json",
  "/examples//etc/passwd",
  "//etc/passwd",
  "/dist/../src/index.ts",
  "/dist/types/index.d.ts",
  "/examples/chat/index.html%00.css",
  "/examples/.hidden",
  "/sample/other.gguf",
  "/sample/",
  "/constructor/",
  "/examples/none/",
];

for (const path of REFUSED)
  test(`refuses ${path}`, async () => assert.equal((await request(path)).status, 404));

test("refuses what is not encoded properly, and other methods", async () => {
  assert.equal((await request("/examples/%zz")).status, 400);
  const { status, headers } = await request("/examples/chat/", {}, "POST");
  assert.deepEqual([status, headers.allow], [405, "GET, HEAD"]);
});

const RANGES = [
  { range: "bytes=0-0", from: 0, to: 1 },
  { range: "bytes=10-19", from: 10, to: 20 },
  { range: "bytes=990-", from: 990, to: 1000 },
  { range: "bytes=990-5000", from: 990, to: 1000 },
  { range: "bytes=-7", from: 993, to: 1000 },
];

for (const { range, from, to } of RANGES)
  test(`serves the model's ${range}`, async () => {
    const { status, headers, body } = await request("/sample/model.gguf", { Range: range });
    assert.equal(status, 206);
    assert.equal(headers["content-range"], `bytes ${from}-${to - 1}/1000`);
    assert.equal(headers["content-length"], String(to - from));
    assert.deepEqual(body, Buffer.from(MODEL.subarray(from, to)));
  });

test("the whole model: without a range, with one that is not understood, and of another version", async () => {
  const requests: Record<string, string>[] = [
    {},
    { Range: "lines=1-2" },
    { Range: "bytes=0-9", "If-Range": '"other"' },
  ];
  for (const headers of requests) {
    const { status, body } = await request("/sample/model.gguf", headers);
    assert.equal(status, 200);
    assert.deepEqual(body, Buffer.from(MODEL));
  }
});

test("a range of the same version continues it", async () => {
  const { headers } = await request("/sample/model.gguf", {}, "HEAD");
  assert.equal(headers["content-length"], "1000");
  const later = await request("/sample/model.gguf", { Range: "bytes=500-", "If-Range": headers.etag! });
  assert.deepEqual([later.status, later.body.length], [206, 500]);
});

test("a range past the end is refused with the size", async () => {
  const { status, headers } = await request("/sample/model.gguf", { Range: "bytes=1000-" });
  assert.deepEqual([status, headers["content-range"]], [416, "bytes */1000"]);
});

test("takes the next port when one is taken", async () => {
  const { port } = new URL(server.url);
  const path = join(folder, "a.gguf");
  const other = await startServer({ path, name: "", about: "", document: "", opening: "" }, Number(port));
  assert.ok(Number(new URL(other.url).port) > Number(port));
  await other.close();
});
