/** Byte sources that need no network: memory, Blobs and Files, random-access files, one-shot streams. */

import { InlayError } from "../errors.ts";
import { abortable } from "./abort.ts";
import type { ByteSource } from "./source.ts";

/** Bytes handed over at a time where we choose: small enough for smooth progress, large enough to be cheap. */
const CHUNK_BYTES = 4 << 20;

/** Bytes already in memory; chunks are views, nothing is copied. */
export function bytesSource(bytes: Uint8Array, name: string): ByteSource {
  return {
    name,
    size: bytes.byteLength,
    isRestartable: true,
    async *open(offset, signal) {
      for (let at = offset; at < bytes.byteLength; at += CHUNK_BYTES) {
        signal?.throwIfAborted();
        yield bytes.subarray(at, at + CHUNK_BYTES);
      }
    },
  };
}

/** A Blob or File, read as a stream. `fallbackName` is used for a Blob, which has no name. */
export function blobSource(blob: Blob, fallbackName = "Blob"): ByteSource {
  const name = (blob as Partial<File>).name ?? fallbackName;
  return {
    name,
    size: blob.size,
    isRestartable: true,
    open: (offset, signal) => streamChunks(blob.slice(offset).stream(), name, signal),
  };
}

/** A file that can be read anywhere, such as one opened by Node. */
export interface RangeReader {
  readonly name: string;
  readonly size: number;
  /** Exactly `length` bytes from `offset`, which lie inside the file. The result is not reused by the reader. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** Wraps a random-access file. What `read` throws becomes the cause of a `source-failed`. */
export function rangeSource(file: RangeReader): ByteSource {
  return {
    name: file.name,
    size: file.size,
    isRestartable: true,
    async *open(offset, signal) {
      for (let at = offset; at < file.size; at += CHUNK_BYTES) {
        const length = Math.min(CHUNK_BYTES, file.size - at);
        signal?.throwIfAborted();
        const bytes = await abortable(file.read(at, length), signal).catch((cause: unknown) => {
          throw sourceFailure(file.name, at, cause, signal);
        });
        if (bytes.byteLength !== length) {
          throw new InlayError(
            "source-failed",
            `${file.name}: asked for ${length} bytes at byte ${at} and got ${bytes.byteLength}; did the file change?`,
          );
        }
        yield bytes;
      }
    },
  };
}

/** A stream that can be read once, from its start. It is cancelled when reading stops early. */
export function streamSource(stream: ReadableStream<Uint8Array>): ByteSource {
  if (stream.locked) {
    throw new InlayError(
      "invalid-option",
      "the model source is a stream that someone else is reading (locked)",
    );
  }
  let isOpened = false;
  return {
    name: "ReadableStream",
    size: undefined,
    isRestartable: false,
    open(offset, signal) {
      if (isOpened || offset !== 0) {
        throw new InlayError(
          "source-failed",
          "a ReadableStream can be read once, from its start; pass a File, a Blob or a URL to read a model again",
        );
      }
      isOpened = true;
      return streamChunks(stream, "ReadableStream", signal);
    },
  };
}

/** The chunks of a stream. Leaving the loop, failing or aborting cancels the stream. */
export async function* streamChunks(
  stream: ReadableStream<Uint8Array>,
  name: string,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader();
  let nRead = 0;
  let isDone = false;
  try {
    for (;;) {
      signal?.throwIfAborted();
      const { done, value } = await abortable(reader.read(), signal).catch((cause: unknown) => {
        throw sourceFailure(name, nRead, cause, signal);
      });
      if (done) {
        isDone = true;
        return;
      }
      if (!(value instanceof Uint8Array)) {
        throw new InlayError(
          "invalid-option",
          `${name} gave a ${typeof value}; its chunks must be Uint8Array`,
        );
      }
      nRead += value.byteLength;
      if (value.byteLength > 0) yield value;
    }
  } finally {
    // A failed stream rejects cancel() with the error that is already on its way to the caller.
    if (!isDone) reader.cancel(signal?.reason).catch(() => {});
    reader.releaseLock();
  }
}

/** What to throw when reading `name` failed: the abort reason, our own error unchanged, or `source-failed`. */
export function sourceFailure(
  name: string,
  at: number,
  cause: unknown,
  signal: AbortSignal | undefined,
): unknown {
  if (signal?.aborted) return signal.reason;
  if (cause instanceof InlayError) return cause;
  const why = cause instanceof Error ? cause.message : String(cause);
  return new InlayError(
    "source-failed",
    `${name}: reading failed at byte ${at}: ${why}`,
    { byte: at },
    { cause },
  );
}
