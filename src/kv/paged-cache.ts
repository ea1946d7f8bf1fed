/**
 * The paged KV cache of one sequence: which physical slot holds which 32 tokens.
 *
 * A slot is one page of every layer and KV head for the same 32 tokens, so one page table serves all layers.
 * Slots are shared between forks and copied on the first write (copy on write). Where the store can quantize, slots are
 * hot (as written) or cold (quantized, read-only): see quantize.ts for which become cold. This file is bookkeeping only:
 * where a slot's bytes live is the `SlotStore`'s business, one per backend.
 */

import { InlayError, internalError } from "../errors.ts";
import { type ColdFormat, isSameFormat, type SlotFormat } from "./mixed-format.ts";
import { PAGE_TOKENS, type PageFormat, pageCount } from "./page.ts";
import { type QuantizedFormat, SINK_PAGES, settledPages } from "./quantize.ts";

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
  /** How hot slots are stored. */
  readonly format: PageFormat;
  /** Bytes of a layer of these slots: of each all KV heads, of each its K page and its V page. */
  layerBytes(layer: number, slots: readonly number[]): number;
  /** Copies one layer of `slots` out: (slots, nKvHeads, K then V), each slot in its own format. */
  read(layer: number, slots: readonly number[]): Bytes | Promise<Bytes>;
  /** Overwrites one layer of `slots` with what `read` returned. */
  write(layer: number, slots: readonly number[], pages: Bytes): void | Promise<void>;
  /** Quantized slots, where the store has them. */
  readonly cold?: ColdSlots | undefined;
}

/** Slots of quantized pages. Their numbers are no hot slot's; `SlotStore.release` takes them too. */
export interface ColdSlots {
  /** What pages become when they leave the window; undefined: they stay as they are. */
  readonly automatic: QuantizedFormat | undefined;
  /** Whether pages can be coded so here. */
  canCode(format: ColdFormat): boolean;
  /** Bytes of one cold slot. */
  slotBytes(format: ColdFormat): number;
  /** How a slot is coded; undefined: it is hot. */
  formatOf(slot: number): ColdFormat | undefined;
  /** A new cold slot, for `write`. Throws `out-of-memory`. */
  allocate(format: ColdFormat): number;
  /**
   * A new cold slot with the tokens of hot slot `slot`, which is logical page `page` of its cache.
   * Throws `out-of-memory`, or `invalid-model` naming layer and page where an element is not finite.
   */
  freeze(slot: number, format: ColdFormat, page: number): number;
  /** A new hot slot with what cold slot `slot` stands for. Throws `out-of-memory`. */
  thaw(slot: number): number;
}

