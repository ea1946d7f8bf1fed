/**
 * The pinned prompts of one engine: made, restored, opened, handed on as files.
 *
 * An open prompt is a sequence that the SequenceStore shares: a request that names it finds its pages like any other
 * common prefix, forks them, and computes only what follows.
 */

import type { AttentionObserver } from "../attention/observer.ts";
import { Sequence } from "../engine/sequences.ts";
import { InlayError } from "../errors.ts";
import { checkFits, type GenerateContext, prefillInto } from "../generate/generate.ts";
import type { Prompt } from "../generate/request.ts";
import { abortable, anySignal } from "../gguf/abort.ts";
import { ArrivingPages } from "../kv/arriving-pages.ts";
import { SINK_PAGES, settledPages } from "../kv/quantize.ts";
import { sha256 } from "../storage/digest.ts";
import type { PinnedInfo, PromptEntry, PromptStore } from "../storage/prompt-store.ts";
import { chooseCoding } from "./coding.ts";
import {
  assertContinues,
  assertTokens,
  continuePinned,
  decodeContent,
  decodeTokens,
  encodeContent,
  encodeTokens,
  joinContent,
  type PinnedContent,
  pinnedPrompt,
} from "./content.ts";
import { download } from "./download.ts";
import { openPromptFile, promptFile } from "./file.ts";
import {
  CONTENT_RECORD,
  describeModel,
  kvBytes,
  type ModelIdentity,
  type PageCoding,
  type PromptManifest,
  type PromptShape,
  TOKENS_RECORD,
} from "./manifest.ts";
import { type PinEvent, type PinProgress, progress } from "./pin-events.ts";
import type { PinHost, Turn } from "./pin-host.ts";
import { attentionOf, isSamePrompt, type PinRequest, squeezeRequest } from "./pin-request.ts";
import {
  arrivalOf,
  arrivalProgress,
  assertRecord,
  beginRestore,
  type Restored,
  readManifest,
  readRecords,
  type StoredPrompt,
} from "./restore.ts";
import { estimatedClusterBytes, type Squeezed, type SqueezeRequest } from "./squeeze.ts";
import type { WindowQueries } from "./window-queries.ts";
import { prefilledRecords, writePrompt } from "./write.ts";

interface OpenPrompt extends StoredPrompt, Restored {
  /** Dropped by the store when its GPU was lost; then it is restored again. */
  sequence: Sequence;
}

export class PinnedPrompts {
  readonly #open = new Map<string, OpenPrompt>();
  /** Why prompts were closed whose pages could not be read. */
  readonly #failed = new Map<string, InlayError>();
  #store: PromptStore | undefined;
  #nOpened = 0;

  constructor(private readonly host: PinHost) {}

