import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteReader } from "../../src/gguf/byte-reader.ts";
import { blobSource, bytesSource, rangeSource, streamSource } from "../../src/gguf/local-sources.ts";
import { type ByteSource, hubUrl, type ModelInput, openSources, shardUrls } from "../../src/gguf/source.ts";

const BYTES = Uint8Array.from({ length: 9_000_000 }, (_, i) => (i * 7 + (i >> 8)) & 255);

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) {
    assert.ok(chunk.byteLength > 0);
    parts.push(chunk.slice());
  }
  return new Uint8Array(Buffer.concat(parts));
}

/** A stream of `BYTES` that counts what was pulled and notes its cancellation. */
function countingStream(chunkBytes: number) {
  const seen = { pulled: 0, cancelled: undefined as unknown, isCancelled: false };
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (seen.pulled >= BYTES.byteLength) return controller.close();
      controller.enqueue(BYTES.subarray(seen.pulled, seen.pulled + chunkBytes));
      seen.pulled += chunkBytes;
    },
    cancel(reason) {
      seen.cancelled = reason;
      seen.isCancelled = true;
    },
  });
  return { stream, seen };
}

const readAt = (offset: number, length: number) => Promise.resolve(BYTES.slice(offset, offset + length));

const SOURCES: { name: string; source: () => ByteSource; isRestartable: boolean }[] = [
  { name: "ArrayBuffer", source: () => openSources(BYTES.slice().buffer)[0]!, isRestartable: true },
  { name: "Uint8Array", source: () => bytesSource(BYTES, "bytes"), isRestartable: true },
  { name: "Blob", source: () => blobSource(new Blob([BYTES])), isRestartable: true },
  {
    name: "File",
    source: () => openSources(new File([BYTES], "model.gguf"))[0]!,
    isRestartable: true,
  },
  {
    name: "random-access file",
    source: () => rangeSource({ name: "f", size: BYTES.byteLength, read: readAt }),
    isRestartable: true,
  },
  {
    name: "ReadableStream",
    source: () => streamSource(countingStream(100_000).stream),
    isRestartable: false,
  },
];

for (const { name, source, isRestartable } of SOURCES) {
  test(`${name}: the bytes, from the start and from the middle`, async () => {
    const opened = source();
    assert.equal(opened.isRestartable, isRestartable);
    assert.deepEqual(await collect(opened.open(0)), BYTES);
    if (isRestartable) {
      assert.equal(opened.size, BYTES.byteLength);
      assert.deepEqual(await collect(opened.open(8_999_990)), BYTES.slice(8_999_990));
      assert.deepEqual(await collect(opened.open(BYTES.byteLength)), new Uint8Array(0));
    } else {
      await assert.rejects(async () => collect(opened.open(0)), {
        code: "source-failed",
        message: /can be read once/,
      });
    }
  });

  test(`${name}: aborted before and while reading`, async () => {
    const reason = new Error("enough");
    await assert.rejects(collect(source().open(0, AbortSignal.abort(reason))), (error) => error === reason);
    const controller = new AbortController();
    await assert.rejects(
      async () => {
        for await (const _ of source().open(0, controller.signal)) controller.abort(reason);
      },
      (error) => error === reason,
    );
  });
}

test("leaving the loop cancels the stream", async () => {
  const { stream, seen } = countingStream(1000);
  for await (const _ of streamSource(stream).open(0)) break;
  assert.ok(seen.isCancelled && seen.pulled <= 3000, JSON.stringify(seen));
  assert.equal(stream.locked, false);
});

test("aborting cancels the stream with the reason, even while it is silent", async () => {
  const reason = new Error("enough");
  let cancelledWith: unknown;
  const silent = new ReadableStream<Uint8Array>({
    cancel(why) {
      cancelledWith = why;
    },
  });
  const controller = new AbortController();
  const reading = collect(streamSource(silent).open(0, controller.signal));
  setTimeout(() => controller.abort(reason), 5);
  await assert.rejects(reading, (error) => error === reason);
  assert.equal(cancelledWith, reason);
});

test("a stream that fails names the byte and keeps the cause", async () => {
  const cause = new TypeError("network error");
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (controller.desiredSize === 1) controller.enqueue(new Uint8Array(10));
      controller.error(cause);
    },
  });
  await assert.rejects(collect(streamSource(stream).open(0)), (error: unknown) => {
    assert.ok(error instanceof Error && error.cause === cause);
    assert.match(error.message, /ReadableStream: reading failed at byte \d+: network error/);
    return true;
  });
});

