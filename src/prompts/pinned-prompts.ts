/**
 * The pinned prompts of one engine: made, restored, opened, handed on as files.
 *
 * An open prompt is a sequence that the SequenceStore shares: a request that names it finds its pages like any other
 * common prefix, forks them, and computes only what follows.
 */

import type { AttentionObserver } from "../attention/observer.ts";
import type { PageConverter } from "../backend/wasm/page-converter.ts";
import { Sequence, withRoom } from "../engine/sequences.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { InlayError } from "../errors.ts";
import { checkFits, type GenerateContext, prefillInto } from "../generate/generate.ts";
import type { Prompt } from "../generate/request.ts";
import { httpSource } from "../gguf/http-source.ts";
import { CODE_BITS } from "../kv/quantize.ts";
import type { RopeSpec } from "../model/rope.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import { sha256 } from "../storage/digest.ts";
import type { Bytes, PinnedInfo, PromptEntry, PromptStore, PromptWriter } from "../storage/prompt-store.ts";
import {
  assertContinues,
  continuePinned,
  decodeContent,
  encodeContent,
  type PinnedContent,
  pinnedPrompt,
} from "./content.ts";
import { openPromptFile, promptFile, readHead, writeHead } from "./file.ts";
import {
  damaged,
  describeModel,
  FIRST_KV_RECORD,
  firstSqueezedRecord,
  kvBytes,
  kvRecords,
  type ModelIdentity,
  type PageCoding,
  type PromptManifest,
  type PromptShape,
  type RecordInfo,
} from "./manifest.ts";
import { PageFeatures } from "./page-features.ts";
import { PageTransfer } from "./page-transfer.ts";
import { LEAST_SQUEEZED_TOKENS, type Squeezed, type SqueezeRequest, type Squeezer } from "./squeeze.ts";
import type { WindowQueries } from "./window-queries.ts";

/** What is told while a prompt is pinned, opened or imported: progress, then the open prompt, once. */
export type PinEvent =
  | {
      readonly kind: "progress";
      /** "prefill" counts tokens, "cluster" layers, the others count bytes. */
      readonly phase: "prefill" | "download" | "cluster" | "store" | "restore";
      readonly loaded: number;
      readonly total: number;
    }
  | { readonly kind: "pinned"; readonly key: string; readonly info: PinnedInfo };

type PinProgress = Extract<PinEvent, { kind: "progress" }>;

/** Bits per element of a stored key or value; 16: not quantized, stored as the cache has them. */
export type PinBits = 2 | 4 | 8 | 16;

/** What is to be pinned. */
export interface PinRequest {
  readonly id: string;
  readonly content: PinnedContent;
  /** undefined: as the cache quantizes its pages, or DEFAULT_BITS where it does not. */
  readonly bits: PinBits | undefined;
  /** Share of its keys that answers leave out, 0 to below 1; undefined: DEFAULT_SPARSITY for long prompts, 0 for others. */
  readonly sparsity?: number | undefined;
  /** See SqueezedOptions. @default 1 */
  readonly maxMissing?: number | undefined;
}

const DEFAULT_SPARSITY = 0.9;
/** From this many tokens on, looking clusters up is worth it by itself (bench/REPORT.md). */
const SQUEEZED_FROM = 4096;

const DEFAULT_BITS = 4;

/** Read from the store at a time, about. */
const READ_BYTES = 4 << 20;

/** One's turn in the engine's queue. */
export interface Turn {
  readonly context: GenerateContext;
  readonly checkpoint: Checkpoint;
  readonly signal: AbortSignal;
  leave(): void;
}

/** What pinned prompts need of the engine. */
export interface PinHost {
  openStore(): PromptStore;
  /** Rejects with `unsupported-environment` where models have no fingerprint. */
  identify(): ModelIdentity;
  /** How caches keep their pages: `cold` is what they quantize them to by themselves. */
  readonly shape: PromptShape;
  /** How prompts are attended to. */
  readonly plan: AttentionPlan;
  readonly rope: RopeSpec;
  readonly pages: PageConverter;
  readonly squeezer: Squeezer;
  readonly contextLength: number;
  encode(prompt: Prompt): Uint32Array;
  decode(ids: Uint32Array): string;
  enter(signal: AbortSignal | undefined): Promise<Turn>;
}