  /**
   * Prefills and stores a prompt, or opens it if just this one is stored under the id. Replaces another one. Of one that is
   * pinned on an open prompt only what follows that is prefilled; it is stored whole.
   */
  async *pin(request: PinRequest, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const { id, encrypt } = request;
    const base = request.on === undefined ? undefined : this.#get(request.on);
    const content = base ? joinContent(base.manifest.id, base.content, request.content) : request.content;
    const choice = chooseCoding(this.host.shape, request.bits, base?.manifest);
    const contentBytes = encodeContent(content);
    const unlock = await this.#stored.lock(this.#key(id), outer);
    let turn: Turn | undefined;
    try {
      const stored = await this.#stored.get(this.#key(id));
      const old = stored && (await this.#tryReadManifest(stored))?.manifest;
      const contentDigest = await sha256(contentBytes);
      // The same messages are the same prompt tomorrow, whatever date their template showed.
      const told = old?.records[CONTENT_RECORD]?.sha256 === contentDigest ? old.renderedAt : Date.now();
      const renderedAt = base?.manifest.renderedAt ?? told;
      const ids = this.#idsOn(base, content, renderedAt);
      const draft = this.#draft(id, content, ids, { renderedAt, ...choice }, base?.manifest);
      const squeeze = this.host.squeezer.isOfUse
        ? squeezeRequest(request, ids.length, base?.manifest)
        : undefined;
      const idBytes = encodeTokens(ids);
      const known = [contentDigest, await sha256(idBytes)];
      if (stored?.info.encrypted === encrypt && old && isSamePrompt(old, draft, choice, squeeze, known)) {
        turn = await this.host.enter(outer);
        const open = yield* this.#tryRestore(stored, turn);
        if (open) {
          const key = this.#keep(open, turn);
          await this.#touch(key, turn);
          return yield* this.#deliver(key, turn);
        }
      }
      const clusterBytes = squeeze ? estimatedClusterBytes(draft.shape, draft.nTokens) : 0;
      await this.#stored.makeRoom(kvBytes(draft.shape, draft.nTokens) + clusterBytes);
      turn ??= await this.host.enter(outer);
      const sequence = await this.#begin(request.on, turn);
      let key: string | undefined;
      try {
        const start = performance.now();
        const isTried = choice.isAutomatic && settledPages(ids.length) > SINK_PAGES;
        const watch = squeeze || isTried ? this.host.squeezer.watch(ids.length, base?.ids.length) : undefined;
        if (watch && watch.before > sequence.ids.length)
          yield* prefillPart(turn, sequence, ids.subarray(0, watch.before), ids.length);
        yield* prefillPart(turn, sequence, ids, ids.length, watch?.queries.observe);
        const prefillSeconds = draft.prefillSeconds + (performance.now() - start) / 1000;
        const squeezed = squeeze && (yield* this.#squeeze(sequence, squeeze, watch!.queries, turn));
        const shape = isTried ? await this.#tryBits(draft, sequence, watch!.queries, turn) : draft.shape;
        const prefilled = { ...draft, shape, prefillSeconds, squeezed: squeezed?.info ?? null };
        const parts = { content: contentBytes, ids: idBytes, clusters: squeezed?.records ?? [] };
        const records = prefilledRecords(parts, prefilled, sequence, this.host);
        const entry = yield* writePrompt(this.#stored, this.#key(id), prefilled, records, encrypt, turn);
        const prompt = await readManifest(this.#stored, entry);
        const release = await this.#stored.hold(entry);
        key = this.#keep({ ...prompt, content, ids, sequence, release }, turn);
      } finally {
        if (key === undefined) sequence.cache.dispose();
      }
      yield* this.#deliver(key, turn);
    } finally {
      turn?.leave();
      unlock();
    }
  }

  /**
   * Restores a stored prompt. `waits`: it is told of when all of its pages are in; else when its text is, and its pages
   * follow. Rejects with `storage-failed`, `cache-mismatch`, `context-full`.
   */
  async *open(id: string, waits: boolean, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const entry = await this.#find(id);
    yield* this.#openEntry(entry, waits, outer);
  }

  /**
   * Stores, encrypted if `encrypt`, and opens what `export` gave, here or elsewhere; a text is the address of such a
   * file. Rejects as `open` does, and with `storage-quota` and `source-failed`.
   */
  async *import(source: Blob | string, encrypt: boolean, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const blob = typeof source === "string" ? yield* download(source, outer) : source;
    const file = await openPromptFile(blob);
    const { manifest } = file;
    this.#assertFits(manifest);
    const key = this.#key(manifest.id);
    const unlock = await this.#stored.lock(key, outer);
    try {
      let entry = await this.#stored.get(key);
      if (entry?.info.encrypted !== encrypt || (await this.#tryReadManifest(entry))?.sha256 !== file.sha256) {
        const record = async (i: number) => {
          const bytes = await file.read(i);
          await assertRecord(manifest, i, bytes);
          return bytes;
        };
        // Before anything is stored, which would take the place of an older prompt.
        const content = decodeContent(await record(CONTENT_RECORD));
        assertTokens(
          manifest.id,
          decodeTokens(await record(TOKENS_RECORD)),
          this.host.encode(pinnedPrompt(content, manifest.renderedAt)),
        );
        await this.#stored.makeRoom(blob.size);
        const records = async function* () {
          for (let i = 0; i < manifest.records.length; i++) {
            outer.throwIfAborted();
            yield await record(i);
          }
        };
        entry = yield* writePrompt(this.#stored, key, manifest, records(), encrypt, { signal: outer });
      }
      yield* this.#openEntry(entry, true, outer);
    } finally {
      unlock();
    }
  }

  /** This model's prompts, most recently used first. */
  async list(): Promise<PinnedInfo[]> {
    const { fingerprint } = this.host.identify();
    const entries = (await this.#stored.list()).filter((entry) => entry.fingerprint === fingerprint);
    return entries.map(({ info }) => info).sort((a, b) => b.usedAt - a.usedAt);
  }

  /** Removes a stored prompt and closes it; false if there is none. */
  async delete(id: string): Promise<boolean> {
    const entry = await this.#stored.get(this.#key(id));
    if (!entry) return false;
    const turn = await this.host.enter(undefined);
    try {
      for (const [key, open] of this.#open)
        if (open.entry.pages === entry.pages) this.#forget(key, turn.context);
    } finally {
      turn.leave();
    }
    await this.#stored.delete(entry);
    return true;
  }

  /** A stored prompt as an `.inlaykv` file, every byte checked. Rejects with `invalid-option` for an encrypted one unless `decrypt`. */
  async export(id: string, decrypt: boolean): Promise<Blob> {
    const entry = await this.#find(id);
    if (entry.info.encrypted && !decrypt)
      throw new InlayError(
        "invalid-option",
        `the prompt ${JSON.stringify(id)} is stored encrypted, and an .inlaykv file is not: whoever has the file can read ` +
          "the prompt; pass decrypt: true if that is meant",
        { option: "decrypt", id },
      );
    const release = await this.#stored.hold(entry);
    try {
      const prompt = await readManifest(this.#stored, entry);
      const records: Blob[] = [];
      // Blobs one by one: a browser may keep them on disk.
      for await (const record of readRecords(prompt, 0, prompt.manifest.records.length))
        records.push(new Blob([record]));
      return promptFile(prompt.head, records, prompt.sha256);
    } finally {
      release();
    }
  }

  /** Ends the use of an open prompt; what is stored stays. */
  async close(key: string): Promise<void> {
    this.#failed.delete(key);
    await this.#end(key);
  }

  /** The ids of a request that continues an open prompt. */
  encode(key: string, prompt: Prompt): Uint32Array {
    const { manifest, content, ids } = this.#get(key);
    const whole = this.host.encode(continuePinned(manifest, content, ids, prompt));
    assertContinues(manifest.id, ids, whole, (part) => this.host.decode(part));
    return whole;
  }

  /**
   * The sequence of an open prompt, restored if its pages went with a lost GPU. A request of more tokens than it has waits
   * for the pages itself; for others they are all in.
   */
  async revive(key: string, nTokens: number, turn: Turn): Promise<Sequence> {
    const open = this.#get(key);
    const { sequences } = turn.context;
    if (!sequences.isShared(open.sequence)) {
      const restored = await resultOf(this.#restore(open, turn));
      restored.release(); // it is held already
      open.sequence = restored.sequence;
      sequences.share(open.sequence);
    }
    if (nTokens <= open.ids.length) await resultOf(arrivalOf(open.sequence, open.manifest, turn.checkpoint));
    return open.sequence;
  }

  /** Lets go of everything stored, once nothing is read or written any more; the caches go with the engine. */
  async dispose(): Promise<void> {
    for (const { release } of this.#open.values()) release();
    this.#open.clear();
    await this.#store?.close();
  }

  get #stored(): PromptStore {
    this.#store ??= this.host.openStore();
    return this.#store;
  }

  #key(id: string): string {
    return `${this.host.identify().fingerprint}/${id}`;
  }

  #get(key: string): OpenPrompt {
    const open = this.#open.get(key);
    if (open) return open;
    const failure = this.#failed.get(key);
    if (failure) throw failure;
    throw new InlayError("disposed", "this pinned prompt was closed or deleted, or belongs to another model");
  }

  async #find(id: string): Promise<PromptEntry> {
    const entry = await this.#stored.get(this.#key(id));
    if (entry) return entry;
    const model = this.host.identify();
    const others = (await this.#stored.list()).filter(({ info }) => info.id === id);
    if (others.length > 0) throw otherModel(id, others[0]!.modelName, model);
    const known = (await this.list()).map((info) => JSON.stringify(info.id));
    throw new InlayError(
      "storage-failed",
      `no prompt is pinned as ${JSON.stringify(id)} for this model; ` +
        (known.length > 0 ? `there are ${known.join(", ")}` : "there is none at all"),
      { id },
    );
  }

  /** The sequence to prefill: empty, or a fork of the open prompt `on`. */
  async #begin(on: string | undefined, turn: Turn): Promise<Sequence> {
    if (on === undefined) return new Sequence(turn.context.sequences.createCache());
    const base = await this.revive(on, 0, turn);
    const fork = new Sequence(base.cache.fork());
    fork.extend(base.ids);
    return fork;
  }

  /** Tokens of a prompt, which go on from those of `base`. Throws `invalid-option` where they do not, `context-full`. */
  #idsOn(base: OpenPrompt | undefined, content: PinnedContent, time: number): Uint32Array {
    const ids = this.host.encode(pinnedPrompt(content, time));
    if (base) assertContinues(base.manifest.id, base.ids, ids, (part) => this.host.decode(part));
    if (ids.length === base?.ids.length)
      throw new InlayError(
        "invalid-option",
        `nothing is to be pinned on the prompt ${JSON.stringify(base.manifest.id)}; there must be at least one token`,
        { option: "on", id: base.manifest.id },
      );
    checkFits(ids.length, this.host.contextLength);
    return ids;
  }

  /** The manifest of a prompt to be computed here, on `base`; its records are not there yet. */
  #draft(
    id: string,
    content: PinnedContent,
    ids: Uint32Array,
    { renderedAt, coding }: { readonly renderedAt: number; readonly coding: PageCoding },
    base: PromptManifest | undefined,
  ): PromptManifest {
    const attention = attentionOf(this.host.plan, ids.length);
    return {
      id,
      model: this.host.identify(),
      raw: content.kind === "text",
      nTokens: ids.length,
      createdAt: Date.now(),
      renderedAt,
      attention: !base || base.attention === attention ? attention : `${base.attention} + ${attention}`,
      prefillSeconds: base?.prefillSeconds ?? 0,
      shape: { ...this.host.shape, ...coding },
      squeezed: null,
      records: [],
    };
  }

  /** undefined for another version, damage, or a lost key. */
  async #tryReadManifest(entry: PromptEntry): Promise<StoredPrompt | undefined> {
    try {
      return await readManifest(this.#stored, entry);
    } catch (error) {
      if (error instanceof InlayError) return undefined;
      throw error;
    }
  }

  /** Throws `cache-mismatch` for a prompt of another model, `context-full` for one that is too long. */
  #assertFits({ id, model, nTokens }: PromptManifest): void {
    const own = this.host.identify();
    if (model.fingerprint !== own.fingerprint) throw otherModel(id, describeModel(model), own);
    checkFits(nTokens, this.host.contextLength);
  }

  async *#openEntry(entry: PromptEntry, waits: boolean, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const turn = await this.host.enter(outer);
    let key: string;
    try {
      const prompt = await readManifest(this.#stored, entry);
      this.#assertFits(prompt.manifest);
      const restored = waits ? yield* this.#restore(prompt, turn) : await this.#beginRestore(prompt, turn);
      key = this.#keep({ ...prompt, ...restored }, turn);
      if (waits) await this.#touch(key, turn);
      yield* this.#deliver(key, turn);
    } finally {
      turn.leave();
    }
    if (!waits) yield* this.#arrive(key, outer);
  }

  /** Brings what no request has brought, and tells how far the pages are. A prompt whose pages cannot be had is closed. */
  async *#arrive(key: string, outer: AbortSignal): AsyncGenerator<PinProgress, void> {
    const { entry, manifest, sequence } = this.#get(key);
    const pages = sequence.cache.companion(ArrivingPages);
    let isDone = false;
    try {
      while (pages && !pages.isComplete) {
        if (!(await this.#bringNext(pages, sequence, outer))) {
          await this.#inTurn(outer, (turn) => this.revive(key, 0, turn)); // unless it was closed
          break;
        }
        yield arrivalProgress(pages, manifest);
      }
      await this.#stored.touch(entry);
      isDone = true;
    } catch (error) {
      if (error instanceof InlayError && error.code !== "disposed") this.#failed.set(key, error);
      throw error;
    } finally {
      if (!isDone) await this.#end(key);
    }
  }

  /** Resolves when one more layer is in, by a request or here; false: the cache was dropped, or went with a lost GPU. */
  async #bringNext(pages: ArrivingPages, { cache }: Sequence, outer: AbortSignal): Promise<boolean> {
    const layer = pages.nArrived;
    const arrived = pages.next();
    const isOver = new AbortController();
    const signal = anySignal(outer, isOver.signal);
    const bring = async ({ checkpoint }: Turn) => {
      if (!pages.isDropped) await pages.bring(layer, cache, checkpoint);
    };
    const brought = abortable(pages.read(), signal).then(() => this.#inTurn(signal, bring));
    try {
      await Promise.race([arrived, brought]);
      return !pages.isDropped;
    } catch (error) {
      const isLost = error instanceof InlayError && error.code === "device-lost";
      if (pages.isDropped || isLost) return false;
      throw error;
    } finally {
      isOver.abort();
      arrived.catch(() => {});
      brought.catch(() => {}); // it gave its turn up
    }
  }

  async #inTurn<T>(signal: AbortSignal | undefined, f: (turn: Turn) => T | Promise<T>): Promise<T> {
    const turn = await this.host.enter(signal);
    try {
      return await f(turn);
    } finally {
      turn.leave();
    }
  }

  /** Restores, or tells by undefined that the stored bytes are missing or damaged. */
  async *#tryRestore(entry: PromptEntry, turn: Turn): AsyncGenerator<PinProgress, OpenPrompt | undefined> {
    try {
      const prompt = await readManifest(this.#stored, entry);
      return { ...prompt, ...(yield* this.#restore(prompt, turn)) };
    } catch (error) {
      if (error instanceof InlayError && error.code === "storage-failed") return undefined;
      throw error;
    }
  }

  async *#restore(prompt: StoredPrompt, turn: Turn): AsyncGenerator<PinProgress, Restored> {
    const restored = await this.#beginRestore(prompt, turn);
    let isDone = false;
    try {
      yield* arrivalOf(restored.sequence, prompt.manifest, turn.checkpoint);
      isDone = true;
      return restored;
    } finally {
      if (!isDone) {
        restored.sequence.cache.dispose();
        restored.release();
      }
    }
  }

  /** Begins to restore, from the pages of an open prompt where that is the same. */
  async #beginRestore(prompt: StoredPrompt, turn: Turn): Promise<Restored> {
    const { sequences } = turn.context;
    const twin = [...this.#open.values()].find(
      ({ entry, sequence }) => entry.pages === prompt.entry.pages && sequences.isShared(sequence),
    );
    if (twin) await resultOf(arrivalOf(twin.sequence, twin.manifest, turn.checkpoint));
    return beginRestore(prompt, this.host, twin?.sequence, turn);
  }

  /** Sorts a prefilled prompt's tokens by the clusters of their keys. */
  async *#squeeze(
    { cache }: Sequence,
    request: SqueezeRequest,
    queries: WindowQueries,
    { checkpoint }: Turn,
  ): AsyncGenerator<PinProgress, Squeezed> {
    const layers = this.host.squeezer.squeeze(cache, request, queries, checkpoint);
    for (;;) {
      const step = await layers.next();
      if (step.done) return step.value;
      yield progress("cluster", step.value, this.host.shape.nLayers);
    }
  }

  /** How a prefilled prompt is to be stored; makes room for heads that take more than 2 bits. */
  async #tryBits(
    { shape, nTokens }: PromptManifest,
    { cache }: Sequence,
    queries: WindowQueries,
    { checkpoint }: Turn,
  ): Promise<PromptShape> {
    const wide = await this.host.bitsChooser.wideHeads(cache, queries, checkpoint);
    const tried = { ...shape, wide };
    if (wide.length > 0) await this.#stored.makeRoom(kvBytes(tried, nTokens));
    return tried;
  }

  /** Notes that an open prompt is used; closes it if that fails. */
  async #touch(key: string, { context }: Turn): Promise<void> {
    try {
      await this.#stored.touch(this.#get(key).entry);
    } catch (error) {
      this.#forget(key, context);
      throw error;
    }
  }

