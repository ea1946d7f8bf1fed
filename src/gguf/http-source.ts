/**
 * A file behind a URL: one streaming GET, resumed with a Range request where the connection broke.
 *
 * A resumed download must continue the same file. The validators that the first response showed (ETag,
 * Last-Modified, total size) are compared with those of every later one. `If-Range` would let the server do
 * that, but it is not a CORS-safelisted header: across origins it costs a preflight that many file hosts
 * refuse, while a plain `bytes=N-` range and the comparison work everywhere.
 */

import { InlayError } from "../errors.ts";
import { delay } from "./abort.ts";
import { sourceFailure, streamChunks } from "./local-sources.ts";
import type { ByteSource } from "./source.ts";

export interface HttpOptions {
  /** @default globalThis.fetch */
  readonly fetch?: typeof globalThis.fetch;
  /** How often in a row a broken download is resumed without one new byte. @default 4 */
  readonly maxRetries?: number;
  /** Wait before the first retry; doubles with every further one. @default 300 */
  readonly retryDelayMs?: number;
}

/** Statuses that pass by themselves: worth another try once a download has begun. */
const PASSING_STATUSES: readonly number[] = [408, 425, 429, 500, 502, 503, 504];

/** What identifies one version of a file; a field is undefined when the server, or CORS, does not show it. */
interface FileVersion {
  readonly etag: string | undefined;
  readonly lastModified: string | undefined;
  readonly size: number | undefined;
  /** Sent compressed: lengths and ranges are those of the compressed bytes, so it cannot be resumed. */
  readonly isEncoded: boolean;
}

/** A file behind an http(s), blob: or data: URL. */
export function httpSource(url: URL, options: HttpOptions = {}): ByteSource {
  return new HttpSource(url, options);
}

class HttpSource implements ByteSource {
  readonly name: string;
  readonly isRestartable = true;
  readonly #fetch: typeof globalThis.fetch;
  readonly #maxRetries: number;
  readonly #retryDelayMs: number;
  #version: FileVersion | undefined;

  constructor(
    readonly url: URL,
    options: HttpOptions,
  ) {
    this.name = nameOf(url);
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.#maxRetries = options.maxRetries ?? 4;
    this.#retryDelayMs = options.retryDelayMs ?? 300;
  }

  get size(): number | undefined {
    return this.#version?.size;
  }

