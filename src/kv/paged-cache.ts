/**
 * The paged KV cache of one sequence: which physical slot holds which 32 tokens.
 *
 * A slot is one page of every layer and KV head for the same 32 tokens, so one page table serves all layers.
 * Slots are shared between forks and copied on the first write (copy on write). This file is bookkeeping only:
 * where a slot's bytes live is the `SlotStore`'s business, one per backend.
 */

import { InlayError, internalError } from "../errors.ts";
import { PAGE_TOKENS, pageCount } from "./page.ts";

/** Storage of slots on one device. */
export interface SlotStore {
  /** Bytes of one slot: all layers, KV heads, K and V. */
  readonly slotBytes: number;
  /** A new slot's number. Throws `out-of-memory`. */
  allocate(): number;
  /** Returns a slot to the store. */
  release(slot: number): void;
  /** Copies the first `nTokens` tokens (or more) of slot `from` into `to`. */
  copy(from: number, to: number, nTokens: number): void;
}

/** Counts the users of each slot; one pool per backend. */
export class SlotPool {
  readonly #users = new Map<number, number>();

  constructor(readonly store: SlotStore) {}

  /** Bytes of all slots in use, shared ones counted once. */
  get bytes(): number {
    return this.#users.size * this.store.slotBytes;
  }

  allocate(): number {
    const slot = this.store.allocate();
    this.#users.set(slot, 1);
    return slot;
  }

  retain(slot: number): void {
    this.#users.set(slot, this.#count(slot) + 1);
  }

  release(slot: number): void {
    const users = this.#count(slot) - 1;
    if (users > 0) {
      this.#users.set(slot, users);
      return;
    }
    this.#users.delete(slot);
    this.store.release(slot);
  }

  isShared(slot: number): boolean {
    return this.#count(slot) > 1;
  }

  #count(slot: number): number {
    const users = this.#users.get(slot);
    if (users === undefined) throw internalError(`slot ${slot} is not in use`);
    return users;
  }
}

/** What lives beside a cache: it follows every change of it. */
export interface CacheCompanion {
  /** All tokens up to `nTokens` are written. */
  commit(nTokens: number): void;
  /** The most tokens up to `nTokens` that `truncate` can go back to; `nTokens` itself if it was committed last. */
  restorable(nTokens: number): number;
  /** Forgets all tokens from `nTokens` on, which `restorable` returned. */
  truncate(nTokens: number): void;
  /** A copy for a forked cache, as of the last commit. */
  fork(): CacheCompanion;
}

/** Keys and values of one sequence. Tokens [0, nTokens) are valid; reserved positions past them are being written. */
export class PagedCache {
  #slots: number[] = [];
  #nTokens = 0;
  #disposed = false;
  #companion: CacheCompanion | undefined;

  constructor(private readonly pool: SlotPool) {}

  /** Tokens cached. */
  get nTokens(): number {
    return this.#nTokens;
  }

  /** Slot of each logical page. */
  get slots(): readonly number[] {
    return this.#slots;
  }

  /** Bytes of the slots this cache uses, shared ones included. */
  get bytes(): number {
    return this.#slots.length * this.pool.store.slotBytes;
  }

  get companion(): CacheCompanion | undefined {
    return this.#companion;
  }

  /** Gives an empty cache its companion. */
  attach(companion: CacheCompanion): void {
    this.#assertLive();
    if (this.#companion || this.#nTokens > 0)
      throw internalError(`a companion for a cache of ${this.#nTokens} tokens`);
    this.#companion = companion;
  }

  /** Makes room for `n` more tokens: new slots, and a private copy of a shared, partly filled last page. */
  reserve(n: number): void {
    this.#assertLive();
    const keep = pageCount(this.#nTokens);
    const filled = this.#nTokens % PAGE_TOKENS;
    const last = this.#slots[keep - 1];
    if (filled > 0 && last !== undefined && this.pool.isShared(last)) {
      const copy = this.pool.allocate();
      this.pool.store.copy(last, copy, filled);
      this.#slots[keep - 1] = copy;
      this.pool.release(last);
    }
    while (this.#slots.length < pageCount(this.#nTokens + n)) this.#slots.push(this.pool.allocate());
  }

  /** Declares `n` reserved tokens written in every layer. */
  commit(n: number): void {
    this.#assertLive();
    if (pageCount(this.#nTokens + n) > this.#slots.length)
      throw internalError(`commit of ${n} tokens past the reserved pages`, { nTokens: this.#nTokens });
    this.#nTokens += n;
    this.#companion?.commit(this.#nTokens);
  }

  /**
   * Forgets all tokens from `nTokens` on, and anything reserved but not committed. Where the companion cannot go back
   * to `nTokens`, a few tokens before it go as well: see `nTokens` afterwards.
   */
  truncate(nTokens: number): void {
    this.#assertLive();
    if (nTokens < 0 || nTokens > this.#nTokens)
      throw internalError(`truncate to ${nTokens} of ${this.#nTokens} tokens`);
    const kept = this.#companion?.restorable(nTokens) ?? nTokens;
    this.#companion?.truncate(kept);
    this.#nTokens = kept;
    for (const slot of this.#slots.splice(pageCount(kept))) this.pool.release(slot);
  }

  /** A second cache with the same tokens, sharing all pages until one of the two writes. */
  fork(): PagedCache {
    this.#assertLive();
    const fork = new PagedCache(this.pool);
    fork.#slots = this.#slots.slice(0, pageCount(this.#nTokens));
    fork.#nTokens = this.#nTokens;
    fork.#companion = this.#companion?.fork();
    for (const slot of fork.#slots) this.pool.retain(slot);
    return fork;
  }

  /** Releases every page. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const slot of this.#slots.splice(0)) this.pool.release(slot);
    this.#nTokens = 0;
  }

  #assertLive(): void {
    if (this.#disposed) throw new InlayError("disposed", "this KV cache was disposed");
  }
}
