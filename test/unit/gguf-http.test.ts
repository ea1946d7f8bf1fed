/** Downloads from a server on this machine that can be told to misbehave. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { httpSource } from "../../src/gguf/http-source.ts";
import { openModelFile } from "../../src/gguf/model-file.ts";
import { openSources } from "../../src/gguf/source.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";

const BYTES = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 13 + (i >> 7)) & 255);

type Handler = (request: IncomingMessage, response: ServerResponse, nth: number) => void;

let server: Server;
let origin = "";
let handler: Handler;
let requests: IncomingMessage[] = [];

before(async () => {
  server = createServer((request, response) => {
    requests.push(request);
    handler(request, response, requests.length);
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

after(() => {
  server.closeAllConnections();
  server.close();
});

/** Serves `BYTES` with ranges; `headers` are added, and the connection breaks after `breakAfter` bytes. */
function serve(
  request: IncomingMessage,
  response: ServerResponse,
  { headers = {}, breakAfter = Infinity, hasRanges = true }: ServeOptions = {},
): void {
  const range = hasRanges ? /^bytes=(\d+)-$/.exec(request.headers.range ?? "") : null;
  const from = Number(range?.[1] ?? 0);
  const body = BYTES.subarray(from);
  response.writeHead(range ? 206 : 200, {
    "content-length": body.byteLength,
    etag: '"v1"',
    ...(range && { "content-range": `bytes ${from}-${BYTES.byteLength - 1}/${BYTES.byteLength}` }),
    ...headers,
  });
  if (breakAfter >= body.byteLength) response.end(body);
  else response.write(body.subarray(0, breakAfter), () => setTimeout(() => response.destroy(), 20));
}

interface ServeOptions {
  headers?: Record<string, string>;
  breakAfter?: number;
  hasRanges?: boolean;
}

function sourceFor(path: string, behave: Handler) {
  handler = behave;
  requests = [];
  return httpSource(new URL(path, origin), { retryDelayMs: 1, maxRetries: 3 });
}

async function download(source: ReturnType<typeof httpSource>, offset = 0, signal?: AbortSignal) {
  const parts: Uint8Array[] = [];
  for await (const chunk of source.open(offset, signal)) parts.push(chunk);
  return new Uint8Array(Buffer.concat(parts));
}

test("one plain GET", async () => {
  const source = sourceFor("/m.gguf", (request, response) => serve(request, response));
  assert.equal(source.size, undefined);
  assert.deepEqual(await download(source), BYTES);
  assert.equal(source.size, BYTES.byteLength);
  assert.equal(requests.length, 1);
  assert.equal(requests[0]!.headers.range, undefined);
});

test("from the middle, with and without range support", async () => {
  const ranged = sourceFor("/m.gguf", (request, response) => serve(request, response));
  assert.deepEqual(await download(ranged, 123_456), BYTES.slice(123_456));
  assert.equal(ranged.size, BYTES.byteLength);
  const whole = sourceFor("/m.gguf", (request, response) => serve(request, response, { hasRanges: false }));
  assert.deepEqual(await download(whole, 123_456), BYTES.slice(123_456));
});

test("a broken connection is resumed at the byte reached, as often as it makes progress", async () => {
  const source = sourceFor("/m.gguf", (request, response) =>
    serve(request, response, { breakAfter: 40_000 }),
  );
  assert.deepEqual(await download(source), BYTES);
  assert.ok(requests.length >= 8, `${requests.length} requests`);
  assert.match(requests[1]!.headers.range!, /^bytes=\d+-$/);
});

test("a server without ranges sends everything again", async () => {
  const source = sourceFor("/m.gguf", (request, response, nth) =>
    serve(request, response, { hasRanges: false, breakAfter: nth === 1 ? 100_000 : Infinity }),
  );
  assert.deepEqual(await download(source), BYTES);
  assert.equal(requests.length, 2);
});

test("a server that is briefly overloaded while resuming", async () => {
  const source = sourceFor("/m.gguf", (request, response, nth) => {
    if (nth === 2) response.writeHead(503).end();
    else serve(request, response, { breakAfter: nth === 1 ? 100_000 : Infinity });
  });
  assert.deepEqual(await download(source), BYTES);
});

test("without progress it gives up, and says so", async () => {
  const source = sourceFor("/m.gguf", (request, response, nth) => {
    if (nth === 1) serve(request, response, { breakAfter: 100_000 });
    else response.destroy();
  });
  await assert.rejects(download(source), {
    code: "source-failed",
    message: /\/m\.gguf: no connection at byte 100000; 3 attempts to resume failed/,
  });
  assert.equal(requests.length, 1 + 3);
});

