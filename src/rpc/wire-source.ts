/** Model sources across the worker boundary: what a caller passed, as data that can be cloned or transferred. */

import { InlayError } from "../errors.ts";
import { streamSource } from "../gguf/local-sources.ts";
import { type ByteSource, type HubFile, type ModelInput, openSources } from "../gguf/source.ts";
import type { WireSource } from "./engine-api.ts";

/** The source and what must be transferred with it. Throws `invalid-option` for what is no source. */
export function toWireSource(input: ModelInput): { wire: WireSource; transfer: Transferable[] } {
  // Relative URLs mean the page's address, which the worker does not share.
  if (typeof input === "string" || input instanceof URL) return cloned({ kind: "url", url: absolute(input) });
  if (input instanceof Blob) return cloned({ kind: "blobs", blobs: [input] });
  if (Array.isArray(input)) return cloned({ kind: "blobs", blobs: input as readonly Blob[] });
  if (input instanceof ArrayBuffer)
    return pumped(sliced(new Uint8Array(input)), "ArrayBuffer", input.byteLength);
  if (input instanceof Uint8Array) return pumped(sliced(input), "Uint8Array", input.byteLength);
  if (input instanceof ReadableStream) return streamed(input);
  openSources(input); // throws unless it is { repo, file }
  const { repo, file, revision } = input as HubFile;
  return cloned({ kind: "hub", file: revision === undefined ? { repo, file } : { repo, file, revision } });
}

/** The byte sources in the worker. `openPaths` exists in Node. */
export function fromWireSource(
  wire: WireSource,
  openPaths?: (paths: readonly string[]) => ByteSource[],
): ByteSource[] {
  switch (wire.kind) {
    case "url":
      return openSources(wire.url);
    case "hub":
      return openSources(wire.file);
    case "blobs":
      return openSources(wire.blobs);
    case "stream":
      return openSources(wire.stream);
    case "port":
      return [{ ...streamSource(streamFromPort(wire.port)), name: wire.name, size: wire.size }];
    case "paths":
      if (!openPaths)
        throw new InlayError("invalid-option", "file paths can be opened in Node only; pass a File");
      return openPaths(wire.paths);
  }
}

function cloned(wire: WireSource): { wire: WireSource; transfer: Transferable[] } {
  return { wire, transfer: [] };
}

function absolute(url: string | URL): string {
  try {
    return new URL(url, typeof location === "undefined" ? undefined : location.href).href;
  } catch (cause) {
    throw new InlayError(
      "invalid-option",
      `the model source ${JSON.stringify(url)} is not a URL`,
      {},
      { cause },
    );
  }
}

/** Transfers a stream, or pumps it over a port where streams cannot be transferred (WebKit). */
function streamed(stream: ReadableStream<Uint8Array>): { wire: WireSource; transfer: Transferable[] } {
  if (canTransferStreams()) return { wire: { kind: "stream", stream }, transfer: [stream] };
  return pumped(stream, "ReadableStream", undefined);
}

function pumped(
  stream: ReadableStream<Uint8Array>,
  name: string,
  size: number | undefined,
): { wire: WireSource; transfer: Transferable[] } {
  const { port1, port2 } = new MessageChannel();
  pumpToPort(stream, port1);
  return { wire: { kind: "port", port: port2, name, size }, transfer: [port2] };
}

const SLICE_BYTES = 4 << 20;

/** Bytes in copied slices: the caller's buffer stays usable, and the worker never holds a second copy of the whole. */
function sliced(bytes: Uint8Array): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream<Uint8Array>({
    pull(controller) {
      if (at >= bytes.byteLength) return controller.close();
      controller.enqueue(bytes.slice(at, at + SLICE_BYTES));
      at += SLICE_BYTES;
    },
  });
}

function canTransferStreams(): boolean {
  const { port1, port2 } = new MessageChannel();
  const probe = new ReadableStream();
  try {
    port1.postMessage(probe, [probe]);
    return true;
  } catch {
    return false;
  } finally {
    port1.close();
    port2.close();
  }
}

/** One chunk per request from the other side; null ends the stream. */
type FromPort =
  | { readonly chunk: Uint8Array<ArrayBuffer> }
  | { readonly end: true }
  | { readonly error: string };

function pumpToPort(stream: ReadableStream<Uint8Array>, port: MessagePort): void {
  const reader = stream.getReader();
  port.onmessage = async ({ data }: MessageEvent<"pull" | "cancel">) => {
    if (data === "cancel") {
      port.close();
      await reader.cancel();
      return;
    }
    let answer: FromPort;
    try {
      const { done, value } = await reader.read();
      answer = done ? { end: true } : { chunk: value as Uint8Array<ArrayBuffer> };
    } catch (error) {
      answer = { error: String(error) };
    }
    port.postMessage(answer);
  };
}

function streamFromPort(port: MessagePort): ReadableStream<Uint8Array> {
  // A chunk may still be under way when the stream is cancelled.
  let isCancelled = false;
  return new ReadableStream<Uint8Array>({
    pull: (controller) =>
      new Promise<void>((resolve) => {
        port.onmessage = ({ data }: MessageEvent<FromPort>) => {
          if (isCancelled) return;
          if ("chunk" in data) controller.enqueue(data.chunk);
          else if ("end" in data) controller.close();
          else controller.error(new Error(data.error));
          resolve();
        };
        port.postMessage("pull");
      }),
    cancel() {
      isCancelled = true;
      port.postMessage("cancel");
    },
  });
}