interface OpenPrompt {
  readonly entry: PromptEntry;
  readonly manifest: PromptManifest;
  readonly content: PinnedContent;
  readonly ids: Uint32Array;
  /** Dropped by the store when its GPU was lost; then it is restored again. */
  sequence: Sequence;
  /** Lets others remove the stored bytes. */
  release(): void;
}

/** A prompt read into a cache and held in the store, not yet open. */
type Restored = Pick<OpenPrompt, "content" | "ids" | "sequence" | "release">;

export class PinnedPrompts {
  readonly #open = new Map<string, OpenPrompt>();
  #store: PromptStore | undefined;
  #nOpened = 0;

  constructor(private readonly host: PinHost) {}

  /** Prefills and stores a prompt, or opens it if just this one is stored under the id. Replaces another one. */
  async *pin(request: PinRequest, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const { id, content, bits } = request;
    const ids = this.host.encode(pinnedPrompt(content));
    checkFits(ids.length, this.host.contextLength);
    const draft = this.#draft(id, content, ids, this.#coding(bits));
    const squeeze = this.host.squeezer.isOfUse ? squeezeRequest(request, ids.length) : undefined;
    const contentBytes = encodeContent(content);
    const idBytes = bytesOf(ids);
    const unlock = await this.#stored.lock(this.#key(id), outer);
    let turn: Turn | undefined;
    try {
      const stored = await this.#stored.get(this.#key(id));
      const known = [await sha256(contentBytes), await sha256(idBytes)];
      if (stored && (await this.#isSame(stored, draft, squeeze, known))) {
        turn = await this.host.enter(outer);
        const restored = yield* this.#tryRestore(stored, turn);
        if (restored) return yield* this.#deliver(await this.#keep(stored, restored, turn), turn);
      }
      await this.#stored.makeRoom(kvBytes(draft.shape, draft.nTokens));
      turn ??= await this.host.enter(outer);
      const sequence = new Sequence(turn.context.sequences.createCache());
      let key: string | undefined;
      try {
        const start = performance.now();
        const watch = squeeze && this.host.squeezer.watch(ids.length);
        if (watch) yield* prefillPart(turn, sequence, ids.subarray(0, watch.before), ids.length);
        yield* prefillPart(turn, sequence, ids, ids.length, watch?.queries.observe);
        const prefillSeconds = (performance.now() - start) / 1000;
        const squeezed = watch && (yield* this.#squeeze(sequence, squeeze!, watch.queries, turn));
        const prefilled = { ...draft, prefillSeconds, squeezed: squeezed?.info ?? null };
        const records = this.#records(contentBytes, idBytes, prefilled, sequence, squeezed?.records ?? []);
        const entry = yield* this.#write(prefilled, records, turn);
        const release = await this.#stored.hold(entry);
        key = await this.#keep(entry, { content, ids, sequence, release }, turn);
      } finally {
        if (key === undefined) sequence.cache.dispose();
      }
      yield* this.#deliver(key, turn);
    } finally {
      turn?.leave();
      unlock();
    }
  }

  /** Restores a stored prompt. Rejects with `storage-failed`, `cache-mismatch`, `context-full`. */
  async *open(id: string, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const entry = await this.#find(id);
    yield* this.#openEntry(entry, outer);
  }

  /**
   * Stores and opens what `export` gave, here or elsewhere; a text is the address of such a file. Rejects as `open` does,
   * and with `storage-quota` and `source-failed`.
   */
  async *import(source: Blob | string, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const blob = typeof source === "string" ? yield* download(source, outer) : source;
    const file = await openPromptFile(blob);
    const { manifest } = file;
    this.#assertFits(manifest);
    const key = this.#key(manifest.id);
    const unlock = await this.#stored.lock(key, outer);
    try {
      let entry = await this.#stored.get(key);
      if (entry?.sha256 !== file.sha256) {
        await this.#stored.makeRoom(blob.size);
        const records = async function* () {
          for (let i = 0; i < manifest.records.length; i++) {
            outer.throwIfAborted();
            const bytes = await file.read(i);
            await assertRecord(manifest, i, bytes);
            yield bytes;
          }
        };
        entry = yield* this.#write(manifest, records(), { signal: outer });
      }
      yield* this.#openEntry(entry, outer);
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

  /** A stored prompt as an `.inlaykv` file, every byte checked. */
  async export(id: string): Promise<Blob> {
    const entry = await this.#find(id);
    const release = await this.#stored.hold(entry);
    try {
      const manifest = await readHead(entry.head, entry.sha256);
      const records: Blob[] = [];
      // Blobs one by one: a browser may keep them on disk.
      for await (const record of this.#readRecords(entry, manifest, manifest.records.length))
        records.push(new Blob([record]));
      return promptFile(entry.head, records, entry.sha256);
    } finally {
      release();
    }
  }

  /** Ends the use of an open prompt; what is stored stays. */
  async close(key: string): Promise<void> {
    if (!this.#open.has(key)) return;
    const turn = await this.host.enter(undefined);
    this.#forget(key, turn.context);
    turn.leave();
  }

  /** The ids of a request that continues an open prompt. */
  encode(key: string, prompt: Prompt): Uint32Array {
    const { entry, content, ids } = this.#get(key);
    const { id } = entry.info;
    const whole = this.host.encode(continuePinned(id, content, ids, prompt));
    assertContinues(id, ids, whole, (part) => this.host.decode(part));
    return whole;
  }

  /** Restores an open prompt whose pages went with a lost GPU. */
  async revive(key: string, turn: Turn): Promise<void> {
    const open = this.#get(key);
    const { sequences } = turn.context;
    if (sequences.isShared(open.sequence)) return;
    const restoring = this.#restore(open.entry, open.manifest, turn);
    let step = await restoring.next();
    while (!step.done) step = await restoring.next();
    step.value.release(); // it is held already
    open.sequence = step.value.sequence;
    sequences.share(open.sequence);
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

  /** The manifest of a prompt to be computed here; its records are not there yet. */
  #draft(id: string, content: PinnedContent, ids: Uint32Array, coding: PageCoding): PromptManifest {
    return {
      id,
      model: this.host.identify(),
      raw: content.kind === "text",
      nTokens: ids.length,
      createdAt: Date.now(),
      attention: attentionOf(this.host.plan, ids.length),
      prefillSeconds: 0,
      shape: { ...this.host.shape, ...coding },
      squeezed: null,
      records: [],
    };
  }

  /** Throws `invalid-option` for bits that a cache which quantizes by itself does not have. */
  #coding(bits: PinBits | undefined): PageCoding {
    const { format, cold } = this.host.shape;
    if (cold !== null) {
      if (bits === undefined || CODE_BITS[cold] === bits) return { format, cold };
      throw new InlayError(
        "invalid-option",
        `bits is ${bits}, and this model's kvCache.format ${JSON.stringify(cold)} has ${CODE_BITS[cold]} already: leave ` +
          "bits out, or load the model with another kvCache.format",
        { option: "bits", value: bits, kvCache: cold },
      );
    }
    const wanted = bits ?? DEFAULT_BITS;
    return wanted === 16 ? { format, cold } : { format: "f16", cold: `q${wanted}` };
  }

  /** Whether just this prompt is stored: same text and tokens, computed in the same way. */
  async #isSame(
    entry: PromptEntry,
    draft: PromptManifest,
    squeeze: SqueezeRequest | undefined,
    known: readonly string[],
  ): Promise<boolean> {
    let manifest: PromptManifest;
    try {
      manifest = await readHead(entry.head, entry.sha256);
    } catch (error) {
      if (error instanceof InlayError) return false; // another version, or damaged: it is computed again
      throw error;
    }
    return (
      manifest.attention === draft.attention &&
      manifest.shape.format === draft.shape.format &&
      manifest.shape.cold === draft.shape.cold &&
      manifest.squeezed?.sparsity === squeeze?.sparsity &&
      manifest.squeezed?.maxMissing === squeeze?.maxMissing &&
      known.every((digest, i) => manifest.records[i]!.sha256 === digest)
    );
  }

  /** Throws `cache-mismatch` for a prompt of another model, `context-full` for one that is too long. */
  #assertFits({ id, model, nTokens }: PromptManifest): void {
    const own = this.host.identify();
    if (model.fingerprint !== own.fingerprint) throw otherModel(id, describeModel(model), own);
    checkFits(nTokens, this.host.contextLength);
  }

  async *#openEntry(entry: PromptEntry, outer: AbortSignal): AsyncGenerator<PinEvent, void> {
    const turn = await this.host.enter(outer);
    try {
      const manifest = await readHead(entry.head, entry.sha256);
      this.#assertFits(manifest);
      const restored = yield* this.#restore(entry, manifest, turn);
      yield* this.#deliver(await this.#keep(entry, restored, turn), turn);
    } finally {
      turn.leave();
    }
  }

  /** Restores, or tells by undefined that the stored bytes are missing or damaged. */
  async *#tryRestore(entry: PromptEntry, turn: Turn): AsyncGenerator<PinProgress, Restored | undefined> {
    try {
      return yield* this.#restore(entry, await readHead(entry.head, entry.sha256), turn);
    } catch (error) {
      if (error instanceof InlayError && error.code === "storage-failed") return undefined;
      throw error;
    }
  }

  /** Reads a stored prompt into a cache of its own, in the order of its layers, every byte checked. */
  async *#restore(
    entry: PromptEntry,
    manifest: PromptManifest,
    turn: Turn,
  ): AsyncGenerator<PinProgress, Restored> {
    const { sequences } = turn.context;
    const { shape, nTokens } = manifest;
    const twin = [...this.#open.values()].find((open) => open.entry.pages === entry.pages);
    const isHere = twin && sequences.isShared(twin.sequence);
    const release = await this.#stored.hold(entry);
    const sequence = new Sequence(isHere ? twin.sequence.cache.fork() : sequences.createCache());
    const { cache } = sequence;
    let isDone = false;
    try {
      const records = this.#readRecords(
        entry,
        manifest,
        isHere ? FIRST_KV_RECORD : firstSqueezedRecord(manifest),
      );
      const next = async () => (await records.next()).value as Bytes;
      const content = decodeContent(await next());
      const ids = idsOf(await next());
      if (!isHere) {
        await withRoom(sequences, async () => cache.reserveCoded(nTokens, shape.cold ?? undefined));
        const transfer = new PageTransfer(cache, manifest, this.host.pages);
        const features = this.#featuresOf(manifest);
        if (features) cache.attach(features.features);
        const first = firstSqueezedRecord(manifest);
        const clusters = await this.#readChecked(entry, manifest, first, manifest.records.length);
        const prefix = this.host.squeezer.prefix(manifest, clusters);
        if (prefix) cache.attach(prefix);
        const total = kvBytes(shape, nTokens);
        let loaded = 0;
        for (const record of kvRecords(shape, nTokens)) {
          await turn.checkpoint.pass();
          const bytes = await next();
          await transfer.give(record, bytes);
          features?.add(record, bytes);
          loaded += record.byteLength;
          yield progress("restore", loaded, total);
        }
        cache.commit(nTokens);
      }
      sequence.extend(ids);
      isDone = true;
      return { content, ids, sequence, release };
    } finally {
      if (!isDone) {
        cache.dispose();
        release();
      }
    }
  }