for (const { name, headers } of [
  { name: "ETag", headers: { etag: '"v2"' } },
  { name: "Last-Modified", headers: { "last-modified": "Sat, 21 Nov 2026 00:00:00 GMT" } },
]) {
  test(`a file that changed between requests (${name})`, async () => {
    const source = sourceFor("/m.gguf", (request, response, nth) =>
      nth === 1
        ? serve(request, response, {
            breakAfter: 100_000,
            headers: { "last-modified": "Fri, 20 Nov 2026 00:00:00 GMT" },
          })
        : serve(request, response, { headers }),
    );
    await assert.rejects(download(source), {
      code: "source-failed",
      message: /the file changed during the download \((etag|lastModified) was .* load it again/,
    });
  });
}

test("a wrong range in the answer", async () => {
  const source = sourceFor("/m.gguf", (_request, response) => {
    response.writeHead(206, { "content-range": "bytes 0-9/10" }).end(BYTES.subarray(0, 10));
  });
  await assert.rejects(download(source, 5), { message: /asked for bytes 5-, the server sent bytes 0-9\/10/ });
});

for (const { status, message } of [
  { status: 404, message: /127\.0\.0\.1:\d+\/m\.gguf: HTTP 404 Not Found; check the repository/ },
  { status: 401, message: /HTTP 401 Unauthorized; the file needs a login/ },
  { status: 500, message: /HTTP 500 Internal Server Error/ },
]) {
  test(`HTTP ${status}: named at once, without the query`, async () => {
    const source = sourceFor("/m.gguf?token=secret", (_request, response) =>
      response.writeHead(status).end("no"),
    );
    await assert.rejects(
      download(source),
      (error: Error & { code?: string; details?: { status?: number } }) => {
        assert.equal(error.code, "source-failed");
        assert.match(error.message, message);
        assert.doesNotMatch(error.message, /secret/);
        assert.equal(error.details?.status, status);
        return true;
      },
    );
    assert.equal(requests.length, 1);
  });
}

test("no server: a hint about address and CORS, the cause kept", async () => {
  const source = httpSource(new URL("http://127.0.0.1:1/m.gguf"));
  await assert.rejects(download(source), (error: Error) => {
    assert.match(error.message, /the request failed \(.*\); check the address, the connection, .*\(CORS\)/);
    assert.ok(error.cause instanceof Error);
    return true;
  });
});

test("a compressed transfer: its length is not taken for the file's, and it is not resumed", async () => {
  const packed = gzipSync(BYTES);
  const send = (response: ServerResponse) =>
    response.writeHead(200, { "content-encoding": "gzip", "content-length": packed.byteLength });
  const source = sourceFor("/m.gguf", (_request, response) => send(response).end(packed));
  assert.deepEqual(await download(source), BYTES);
  assert.equal(source.size, undefined);
  const broken = sourceFor("/m.gguf", (_request, response) => {
    send(response).write(packed.subarray(0, 1000), () => setTimeout(() => response.destroy(), 20));
  });
  await assert.rejects(download(broken), { code: "source-failed", message: /reading failed at byte \d+/ });
  assert.equal(requests.length, 1);
});

test("aborting ends a silent download with the reason and closes the connection", async () => {
  let closed: Promise<unknown> | undefined;
  const source = sourceFor("/m.gguf", (_request, response) => {
    response.writeHead(200, { "content-length": 1000 }).write(BYTES.subarray(0, 10));
    closed = once(response, "close");
  });
  const controller = new AbortController();
  const reason = new Error("enough");
  setTimeout(() => controller.abort(reason), 30);
  await assert.rejects(download(source, 0, controller.signal), (error) => error === reason);
  await closed;
});

test("aborting while waiting to retry", async () => {
  handler = (request, response) => serve(request, response, { breakAfter: 0 });
  requests = [];
  const source = httpSource(new URL("/m.gguf", origin), { retryDelayMs: 60_000 });
  const controller = new AbortController();
  const reason = new Error("enough");
  setTimeout(() => controller.abort(reason), 100);
  await assert.rejects(download(source, 0, controller.signal), (error) => error === reason);
});

test("leaving the loop closes the connection", async () => {
  let closed: Promise<unknown> | undefined;
  const source = sourceFor("/m.gguf", (_request, response) => {
    response.writeHead(200, { "content-length": 1e9 }).write(BYTES);
    closed = once(response, "close");
  });
  for await (const _ of source.open(0)) break;
  await closed;
});

test("a model over HTTP: header and tensors in one request", async () => {
  const model = tinyGguf("tiny-llama", { type: "Q8_0" });
  handler = (_request, response) =>
    response.writeHead(200, { "content-length": model.byteLength }).end(model);
  requests = [];
  const file = await openModelFile(openSources(`${origin}/m.gguf`));
  assert.equal(file.byteLength, model.byteLength);
  for await (const { tensor, chunks } of file.readTensors()) {
    const parts: Uint8Array[] = [];
    for await (const chunk of chunks) parts.push(chunk);
    const expected = model.subarray(tensor.offset, tensor.offset + tensor.byteLength);
    assert.deepEqual(new Uint8Array(Buffer.concat(parts)), new Uint8Array(expected), tensor.name);
  }
  await file.close();
  assert.equal(requests.length, 1);
});

test("a model that arrives incomplete", async () => {
  const model = tinyGguf("tiny-llama", { type: "Q8_0" });
  handler = (_request, response) => response.writeHead(200).end(model.subarray(0, model.byteLength / 2));
  requests = [];
  const file = await openModelFile(openSources(`${origin}/m.gguf`));
  await assert.rejects(
    async () => {
      for await (const { chunks } of file.readTensors()) for await (const _ of chunks);
    },
    { code: "invalid-model", message: /the file ends at byte \d+, but blk\.\d\.\S+ reaches to byte \d+/ },
  );
  await file.close();
});