  async *open(offset: number, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
    let at = offset;
    let nRetries = 0;
    for (;;) {
      try {
        for await (const chunk of this.#request(at, signal)) {
          at += chunk.byteLength;
          nRetries = 0;
          yield chunk;
        }
        if (this.size === undefined || at >= this.size) return;
        throw new BrokenDownload(`the connection closed at byte ${at} of ${this.size}`);
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof BrokenDownload)) throw error;
        if (nRetries >= this.#maxRetries) {
          throw new InlayError(
            "source-failed",
            `${this.name}: ${error.message}; ${nRetries} attempts to resume failed`,
            { url: this.name, byte: at, size: this.size },
            { cause: error.cause },
          );
        }
        await delay(this.#retryDelayMs * 2 ** nRetries, signal);
        nRetries++;
      }
    }
  }

  /** One request and its body from byte `at` on. Throws BrokenDownload for what a further try may mend. */
  async *#request(at: number, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    const response = await this.#fetch(this.url, {
      signal: signal ?? null,
      headers: at > 0 ? { Range: `bytes=${at}-` } : {},
    }).catch((cause: unknown) => {
      throw this.#networkFailure(at, cause, signal);
    });
    try {
      this.#checkStatus(response, at);
      const version = versionOf(response, at);
      this.#checkVersion(version);
      this.#version ??= version;
    } catch (error) {
      // The body is not wanted. One that fails to cancel has failed already.
      response.body?.cancel().catch(() => {});
      throw error;
    }
    if (!response.body) throw new InlayError("source-failed", `${this.name}: the response has no body`);
    const toSkip = response.status === 206 ? 0 : at;
    try {
      yield* afterSkipping(toSkip, streamChunks(response.body, this.name, signal));
    } catch (error) {
      // A torn connection: streamChunks reports it with the browser's error as the cause.
      if (error instanceof InlayError && error.cause && !this.#version.isEncoded) {
        throw new BrokenDownload(error.message, error.cause);
      }
      throw error;
    }
  }

  #checkStatus(response: Response, at: number): void {
    if (response.ok) {
      const range = at > 0 && response.status === 206 ? response.headers.get("content-range") : null;
      if (range !== null && !range.startsWith(`bytes ${at}-`)) {
        throw new InlayError(
          "source-failed",
          `${this.name}: asked for bytes ${at}-, the server sent ${range}`,
        );
      }
      return;
    }
    const status = `HTTP ${response.status} ${response.statusText}`.trim();
    if (this.#version && PASSING_STATUSES.includes(response.status)) {
      throw new BrokenDownload(`${status} when resuming at byte ${at}`);
    }
    const hint = STATUS_HINTS[response.status] ?? "";
    throw new InlayError("source-failed", `${this.name}: ${status}${hint}`, {
      url: this.name,
      status: response.status,
    });
  }

  #checkVersion(now: FileVersion): void {
    const before = this.#version;
    if (!before) return;
    for (const field of ["etag", "lastModified", "size"] as const) {
      if (before[field] === undefined || now[field] === undefined || before[field] === now[field]) continue;
      throw new InlayError(
        "source-failed",
        `${this.name}: the file changed during the download (${field} was ${before[field]}, is ${now[field]}); load it again`,
        { url: this.name, before, now },
      );
    }
  }

  /** A failed fetch: worth a retry when the download had begun, otherwise most likely a wrong URL or CORS. */
  #networkFailure(at: number, cause: unknown, signal: AbortSignal | undefined): unknown {
    if (this.#version && !signal?.aborted) return new BrokenDownload(`no connection at byte ${at}`, cause);
    const failure = sourceFailure(this.name, at, cause, signal);
    if (!(failure instanceof InlayError)) return failure;
    return new InlayError(
      "source-failed",
      `${this.name}: the request failed (${cause instanceof Error ? cause.message : cause}); ` +
        "check the address, the connection, and that the server allows this origin (CORS)",
      { url: this.name },
      { cause },
    );
  }
}

const STATUS_HINTS: Readonly<Record<number, string>> = {
  401: "; the file needs a login or a licence to be accepted",
  403: "; access is refused, perhaps a signed address has expired",
  404: "; check the repository, the file name and the revision",
  416: "; the file is shorter than before, load it again",
};

/** A failure that a Range request from the byte reached may mend. Never leaves this file. */
class BrokenDownload extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause });
  }
}

function versionOf(response: Response, at: number): FileVersion {
  const { headers } = response;
  const isEncoded = (headers.get("content-encoding") ?? "identity") !== "identity";
  const length = headers.get("content-length");
  const start = response.status === 206 ? at : 0;
  return {
    etag: headers.get("etag") ?? undefined,
    lastModified: headers.get("last-modified") ?? undefined,
    isEncoded,
    size: isEncoded || length === null ? undefined : start + Number(length),
  };
}

/** The chunks without their first `nSkip` bytes: for servers that answer a Range request with the whole file. */
async function* afterSkipping(nSkip: number, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let left = nSkip;
  for await (const chunk of chunks) {
    if (chunk.byteLength > left) yield left > 0 ? chunk.subarray(left) : chunk;
    left = Math.max(0, left - chunk.byteLength);
  }
}

/** The URL without its query and fragment, which may hold a signature or a token. */
function nameOf(url: URL): string {
  return url.protocol === "data:"
    ? "data: URL"
    : `${url.protocol === "blob:" ? "" : url.origin}${url.pathname}`;
}