  /** The first `n` records, every byte checked; while some are used the next are read. */
  async *#readRecords(entry: PromptEntry, manifest: PromptManifest, n: number): AsyncGenerator<Bytes, void> {
    const read = (from: number) => {
      let to = from;
      for (let bytes = 0; to < n && bytes < READ_BYTES; to++) bytes += manifest.records[to]!.byteLength;
      const records = this.#readChecked(entry, manifest, from, to);
      records.catch(() => {}); // it counts when it is waited for
      return { to, records };
    };
    for (let part = read(0); ; ) {
      const records = await part.records;
      const isLast = part.to === n;
      if (!isLast) part = read(part.to);
      yield* records;
      if (isLast) return;
    }
  }

  /** Records [from, to). Rejects with `storage-failed` for what is missing or damaged. */
  async #readChecked(
    entry: PromptEntry,
    manifest: PromptManifest,
    from: number,
    to: number,
  ): Promise<Bytes[]> {
    const records = await this.#stored.read(entry, from, to);
    const { id } = manifest;
    return Promise.all(
      records.map(async (bytes, i) => {
        const record = from + i;
        const details = { id, record, records: manifest.records.length };
        if (!bytes)
          throw damaged(`record ${record} of the pinned prompt ${JSON.stringify(id)} is missing`, details);
        await assertRecord(manifest, record, bytes);
        return bytes;
      }),
    );
  }

  /** What is remembered of a prompt's keys; undefined where no policy asks. */
  #featuresOf(manifest: PromptManifest): PageFeatures | undefined {
    const { plan, rope, pages } = this.host;
    return plan.features && new PageFeatures(plan.features, manifest, rope, pages);
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

  /**
   * The records of a prefilled prompt. It becomes what a restored one would be: pages as stored, features of those, clusters
   * as in `clusters`.
   */
  async *#records(
    content: Bytes,
    ids: Bytes,
    draft: PromptManifest,
    { cache }: Sequence,
    clusters: readonly Bytes[],
  ): AsyncGenerator<Bytes, void> {
    const { shape, nTokens } = draft;
    if (shape.cold) cache.quantize(shape.cold);
    yield content;
    yield ids;
    const transfer = new PageTransfer(cache, draft, this.host.pages);
    const features = this.#featuresOf(draft);
    for (const record of kvRecords(shape, nTokens)) {
      const bytes = await transfer.take(record);
      features?.add(record, bytes);
      yield bytes;
    }
    if (features) cache.replaceCompanion(features.features);
    const prefix = this.host.squeezer.prefix(draft, clusters);
    if (prefix) cache.replaceCompanion(prefix);
    yield* clusters;
  }

  /** Stores records, then the entry that names them. The result is held by nobody yet. */
  async *#write(
    draft: PromptManifest,
    records: AsyncGenerator<Bytes, void>,
    { signal }: Pick<Turn, "signal">,
  ): AsyncGenerator<PinProgress, PromptEntry> {
    const writer: PromptWriter = await this.#stored.startWriting();
    try {
      const written: RecordInfo[] = [];
      const total = kvBytes(draft.shape, draft.nTokens);
      let byteLength = 0;
      for await (const record of records) {
        signal.throwIfAborted();
        written.push({ byteLength: record.byteLength, sha256: await sha256(record) });
        byteLength += record.byteLength;
        await writer.write(record);
        yield progress("store", Math.min(byteLength, total), total);
      }
      const manifest: PromptManifest = { ...draft, records: written };
      const { head, sha256: digest } = await writeHead(manifest);
      const { id, nTokens: tokens, raw, createdAt, model, shape, attention, prefillSeconds } = manifest;
      const info = {
        id,
        tokens,
        bits: bitsOf(shape),
        sparsity: manifest.squeezed?.sparsity ?? 0,
        attention,
        prefillSeconds,
        raw,
        createdAt,
        usedAt: Date.now(),
        byteLength: byteLength + head.byteLength,
      };
      const { fingerprint } = model;
      const modelName = describeModel(model);
      const entry = {
        key: this.#key(id),
        fingerprint,
        modelName,
        pages: writer.pages,
        info,
        head,
        sha256: digest,
      };
      await writer.commit(entry);
      return entry;
    } finally {
      await writer.close();
    }
  }

  /** Makes a restored prompt an open one; returns its key. */
  async #keep(entry: PromptEntry, restored: Restored, { context }: Turn): Promise<string> {
    try {
      const manifest = await readHead(entry.head, entry.sha256);
      await this.#stored.touch(entry);
      const key = `${entry.pages}:${++this.#nOpened}`;
      context.sequences.share(restored.sequence);
      this.#open.set(key, { entry, manifest, ...restored });
      return key;
    } catch (error) {
      restored.sequence.cache.dispose();
      restored.release();
      throw error;
    }
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

  #forget(key: string, { sequences }: GenerateContext): void {
    const open = this.#open.get(key);
    if (!open) return;
    this.#open.delete(key);
    sequences.unshare(open.sequence);
    open.release();
  }
}