  /** Makes a restored prompt an open one; returns its key. */
  #keep(open: OpenPrompt, { context }: Turn): string {
    const key = `${open.entry.pages}:${++this.#nOpened}`;
    context.sequences.share(open.sequence);
    this.#open.set(key, open);
    return key;
  }

  /** Tells of an open prompt; closes it if nobody is there any more to hear it. */
  async *#deliver(key: string, turn: Turn): AsyncGenerator<PinEvent, void> {
    let isDelivered = false;
    try {
      yield { kind: "pinned", key, info: this.#get(key).entry.info };
      isDelivered = true;
    } finally {
      if (!isDelivered) this.#forget(key, turn.context);
    }
  }

  async #end(key: string): Promise<void> {
    if (this.#open.has(key)) await this.#inTurn(undefined, ({ context }) => this.#forget(key, context));
  }

  #forget(key: string, { sequences }: GenerateContext): void {
    const open = this.#open.get(key);
    if (!open) return;
    this.#open.delete(key);
    sequences.unshare(open.sequence);
    open.release();
  }
}

/** Prefills `ids`, the first of a prompt's `total` tokens. */
async function* prefillPart(
  { context, checkpoint }: Turn,
  sequence: Sequence,
  ids: Uint32Array,
  total: number,
  observer?: AttentionObserver,
): AsyncGenerator<PinProgress, void> {
  for await (const event of prefillInto(context, sequence, ids, checkpoint, observer))
    if (event.kind === "prefill") yield progress("prefill", event.loaded, total);
}

function otherModel(id: string, stored: string, own: ModelIdentity): InlayError {
  return new InlayError(
    "cache-mismatch",
    `the prompt ${JSON.stringify(id)} was pinned for the model ${stored}; this is ${describeModel(own)}: pin it again ` +
      "for this model",
    { id, pinnedFor: stored, model: describeModel(own) },
  );
}

/** What a generator returns, whatever it yields before. */
async function resultOf<T>(generator: AsyncGenerator<unknown, T>): Promise<T> {
  for (;;) {
    const step = await generator.next();
    if (step.done) return step.value;
  }
}