test("a stream of something else, and a locked stream", async () => {
  const stream = new ReadableStream({
    start(controller) {
      controller.enqueue("text");
      controller.close();
    },
  });
  await assert.rejects(collect(streamSource(stream).open(0)), {
    code: "invalid-option",
    message: /gave a string; its chunks must be Uint8Array/,
  });
  const locked = new ReadableStream<Uint8Array>();
  locked.getReader();
  assert.throws(() => streamSource(locked), { code: "invalid-option", message: /locked/ });
});

test("a random-access file that fails or reads short", async () => {
  const cause = new Error("EIO");
  const failing = rangeSource({ name: "disk", size: 10, read: () => Promise.reject(cause) });
  await assert.rejects(collect(failing.open(0)), {
    code: "source-failed",
    message: /disk: reading failed at byte 0: EIO/,
    cause,
  });
  const short = rangeSource({ name: "disk", size: 10, read: () => Promise.resolve(new Uint8Array(4)) });
  await assert.rejects(collect(short.open(0)), {
    code: "source-failed",
    message: /asked for 10 bytes at byte 0 and got 4/,
  });
});

test("ByteReader: push-back, skipping and exact lengths across chunk borders", async () => {
  const reader = new ByteReader(streamSource(countingStream(1000).stream));
  const first = (await reader.next())!;
  reader.unread(first.subarray(10));
  assert.equal(reader.position, 10);
  assert.deepEqual(await collect(reader.take(2500, "a tensor")), BYTES.slice(10, 2510));
  await reader.skipTo(8_999_000, "the gap");
  assert.deepEqual(await collect(reader.take(1000, "the rest")), BYTES.slice(8_999_000));
  await assert.rejects(collect(reader.take(1, "blk.0")), {
    code: "invalid-model",
    message: /the file ends at byte 9000000, but blk\.0 reaches to byte 9000001/,
  });
  await reader.close();
});

test("openSources: split URLs, hub files, and what is refused", () => {
  const names = (input: ModelInput) => openSources(input).map((s) => s.name);
  assert.deepEqual(names("https://example.org/m.gguf?sig=secret"), ["https://example.org/m.gguf"]);
  assert.deepEqual(names("https://example.org/a/m-00002-of-00003.gguf?x=1"), [
    "https://example.org/a/m-00001-of-00003.gguf",
    "https://example.org/a/m-00002-of-00003.gguf",
    "https://example.org/a/m-00003-of-00003.gguf",
  ]);
  assert.deepEqual(names({ repo: "owner/name", file: "q4/m 1.gguf" }), [
    "https://huggingface.co/owner/name/resolve/main/q4/m%201.gguf",
  ]);
  assert.deepEqual(names([new File([], "b"), new Blob([])]), ["b", "file 2 of 2"]);
  const [shard] = shardUrls(new URL("https://example.org/m-00001-of-00002.gguf?token=t"));
  assert.equal(shard!.href, "https://example.org/m-00001-of-00002.gguf?token=t");
  assert.equal(
    hubUrl({ repo: "o/n", file: "f.gguf", revision: "refs/pr/1" }).href,
    "https://huggingface.co/o/n/resolve/refs%2Fpr%2F1/f.gguf",
  );

  const refused: [ModelInput | unknown, RegExp][] = [
    ["models/m.gguf", /"models\/m\.gguf" is not a URL/],
    ["ftp://example.org/m.gguf", /the protocol is ftp:/],
    ["https://example.org/m-00001-of-99999.gguf", /split into 99999 files/],
    [{ repo: "name", file: "m.gguf" }, /repo is "name"; it must read "owner\/name"/],
    [{ repo: "o/n", file: "../m.gguf" }, /file is "\.\.\/m\.gguf"/],
    [[], /array of 0 values/],
    [["a"], /array of 1 values/],
    [null, /the model source is null/],
    [7, /the model source is a number/],
    [new Map(), /an object of type Map/],
  ];
  for (const [input, message] of refused) {
    assert.throws(() => openSources(input as ModelInput), { code: "invalid-option", message });
  }
});
