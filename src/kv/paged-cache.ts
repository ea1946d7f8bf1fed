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
  /** Bytes of one layer in one slot: all KV heads, of each its K page and its V page. */
  readonly layerPageBytes: number;
  /** Copies one layer of `slots` out: (slots, nKvHeads, K then V). */
  read(layer: number, slots: readonly number[]): Bytes | Promise<Bytes>;
  /** Overwrites one layer of `slots` with what `read` returned. */
  write(layer: number, slots: readonly number[], pages: Bytes): void | Promise<void>;
}

type Bytes = Uint8Array<ArrayBuffer>;

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

/** Keys and values of one sequence. Tokens [0, nTokens) are valid; reserved positions past them are being written. */
export class PagedCache {
  #slots: number[] = [];
  #nTokens = 0;
  #disposed = false;

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

  /** Bytes of one layer of one page: all KV heads, of each K then V. */
  get layerPageBytes(): number {
    return this.pool.store.layerPageBytes;
  }

  /** A copy of one layer of pages [from, to): (pages, nKvHeads, K then V). What lies past the last token is undefined. */
  async readPages(layer: number, from: number, to: number): Promise<Bytes> {
    this.#assertLive();
    return this.pool.store.read(layer, this.#slots.slice(from, to));
  }

  /** Fills one layer of reserved pages, `from` and those after it, with what `readPages` returned; `commit` declares them. */
  async writePages(layer: number, from: number, pages: Bytes): Promise<void> {
    this.#assertLive();
    const slots = this.#slots.slice(from, from + pages.byteLength / this.layerPageBytes);
    if (slots.length * this.layerPageBytes !== pages.byteLength)
      throw internalError(`${pages.byteLength} bytes of pages do not fit`, { layer, from });
    await this.pool.store.write(layer, slots, pages);
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
  }

  /** Forgets all tokens from `nTokens` on, and anything reserved but not committed. */
  truncate(nTokens: number): void {
    this.#assertLive();
    if (nTokens < 0 || nTokens > this.#nTokens)
      throw internalError(`truncate to ${nTokens} of ${this.#nTokens} tokens`);
    this.#nTokens = nTokens;
    for (const slot of this.#slots.splice(pageCount(nTokens))) this.pool.release(slot);
  }

  /** A second cache with the same tokens, sharing all pages until one of the two writes. */
  fork(): PagedCache {
    this.#assertLive();
    const fork = new PagedCache(this.pool);
    fork.#slots = this.#slots.slice(0, pageCount(this.#nTokens));
    fork.#nTokens = this.#nTokens;
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
