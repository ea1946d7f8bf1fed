/**
 * The paged KV cache of one sequence: which physical slot holds which 32 tokens.
 *
 * A slot is one page of every layer and KV head for the same 32 tokens, so one page table serves all layers.
 * Slots are shared between forks and copied on the first write (copy on write). Where the store can quantize, slots are
 * hot (as written) or cold (quantized, read-only): see quantize.ts for which become cold. This file is bookkeeping only:
 * where a slot's bytes live is the `SlotStore`'s business, one per backend.
 */

import { InlayError, internalError } from "../errors.ts";
import { PAGE_TOKENS, pageCount } from "./page.ts";
import { SINK_PAGES, settledPages } from "./quantize.ts";

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
  /** Quantized slots, where the store has them. */
  readonly cold?: ColdSlots | undefined;
}

/** Slots of pages that have left the window. Their numbers are no hot slot's; `SlotStore.release` takes them too. */
export interface ColdSlots {
  /** Bytes of one cold slot. */
  readonly slotBytes: number;
  has(slot: number): boolean;
  /**
   * A new cold slot with the tokens of hot slot `slot`, which is logical page `page` of its cache.
   * Throws `out-of-memory`, or `invalid-model` naming layer and page where an element is not finite.
   */
  freeze(slot: number, page: number): number;
  /** A new hot slot with what cold slot `slot` stands for. Throws `out-of-memory`. */
  thaw(slot: number): number;
}

/** Counts the users of each slot; one pool per backend. */
export class SlotPool {
  readonly #users = new Map<number, number>();
  /** The cold twin of a hot slot that other caches still use, and the reverse. */
  readonly #twins = new Map<number, number>();

  constructor(readonly store: SlotStore) {}