type Bytes = Uint8Array<ArrayBuffer>;

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
    for (const slot of slots) {
      const format = cold?.formatOf(slot);
      bytes += format === undefined ? slotBytes : cold!.slotBytes(format);
    }
    return bytes;
  }

  /** A new slot: hot, or cold for pages that are coded already. */
  allocate(format?: ColdFormat): number {
    const { store } = this;
    if (format !== undefined && !store.cold)
      throw internalError("a store without cold slots was asked for one");
    const slot = format === undefined ? store.allocate() : store.cold!.allocate(format);
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
  freeze(slot: number, format: ColdFormat, page: number): number {
    const { cold } = this.store;
    if (!cold) throw internalError("a store without cold slots was asked to quantize");
    const twin = this.#twins.get(slot);
    if (twin !== undefined && isSameFormat(cold.formatOf(twin), format)) {
      this.retain(twin);
      this.release(slot);
      return twin;
    }
    const frozen = cold.freeze(slot, format, page);
    this.#users.set(frozen, 1);
    if (twin === undefined) {
      this.#twins.set(slot, frozen);
      this.#twins.set(frozen, slot);
    }
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
  /** The first `nTokens` tokens count from now on, and are written layer by layer; `commit` says that they are. */
  expect?(nTokens: number): void;
  /** The most tokens up to `nTokens` that `truncate` can go back to; `nTokens` itself if it was committed last. */
  restorable(nTokens: number): number;
  /** Forgets all tokens from `nTokens` on, which `restorable` returned. */
  truncate(nTokens: number): void;
  /** A copy for a forked cache, as of the last commit. */
  fork(): CacheCompanion;
  /** Writes what only it has of a layer to the pages of `cache`, whose companion it is. */
  flush?(cache: PagedCache, layer: number): Promise<void>;
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
  #isComplete = true;
  #companions: CacheCompanion[] = [];

  constructor(private readonly pool: SlotPool) {}

  /** Tokens cached. */
  get nTokens(): number {
    return this.#nTokens;
  }

  /** false: some of its tokens are declared, and not yet written in every layer. */
  get isComplete(): boolean {
    return this.#isComplete;
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

  /** Puts another companion, which knows the cache's tokens, in the place of the one of its kind. */
  replaceCompanion(companion: CacheCompanion): void {
    this.#assertLive();
    companion.commit(this.#nTokens);
    const others = this.#companions.filter((other) => other.constructor !== companion.constructor);
    this.#companions = [...others, companion];
  }

  /** The most tokens up to `nTokens` that `truncate` can go back to. */
  restorable(nTokens: number): number {
    for (let kept = nTokens; ; ) {
      const least = Math.min(kept, ...this.#companions.map((companion) => companion.restorable(kept)));
      if (least === kept) return kept;
      kept = least;
    }
  }

  /** How a page is stored. */
  formatOf(page: number): SlotFormat {
    const { store } = this.pool;
    return store.cold?.formatOf(this.#slots[page]!) ?? store.format;
  }

  /** A copy of one layer of pages [from, to): (pages, nKvHeads, K then V). What lies past the last token is undefined. */
  async readPages(layer: number, from: number, to: number): Promise<Bytes> {
    this.#assertLive();
    for (const companion of this.#companions) await companion.flush?.(this, layer);
    return this.pool.store.read(layer, this.#slots.slice(from, to));
  }

  /**
   * Fills one layer of reserved pages [from, to) with what `readPages` returned; `commit` declares them. Of hot pages that
   * are shared this cache gets its own first; shared cold ones must be given what they have.
   */
  async writePages(layer: number, from: number, to: number, pages: Bytes): Promise<void> {
    this.#assertLive();
    for (let page = from; page < Math.min(to, this.#slots.length); page++) this.#own(page);
    await this.#write(layer, from, to, pages);
  }

  /** As `writePages`, for all caches that share a page: of one that is expected, and that none of them has written to. */
  async fillPages(layer: number, from: number, to: number, pages: Bytes): Promise<void> {
    this.#assertLive();
    await this.#write(layer, from, to, pages);
  }

  async #write(layer: number, from: number, to: number, pages: Bytes): Promise<void> {
    const slots = this.#slots.slice(from, to);
    if (slots.length !== to - from || this.pool.store.layerBytes(layer, slots) !== pages.byteLength)
      throw internalError(`${pages.byteLength} bytes do not fit pages ${from} to ${to}`, { layer });
    await this.pool.store.write(layer, slots, pages);
  }

  /** Codes the pages that are neither sinks nor in the window, where the store can; others stay as they are. */
  quantize(format: ColdFormat): void {
    this.#assertLive();
    const { cold } = this.pool.store;
    if (cold?.canCode(format)) this.#freeze(cold, format, SINK_PAGES);
  }

  /**
   * Makes room for `n` tokens in an empty cache; with `cold`, pages that will be neither sinks nor in the window are
   * coded so, where the store can.
   */
  reserveCoded(n: number, cold: ColdFormat | undefined): void {
    this.#assertLive();
    if (this.#slots.length > 0)
      throw internalError(`a cache with ${this.#nTokens} tokens was asked to be restored`);
    const canCode = cold !== undefined && this.pool.store.cold?.canCode(cold);
    const settled = canCode ? settledPages(n) : 0;
    for (let page = 0; page < pageCount(n); page++)
      this.#slots.push(this.pool.allocate(page >= SINK_PAGES && page < settled ? cold : undefined));
  }

  /**
   * Makes room for `n` more tokens: new slots, and a private copy of a partly filled last page that is shared or cold.
   */
  reserve(n: number): void {
    this.#assertLive();
    const keep = pageCount(this.#nTokens);
    const filled = this.#nTokens % PAGE_TOKENS;
    const last = this.#slots[keep - 1];
    if (filled > 0 && last !== undefined && this.pool.store.cold?.formatOf(last)) {
      this.#slots[keep - 1] = this.pool.thaw(last);
    } else if (filled > 0) {
      this.#own(keep - 1, filled);
    }
    while (this.#slots.length < pageCount(this.#nTokens + n)) this.#slots.push(this.pool.allocate());
  }

  /** Puts a copy of its first `nTokens` tokens in the place of a hot page that other caches use too. */
  #own(page: number, nTokens = PAGE_TOKENS): void {
    const slot = this.#slots[page]!;
    const { store } = this.pool;
    if (!this.pool.isShared(slot) || store.cold?.formatOf(slot)) return;
    const copy = this.pool.allocate();
    store.copy(slot, copy, nTokens);
    this.#slots[page] = copy;
    this.pool.release(slot);
  }

  /** Counts `n` reserved tokens of an empty cache that are still to be written, layer by layer; `commit` says that they are. */
  expect(n: number): void {
    this.#assertLive();
    if (this.#nTokens > 0 || pageCount(n) > this.#slots.length)
      throw internalError(`${n} tokens were expected in a cache of ${this.#nTokens}`);
    this.#nTokens = n;
    this.#isComplete = false;
    for (const companion of this.#companions) companion.expect?.(n);
  }

  /** Declares `n` reserved tokens written in every layer. Pages that leave the window are quantized, if the store can. */
  commit(n: number): void {
    this.#assertLive();
    if (pageCount(this.#nTokens + n) > this.#slots.length)
      throw internalError(`commit of ${n} tokens past the reserved pages`, { nTokens: this.#nTokens });
    this.#nTokens += n;
    for (const companion of this.#companions) companion.commit(this.#nTokens);
    this.#isComplete = true;
    const { cold } = this.pool.store;
    if (!cold?.automatic) return;
    // After `truncate` some before the window's start may be cold already.
    this.#freeze(cold, cold.automatic, this.#nSettled);
    this.#nSettled = Math.max(this.#nSettled, settledPages(this.#nTokens));
  }

  /** Codes the hot pages from `from` to the window. */
  #freeze(cold: ColdSlots, format: ColdFormat, from: number): void {
    const settled = settledPages(this.#nTokens);
    for (let page = from; page < settled; page++) {
      const slot = this.#slots[page]!;
      if (cold.formatOf(slot) === undefined) this.#slots[page] = this.pool.freeze(slot, format, page);
    }
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
    const kept = this.restorable(nTokens);
    for (const companion of this.#companions) companion.truncate(kept);
    this.#nTokens = kept;
    this.#nSettled = Math.max(SINK_PAGES, Math.min(this.#nSettled, Math.floor(kept / PAGE_TOKENS)));
    for (const slot of this.#slots.splice(pageCount(kept))) this.pool.release(slot);
  }

  /** A second cache with the same tokens, sharing all pages until one of the two writes. */
  fork(): PagedCache {
    this.#assertLive();
    const fork = new PagedCache(this.pool);
    fork.#slots = this.#slots.slice(0, pageCount(this.#nTokens));
    fork.#nTokens = this.#nTokens;
    fork.#isComplete = this.#isComplete;
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
