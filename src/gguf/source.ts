/**
 * Where model bytes come from: everything a caller may pass to `loadModel`, turned into byte sources.
 *
 * A source is read front to back. Most can also start in the middle, which is how a broken download resumes
 * and how the files of a split model are revisited; a bare ReadableStream cannot.
 */

import { InlayError } from "../errors.ts";
import { type HttpOptions, httpSource } from "./http-source.ts";
import { blobSource, bytesSource, streamSource } from "./local-sources.ts";

/** One file's bytes. */
export interface ByteSource {
  /** For messages: a URL without its query, a file name, "ArrayBuffer". */
  readonly name: string;
  /** Bytes in all: known from the start, or after the first chunk (HTTP), or never (a bare stream). */
  readonly size: number | undefined;
  /** Whether `open` may be called more than once, and with an offset. */
  readonly isRestartable: boolean;
  /**
   * The bytes from `offset` on, in chunks of any size above zero. Ends at the end of the file; leaving the loop
   * releases the connection. Rejects with `signal.reason` when aborted and with `source-failed` otherwise.
   */
  open(offset: number, signal?: AbortSignal): AsyncIterable<Uint8Array>;
}

/** A file in a Hugging Face repository: `{ repo: "owner/name", file: "model-q4_0.gguf" }`. */
export interface HubFile {
  readonly repo: string;
  readonly file: string;
  /** Branch, tag or commit. @default "main" */
  readonly revision?: string;
}

/** Everything that `loadModel` accepts. An array holds the files of one split model, in any order. */
export type ModelInput =
  | URL
  | string
  | HubFile
  | Blob
  | readonly Blob[]
  | ArrayBuffer
  | Uint8Array
  | ReadableStream<Uint8Array>;

/** `name-00001-of-00003.gguf`: one file of a split model. */
const SHARD_NAME = /-(\d{5})-of-(\d{5})(\.gguf)$/i;

/** More files than any published model has; a name that asks for more is a mistake. */
const MAX_SHARDS = 512;

/**
 * One source per file. Nothing is fetched or read yet. A URL that names one file of a split model
 * (`…-00001-of-00003.gguf`) stands for all of them. Throws `invalid-option` for anything else than a ModelInput.
 */
export function openSources(input: ModelInput, options: HttpOptions = {}): ByteSource[] {
  if (typeof input === "string") return httpSources(parseUrl(input), options);
  if (input instanceof URL) return httpSources(input, options);
  if (input instanceof Blob) return [blobSource(input)];
  if (input instanceof ArrayBuffer) return [bytesSource(new Uint8Array(input), "ArrayBuffer")];
  if (input instanceof Uint8Array) return [bytesSource(input, "Uint8Array")];
  if (input instanceof ReadableStream) return [streamSource(input)];
  if (Array.isArray(input)) return blobSources(input);
  if (isHubFile(input)) return httpSources(hubUrl(input), options);
  throw new InlayError(
    "invalid-option",
    `the model source is ${describe(input)}; pass a URL, { repo, file }, a File or Blob, an array of Blobs, ` +
      "an ArrayBuffer or a ReadableStream",
  );
}

function parseUrl(text: string): URL {
  const base = typeof location === "undefined" ? undefined : location.href;
  try {
    return new URL(text, base);
  } catch (cause) {
    throw new InlayError(
      "invalid-option",
      `the model source ${JSON.stringify(text)} is not a URL`,
      {},
      { cause },
    );
  }
}

function httpSources(url: URL, options: HttpOptions): ByteSource[] {
  if (
    url.protocol !== "http:" &&
    url.protocol !== "https:" &&
    url.protocol !== "blob:" &&
    url.protocol !== "data:"
  ) {
    throw new InlayError(
      "invalid-option",
      `cannot fetch ${url.href}: the protocol is ${url.protocol} and must be http:, https:, blob: or data:`,
    );
  }
  return shardUrls(url).map((shard) => httpSource(shard, options));
}

/** The URLs of all files of a split model, or just `url` when its name has no shard number. */
export function shardUrls(url: URL): URL[] {
  const match = SHARD_NAME.exec(url.pathname);
  if (!match) return [url];
  const [, , total, suffix] = match;
  const count = Number(total);
  if (count < 1 || count > MAX_SHARDS) {
    throw new InlayError(
      "invalid-option",
      `${url.pathname} names a model split into ${count} files; 1 to ${MAX_SHARDS} are possible`,
    );
  }
  const stem = url.pathname.slice(0, match.index);
  return Array.from({ length: count }, (_, i) => {
    const shard = new URL(url);
    shard.pathname = `${stem}-${String(i + 1).padStart(5, "0")}-of-${total}${suffix}`;
    return shard;
  });
}

function blobSources(blobs: readonly Blob[]): ByteSource[] {
  if (blobs.length === 0 || !blobs.every((b) => b instanceof Blob)) {
    throw new InlayError(
      "invalid-option",
      `the model source is an array of ${blobs.length} values; an array must hold the Blobs of one split model`,
    );
  }
  return blobs.map((blob, i) => blobSource(blob, `file ${i + 1} of ${blobs.length}`));
}

function isHubFile(input: unknown): input is HubFile {
  const hub = input as Partial<HubFile> | null;
  return typeof hub === "object" && typeof hub?.repo === "string" && typeof hub.file === "string";
}

/** The address that Hugging Face serves a repository's file from. */
export function hubUrl({ repo, file, revision = "main" }: HubFile): URL {
  if (!/^[\w.-]+\/[\w.-]+$/.test(repo)) {
    throw new InlayError("invalid-option", `repo is ${JSON.stringify(repo)}; it must read "owner/name"`);
  }
  if (file === "" || file.startsWith("/") || file.split("/").includes("..")) {
    throw new InlayError(
      "invalid-option",
      `file is ${JSON.stringify(file)}; it must be a path inside ${repo}`,
    );
  }
  const path = file.split("/").map(encodeURIComponent).join("/");
  return new URL(`https://huggingface.co/${repo}/resolve/${encodeURIComponent(revision)}/${path}`);
}

function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  return typeof value === "object"
    ? `an object of type ${value.constructor?.name ?? "Object"}`
    : `a ${typeof value}`;
}
