/**
 * The KV caches that the engine keeps between requests, so that a prompt that begins like an earlier one is not
 * prefilled again: the next turn of a chat, a regenerated answer, a fork of a session.
 *
 * A request borrows the cache with the longest common prefix. A cache that goes on differently after the prefix
 * is forked (pages are shared), so that both continuations stay. Idle caches are dropped, least recently used
 * first, when there are too many of them or memory runs out.
 */

import { InlayError } from "../errors.ts";
import type { PagedCache } from "../kv/paged-cache.ts";

/** Most caches kept; forks share pages, so a few cost little. */
const MAX_IDLE = 6;

/** A cache and the tokens in it. */
export class Sequence {
  /** Ids of the tokens in `cache`, in order. */
  readonly ids: number[] = [];
  #cache: PagedCache;

  /** `pinned`: the pinned prompt whose pages it begins with. */
  constructor(
    cache: PagedCache,
    readonly pinned?: Sequence,
  ) {
    this.#cache = cache;
  }

  get cache(): PagedCache {
    return this.#cache;
  }

  /** Forgets all tokens and goes on with an empty cache, after the old one's device was lost. */
  restart(cache: PagedCache): void {
    this.#cache.dispose();
    this.#cache = cache;
    this.ids.length = 0;
  }

  /** Records tokens that a forward call committed. */
  extend(ids: ArrayLike<number>): void {
    for (let i = 0; i < ids.length; i++) this.ids.push(ids[i]!);
  }
}

export class SequenceStore {
  /** Idle sequences, least recently used first. */
  #idle: Sequence[] = [];
  /** Pinned prompts: forked, never handed out and never dropped for room. */
  readonly #shared = new Set<Sequence>();

  /** `maxTokens`: most tokens kept in idle sequences together, shared pages counted in each. */
  constructor(
    readonly createCache: () => PagedCache,
    private readonly maxTokens: number,
  ) {}

  /**
   * A sequence that holds a prefix of `ids`, the longest at hand and shorter than `ids` (the last token must be
   * run to get its logits). With `pinned`, a shared one that `ids` begin with, no other's pages are taken: they may have
   * other bits. The caller owns it until `release` or `discard`.
   */
  borrow(ids: Uint32Array, pinned?: Sequence): Sequence {
    let best: Sequence | undefined;
    let common = 0;
    for (const sequence of [...this.#idle, ...this.#shared]) {
      if (pinned && sequence !== pinned && sequence.pinned !== pinned) continue;
      const shared = Math.min(commonPrefix(sequence.ids, ids), ids.length - 1);
      // Of pages that are still being read, a request waits for those that it names, and for all of them.
      const isHere = sequence.cache.isComplete || (sequence === pinned && shared === sequence.ids.length);
      if (!isHere) continue;
      const n = sequence.cache.restorable(shared);
      if (n > common) [best, common] = [sequence, n];
    }
    if (!best) return new Sequence(this.createCache());
    if (best.ids.length === common && !this.#shared.has(best)) {
      this.#idle.splice(this.#idle.indexOf(best), 1);
      return best;
    }
    const fork = new Sequence(best.cache.fork(), this.#shared.has(best) ? best : best.pinned);
    fork.cache.truncate(common);
    fork.extend(best.ids.slice(0, fork.cache.nTokens));
    return fork;
  }

  /** Gives a sequence back for later requests. One that still lacks pages is dropped. */
  release(sequence: Sequence): void {
    if (sequence.ids.length === 0 || !sequence.cache.isComplete) {
      sequence.cache.dispose();
      return;
    }
    // A sequence that is a prefix of another adds nothing.
    this.#idle = this.#idle.filter((other) => {
      if (commonPrefix(other.ids, sequence.ids) < other.ids.length) return true;
      other.cache.dispose();
      return false;
    });
    this.#idle.push(sequence);
    let tokens = this.#idle.reduce((sum, { ids }) => sum + ids.length, 0);
    while (this.#idle.length > 1 && (this.#idle.length > MAX_IDLE || tokens > this.maxTokens)) {
      tokens -= this.#idle[0]!.ids.length;
      this.dropOldest();
    }
  }

  /** Keeps a sequence, which the store owns from here on, as a prefix for requests until `unshare` or `clear`. */
  share(sequence: Sequence): void {
    this.#shared.add(sequence);
  }

  /** Drops a shared sequence; forks of it live on. */
  unshare(sequence: Sequence): void {
    if (this.#shared.delete(sequence)) sequence.cache.dispose();
  }

  /** Whether the sequence is still here as a prefix. */
  isShared(sequence: Sequence): boolean {
    return this.#shared.has(sequence);
  }

  /** Drops the least recently used idle sequence; false if there is none. */
  dropOldest(): boolean {
    const oldest = this.#idle.shift();
    oldest?.cache.dispose();
    return oldest !== undefined;
  }

  /** Drops every idle and every shared sequence. */
  clear(): void {
    while (this.dropOldest());
    for (const sequence of this.#shared) this.unshare(sequence);
  }
}

/** Runs `f`, dropping idle sequences one by one for as long as it fails for want of memory. */
export async function withRoom<T>(store: SequenceStore, f: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await f();
    } catch (error) {
      const isFull = error instanceof InlayError && error.code === "out-of-memory";
      if (!isFull || !store.dropOldest()) throw error;
    }
  }
}

function commonPrefix(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) if (a[i] !== b[i]) return i;
  return n;
}
