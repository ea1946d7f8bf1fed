/**
 * Pages that are still on their way into a cache which counts their tokens already: those of a pinned prompt that is read
 * from its store while a request goes on from it. They come layer by layer, and a forward pass that wants a layer waits for
 * it, so that no answer begins before all of them are in.
 *
 * The prompt's cache and a fork of it share most slots; what is shared is written once, for both.
 */

import type { Checkpoint } from "../engine/yielding.ts";
import { InlayError, internalError } from "../errors.ts";
import type { CacheCompanion, PagedCache } from "./paged-cache.ts";

/** Where the pages come from: one layer after the other, from the first. */
export interface LayerSource {
  readonly nLayers: number;
  /** Resolves when the next layer is at hand; rejects if it cannot be had. */
  read(): Promise<unknown>;
  /** Writes the next layer, and what is remembered of its keys, to the prompt's cache and to a fork, if there is one. */
  write(fork: PagedCache | undefined): Promise<void>;
  /** Nothing more is wanted. */
  end(): void;
}

/** What the prompt's cache and its forks have in common. */
interface Arrival {
  readonly owner: PagedCache;
  readonly source: LayerSource;
  /** Layers that are in. */
  nArrived: number;
  /** Why no more come. */
  failure: unknown;
  isDropped: boolean;
  /** Waits for the next layer, or the failure. */
  wake: (() => void)[];
}

export class ArrivingPages implements CacheCompanion {
  readonly #arrival: Arrival;

  /** `expect` makes one. */
  constructor(
    arrival: Arrival,
    private readonly isOwner: boolean,
  ) {
    this.#arrival = arrival;
  }

  /** Declares `nTokens` reserved tokens of an empty cache, which `source` is to bring. */
  static expect(owner: PagedCache, nTokens: number, source: LayerSource): ArrivingPages {
    const arrival: Arrival = { owner, source, nArrived: 0, failure: undefined, isDropped: false, wake: [] };
    const pages = new ArrivingPages(arrival, true);
    owner.attach(pages);
    owner.expect(nTokens);
    return pages;
  }

  /** Layers that are in. */
  get nArrived(): number {
    return this.#arrival.nArrived;
  }

  get isComplete(): boolean {
    return this.#arrival.nArrived === this.#arrival.source.nLayers;
  }

  /** The prompt's cache went before all of them were in. */
  get isDropped(): boolean {
    return this.#arrival.isDropped;
  }

  /** Resolves when the next layer could be brought without waiting. Rejects with why it cannot. */
  async read(): Promise<void> {
    const { failure, source } = this.#arrival;
    if (failure !== undefined) throw failure;
    if (!this.isComplete) await source.read();
  }

  /** Resolves when one more layer is in, whoever brought it. Rejects with why no more come. */
  async next(): Promise<void> {
    const arrival = this.#arrival;
    if (!this.isComplete && arrival.failure === undefined)
      await new Promise<void>((resolve) => arrival.wake.push(resolve));
    if (arrival.failure !== undefined) throw arrival.failure;
  }

  /**
   * Brings all layers up to `layer` into `cache`, whose companion this is. To be called by one at a time. Rejects with what
   * the source rejected with, then and ever after, or with the abort's reason, which spoils nothing.
   */
  async bring(layer: number, cache: PagedCache, checkpoint: Checkpoint): Promise<void> {
    const arrival = this.#arrival;
    const { owner, source } = arrival;
    while (arrival.nArrived <= layer) {
      if (arrival.failure !== undefined) throw arrival.failure;
      const read = source.read();
      await checkpoint.wait(read.catch(() => {})); // it may have been read, and the wait given up
      try {
        await read;
        await source.write(cache === owner ? undefined : cache);
        arrival.nArrived++;
        if (this.isComplete) owner.commit(0);
      } catch (error) {
        this.#fail(error);
        throw error;
      }
      this.#wake();
    }
  }

  /** Tokens after pages that are not all in are never valid. */
  commit(): void {
    if (!this.isComplete)
      throw internalError(`a cache was committed with ${this.nArrived} layers of its first pages`);
  }

  restorable(nTokens: number): number {
    return nTokens;
  }

  truncate(): void {}

  fork(): ArrivingPages {
    return new ArrivingPages(this.#arrival, false);
  }

  /** With the prompt's cache goes what has not come yet. */
  dispose(): void {
    if (!this.isOwner || this.isComplete) return;
    this.#arrival.isDropped = true;
    this.#fail(new InlayError("disposed", "this pinned prompt was closed or deleted before it was all read"));
    this.#arrival.source.end();
  }

  #fail(error: unknown): void {
    this.#arrival.failure ??= error;
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#arrival.wake.splice(0)) wake();
  }
}
