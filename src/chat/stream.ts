/** The answer in chunks that a caller holds: an async iterator that can be left, disposed and aborted. */

import type { GenerateEvent } from "../generate/events.ts";
import { type CompletionHead, completionChunks } from "./response.ts";
import type { ChatCompletionChunk, ChatCompletionStream } from "./types.ts";

/**
 * Waits for the engine's first event, so that what is wrong with the request rejects here and not in the loop, and
 * so that the source has started: an async generator that has not cannot be told that it is no longer wanted.
 * From then on the source is returned in every case: when the loop is left, when it never began, on `abort`, and
 * at the end. `cancel` is called with the reason of an abort, and must make a waiting source reject.
 */
export async function openChatCompletionStream(
  events: AsyncIterable<GenerateEvent>,
  head: CompletionHead,
  includeUsage: boolean,
  cancel: (reason: unknown) => void,
): Promise<ChatCompletionStream> {
  const source = events[Symbol.asyncIterator]();
  const started = startingWith(await source.next(), source);
  return new EventStream(started, completionChunks(started, head, includeUsage), cancel);
}

type Source = AsyncIterableIterator<GenerateEvent>;

/** `source` again from its first result on. */
function startingWith(first: IteratorResult<GenerateEvent>, source: AsyncIterator<GenerateEvent>): Source {
  let taken = false;
  return {
    async next() {
      if (taken) return source.next();
      taken = true;
      return first;
    },
    async return() {
      await source.return?.();
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

class EventStream implements ChatCompletionStream {
  /** The `next` calls that wait, for `abort` to reject. */
  readonly #waiting = new Set<(reason: unknown) => void>();
  #aborted: { readonly reason: unknown } | undefined;
  #returned: Promise<unknown> | undefined;

  constructor(
    private readonly source: Source,
    private readonly chunks: AsyncGenerator<ChatCompletionChunk, void>,
    private readonly cancel: (reason: unknown) => void,
  ) {}

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<ChatCompletionChunk, undefined>> {
    if (this.#aborted) return Promise.reject(this.#aborted.reason);
    if (this.#returned) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject);
      this.chunks
        .next()
        .then((result) => {
          if (result.done) this.#returned ??= Promise.resolve();
          resolve(result as IteratorResult<ChatCompletionChunk, undefined>);
        }, reject)
        .finally(() => this.#waiting.delete(reject));
    });
  }

  async return(): Promise<IteratorResult<ChatCompletionChunk, undefined>> {
    await this.#returnSource();
    return { done: true, value: undefined };
  }

  abort(reason: unknown = new DOMException("The stream was aborted", "AbortError")): void {
    if (this.#aborted || this.#returned) return;
    this.#aborted = { reason };
    for (const reject of this.#waiting) reject(reason);
    this.cancel(reason);
    // The caller hears `reason`; how the source ends is no longer of interest.
    this.#returnSource().catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#returnSource();
  }

  /** Not through the chunk generator: one that never started would not pass it on. */
  #returnSource(): Promise<unknown> {
    this.#returned ??= this.source.return!();
    return this.#returned;
  }
}