  /** Bytes of all slots in use, shared ones counted once. */
  get bytes(): number {
    return this.bytesOf(this.#users.keys());
  }

  /** Bytes of these slots. */
  bytesOf(slots: Iterable<number>): number {
    const { cold, slotBytes } = this.store;
    let bytes = 0;
    for (const slot of slots) bytes += cold?.has(slot) ? cold.slotBytes : slotBytes;
    return bytes;
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
    const twin = this.#twins.get(slot);
    if (twin !== undefined) {
      this.#twins.delete(slot);
      this.#twins.delete(twin);
    }
    this.store.release(slot);
  }

  /** Moves one user of a hot slot, logical page `page`, to the cold slot that replaces it; forks share that one too. */
  freeze(slot: number, page: number): number {
    const { cold } = this.store;
    if (!cold) throw internalError("a store without cold slots was asked to quantize");
    let frozen = this.#twins.get(slot);
    if (frozen === undefined) {
      frozen = cold.freeze(slot, page);
      this.#users.set(frozen, 1);
      this.#twins.set(slot, frozen);
      this.#twins.set(frozen, slot);
    } else this.retain(frozen);
    this.release(slot);
    return frozen;
  }

  /** Moves one user of a cold slot to a hot slot of its own. */
  thaw(slot: number): number {
    const { cold } = this.store;
    if (!cold) throw internalError("a store without cold slots has none to thaw");
    const hot = cold.thaw(slot);
    this.#users.set(hot, 1);
    this.release(slot);
    return hot;
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
  /** Frees what it holds outside JavaScript. Idempotent. */
  dispose?(): void;
}

/** Keys and values of one sequence. Tokens [0, nTokens) are valid; reserved positions past them are being written. */
export class PagedCache {
  #slots: number[] = [];
  #nTokens = 0;
  /** Pages before this one are sinks, or cold. */
  #nSettled = SINK_PAGES;
  #disposed = false;
  #companions: CacheCompanion[] = [];

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
    return this.pool.bytesOf(this.#slots);
  }

  /** The companion of one kind. */
  companion<T extends CacheCompanion>(kind: abstract new (...args: never[]) => T): T | undefined {
    return this.#companions.find((companion): companion is T => companion instanceof kind);
  }

  /** Gives an empty cache a companion. */
  attach(companion: CacheCompanion): void {
    this.#assertLive();
    if (this.#nTokens > 0) throw internalError(`a companion for a cache of ${this.#nTokens} tokens`);
    this.#companions.push(companion);
  }

  /**
   * Makes room for `n` more tokens: new slots, and a private copy of a partly filled last page that is shared or cold.
   */
  reserve(n: number): void {
    this.#assertLive();
    const keep = pageCount(this.#nTokens);
    const filled = this.#nTokens % PAGE_TOKENS;
    const last = this.#slots[keep - 1];
    if (filled > 0 && last !== undefined && this.pool.store.cold?.has(last)) {
      this.#slots[keep - 1] = this.pool.thaw(last);
    } else if (filled > 0 && last !== undefined && this.pool.isShared(last)) {
      const copy = this.pool.allocate();
      this.pool.store.copy(last, copy, filled);
      this.#slots[keep - 1] = copy;
      this.pool.release(last);
    }
    while (this.#slots.length < pageCount(this.#nTokens + n)) this.#slots.push(this.pool.allocate());
  }

  /** Declares `n` reserved tokens written in every layer. Pages that leave the window are quantized, if the store can. */
  commit(n: number): void {
    this.#assertLive();
    if (pageCount(this.#nTokens + n) > this.#slots.length)
      throw internalError(`commit of ${n} tokens past the reserved pages`, { nTokens: this.#nTokens });
    this.#nTokens += n;
    for (const companion of this.#companions) companion.commit(this.#nTokens);
    if (this.pool.store.cold) this.#freezeSettled(this.pool.store.cold);
  }

  /** Pages that left the window become cold. After `truncate` some before the window's start may be cold already. */
  #freezeSettled(cold: ColdSlots): void {
    const settled = settledPages(this.#nTokens);
    for (let page = this.#nSettled; page < settled; page++) {
      const slot = this.#slots[page]!;
      if (!cold.has(slot)) this.#slots[page] = this.pool.freeze(slot, page);
    }
    this.#nSettled = Math.max(this.#nSettled, settled);
  }

  /**
   * Forgets all tokens from `nTokens` on, and anything reserved but not committed. Where a companion cannot go back
   * to `nTokens`, a few tokens before it go as well: see `nTokens` afterwards. Cold pages that are now in the window
   * stay cold; of the one that is cut, the kept tokens are decoded when the next are written, and coded anew when the
   * page leaves the window again.
   */
  truncate(nTokens: number): void {
    this.#assertLive();
    if (nTokens < 0 || nTokens > this.#nTokens)
      throw internalError(`truncate to ${nTokens} of ${this.#nTokens} tokens`);
    const kept = this.#restorable(nTokens);
    for (const companion of this.#companions) companion.truncate(kept);
    this.#nTokens = kept;
    this.#nSettled = Math.max(SINK_PAGES, Math.min(this.#nSettled, Math.floor(kept / PAGE_TOKENS)));
    for (const slot of this.#slots.splice(pageCount(kept))) this.pool.release(slot);
  }

  /** The most tokens up to `nTokens` that every companion can go back to. */
  #restorable(nTokens: number): number {
    for (let kept = nTokens; ; ) {
      const least = Math.min(kept, ...this.#companions.map((companion) => companion.restorable(kept)));
      if (least === kept) return kept;
      kept = least;
    }
  }

  /** A second cache with the same tokens, sharing all pages until one of the two writes. */
  fork(): PagedCache {
    this.#assertLive();
    const fork = new PagedCache(this.pool);
    fork.#slots = this.#slots.slice(0, pageCount(this.#nTokens));
    fork.#nTokens = this.#nTokens;
    fork.#companions = this.#companions.map((companion) => companion.fork());
    fork.#nSettled = this.#nSettled;
    for (const slot of fork.#slots) this.pool.retain(slot);
    return fork;
  }

  /** Releases every page. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const slot of this.#slots.splice(0)) this.pool.release(slot);
    for (const companion of this.#companions) companion.dispose?.();
    this.#nTokens = 0;
  }

  #assertLive(): void {
    if (this.#disposed) throw new InlayError("disposed", "this KV cache was disposed");
  }
}