/** How the prompt of a request is to be squeezed; undefined: not at all. */
function squeezeRequest(
  { sparsity, maxMissing = 1 }: PinRequest,
  nTokens: number,
): SqueezeRequest | undefined {
  const wanted = sparsity ?? (nTokens < SQUEEZED_FROM ? 0 : DEFAULT_SPARSITY);
  return wanted > 0 && nTokens >= LEAST_SQUEEZED_TOKENS ? { sparsity: wanted, maxMissing } : undefined;
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

/** The bits of most elements. */
function bitsOf({ format, cold }: PageCoding): number {
  if (cold !== null) return CODE_BITS[cold];
  return format === "f32" ? 32 : 16;
}

/** How a prompt of `nTokens` is attended to: "dense", or a policy and the share of the keys that it reads. */
function attentionOf({ policy, budget }: AttentionPlan, nTokens: number): string {
  const isDense = policy.name === "dense" || nTokens <= budget.denseBelow;
  return isDense ? "dense" : `${policy.name} ${budget.fraction}`;
}

/** The file behind an absolute URL. */
async function* download(url: string, signal: AbortSignal): AsyncGenerator<PinProgress, Blob> {
  const source = httpSource(new URL(url));
  const parts: Blob[] = [];
  let loaded = 0;
  for await (const chunk of source.open(0, signal)) {
    // A browser may keep blobs on disk.
    parts.push(new Blob([chunk as Bytes]));
    loaded += chunk.byteLength;
    yield progress("download", loaded, source.size ?? loaded);
  }
  return new Blob(parts);
}

function progress(phase: PinProgress["phase"], loaded: number, total: number): PinProgress {
  return { kind: "progress", phase, loaded, total };
}

async function assertRecord(manifest: PromptManifest, i: number, bytes: Bytes): Promise<void> {
  const expected = manifest.records[i]!;
  if (bytes.byteLength === expected.byteLength && (await sha256(bytes)) === expected.sha256) return;
  throw damaged(`record ${i} of the pinned prompt ${JSON.stringify(manifest.id)} is damaged`, {
    id: manifest.id,
    record: i,
    records: manifest.records.length,
  });
}

function otherModel(id: string, stored: string, own: ModelIdentity): InlayError {
  return new InlayError(
    "cache-mismatch",
    `the prompt ${JSON.stringify(id)} was pinned for the model ${stored}; this is ${describeModel(own)}: pin it again ` +
      "for this model",
    { id, pinnedFor: stored, model: describeModel(own) },
  );
}

/** Little-endian, as every machine that runs WebAssembly in practice is. */
function bytesOf(ids: Uint32Array): Bytes {
  return new Uint8Array(ids.slice().buffer);
}

function idsOf(bytes: Bytes): Uint32Array {
  return new Uint32Array(bytes.slice().buffer);
}
