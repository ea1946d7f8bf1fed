/** Reading a stored prompt, every byte checked: into a cache, layer by layer, or record by record. */

import { KeyFeatures } from "../attention/key-features.ts";
import { Sequence, withRoom } from "../engine/sequences.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { type InlayError, internalError } from "../errors.ts";
import { ArrivingPages, type LayerSource } from "../kv/arriving-pages.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import { sha256 } from "../storage/digest.ts";
import type { Bytes, PromptEntry, PromptStore } from "../storage/prompt-store.ts";
import { decodeContent, decodeTokens, type PinnedContent } from "./content.ts";
import { manifestDamaged, readHead } from "./file.ts";
import {
  CONTENT_RECORD,
  coldFormat,
  damaged,
  FIRST_KV_RECORD,
  firstSqueezedRecord,
  type KvRecord,
  kvBytes,
  kvRecords,
  type PromptManifest,
} from "./manifest.ts";
import type { PageFeatures } from "./page-features.ts";
import { PageTransfer } from "./page-transfer.ts";
import { type PinProgress, progress } from "./pin-events.ts";
import { featuresOf, type PinHost, type Turn } from "./pin-host.ts";
import { keyGone, type Seal, sealOf } from "./seal.ts";

/** Read from the store at a time, about, and how many times ahead of what is used. */
const READ_BYTES = 2 << 20;
const READ_AHEAD = 4;

/** A prompt in a store, its manifest read. */
export interface StoredPrompt {
  readonly store: PromptStore;
  readonly entry: PromptEntry;
  readonly manifest: PromptManifest;
  /** The head of its file, and the SHA-256 of that: those of the entry, in the clear. */
  readonly head: Bytes;
  readonly sha256: string;
  /** What its records are encrypted with, if they are. */
  readonly seal: Seal | undefined;
}

/** A prompt in a cache, in which its pages may still be arriving, and held in its store. */
export interface Restored {
  readonly content: PinnedContent;
  readonly ids: Uint32Array;
  readonly sequence: Sequence;
  /** Lets others remove the stored bytes. */
  release(): void;
}

/** Reads the manifest. Rejects with `cache-mismatch` for another version, `storage-failed` for damage and a lost key. */
export async function readManifest(store: PromptStore, entry: PromptEntry): Promise<StoredPrompt> {
  const seal = await sealOf(store, entry);
  let { head, sha256: digest } = entry;
  if (seal) {
    if ((await sha256(head)) !== digest) throw manifestDamaged();
    const opened = await seal.open("head", head);
    if (!opened) throw keyGone(entry); // whole, yet of another key or another entry
    head = opened;
    digest = await sha256(opened);
  }
  return { store, entry, manifest: await readHead(head, digest), head, sha256: digest, seal };
}

/**
 * Begins to read a stored prompt into a cache of its own: text, tokens and clusters are there then, and the pages arrive. `twin`:
 * a cache that has its pages already, which are shared then.
 */
export async function beginRestore(
  prompt: StoredPrompt,
  host: PinHost,
  twin: Sequence | undefined,
  { context: { sequences } }: Pick<Turn, "context">,
): Promise<Restored> {
  const { store, entry, manifest } = prompt;
  const { shape, nTokens } = manifest;
  const release = await store.hold(entry);
  const sequence = new Sequence(twin ? twin.cache.fork() : sequences.createCache());
  const { cache } = sequence;
  let isDone = false;
  try {
    const firstSqueezed = firstSqueezedRecord(manifest);
    const head = readChecked(prompt, CONTENT_RECORD, FIRST_KV_RECORD);
    const pages = twin ? undefined : readRecords(prompt, FIRST_KV_RECORD, firstSqueezed);
    const clusters =
      manifest.squeezed && !twin ? readChecked(prompt, firstSqueezed, manifest.records.length) : [];
    const [[contentBytes, idBytes], layers] = await Promise.all([head, clusters]);
    const content = decodeContent(contentBytes!);
    const ids = decodeTokens(idBytes!);
    sequence.extend(ids);
    if (pages) {
      await withRoom(sequences, async () => cache.reserveCoded(nTokens, coldFormat(shape)));
      const features = featuresOf(host, manifest);
      if (features) cache.attach(features.features);
      if (manifest.squeezed) cache.attach(host.squeezer.prefix(manifest, manifest.squeezed, layers));
      const transfer = new PageTransfer(cache, manifest, host.pages);
      ArrivingPages.expect(cache, nTokens, new StoredLayers(manifest, pages, transfer, features));
    }
    isDone = true;
    return { content, ids, sequence, release };
  } finally {
    if (!isDone) {
      cache.dispose();
      release();
    }
  }
}

/** Waits for the pages that still arrive in a cache; yields how far they are. */
export async function* arrivalOf(
  { cache }: Sequence,
  { shape, nTokens }: PromptManifest,
  checkpoint: Checkpoint,
): AsyncGenerator<PinProgress, void> {
  const pages = cache.isComplete ? undefined : cache.companion(ArrivingPages);
  while (pages && !pages.isComplete) {
    await pages.bring(pages.nArrived, cache, checkpoint);
    await checkpoint.pass();
    yield arrivalProgress(pages, { shape, nTokens });
  }
}

/** How far they are, in bytes. */
export function arrivalProgress(
  { nArrived }: ArrivingPages,
  { shape, nTokens }: Pick<PromptManifest, "shape" | "nTokens">,
): PinProgress {
  const total = kvBytes(shape, nTokens);
  return progress("restore", (total / shape.nLayers) * nArrived, total);
}

/** The pages of a stored prompt, layer by layer. */
class StoredLayers implements LayerSource {
  readonly nLayers: number;
  readonly #layers: readonly (readonly KvRecord[])[];
  #next = 0;
  /** Those of the next layer. */
  #read: Promise<Bytes[]> | undefined;

  /** `records`: of all pages, in order. */
  constructor(
    { shape, nTokens }: PromptManifest,
    private readonly records: AsyncGenerator<Bytes, void>,
    private readonly transfer: PageTransfer,
    private readonly features: PageFeatures | undefined,
  ) {
    this.nLayers = shape.nLayers;
    const layers: KvRecord[][] = Array.from({ length: shape.nLayers }, () => []);
    for (const record of kvRecords(shape, nTokens)) layers[record.layer]!.push(record);
    this.#layers = layers;
    this.read().catch(() => {}); // it counts when it is waited for
  }

  read(): Promise<Bytes[]> {
    this.#read ??= this.#readLayer(this.#layers[this.#next]!.length);
    return this.#read;
  }

  async write(fork: PagedCache | undefined): Promise<void> {
    const bytes = await this.read();
    for (const [i, record] of this.#layers[this.#next]!.entries()) {
      await this.transfer.give(record, bytes[i]!, fork);
      this.features?.add(record, bytes[i]!);
    }
    if (this.features) fork?.companion(KeyFeatures)?.takeLayer(this.#next, this.features.features);
    this.#next++;
    this.#read = undefined;
  }

  /** What is being read is not waited for. */
  end(): void {
    void this.records.return();
  }

  async #readLayer(nRecords: number): Promise<Bytes[]> {
    const bytes: Bytes[] = [];
    while (bytes.length < nRecords) {
      const { value, done } = await this.records.next();
      if (done) throw internalError("the pages of a pinned prompt ended early");
      bytes.push(value);
    }
    return bytes;
  }
}

/** Records [from, to), every byte checked; while some are used the next are read. */
export async function* readRecords(
  prompt: StoredPrompt,
  from: number,
  to: number,
): AsyncGenerator<Bytes, void> {
  const { records } = prompt.manifest;
  const parts: Promise<Bytes[]>[] = [];
  for (let next = from; ; ) {
    while (next < to && parts.length < READ_AHEAD) {
      const first = next;
      for (let bytes = 0; next < to && bytes < READ_BYTES; next++) bytes += records[next]!.byteLength;
      const checked = readChecked(prompt, first, next);
      checked.catch(() => {}); // it counts when it is waited for
      parts.push(checked);
    }
    const part = parts.shift();
    if (!part) return;
    yield* await part;
  }
}

/** Records [from, to). Rejects with `storage-failed` for what is missing or damaged. */
async function readChecked(
  { store, entry, manifest, seal }: StoredPrompt,
  from: number,
  to: number,
): Promise<Bytes[]> {
  const records = await store.read(entry, from, to);
  const { id } = manifest;
  return Promise.all(
    records.map(async (stored, i) => {
      const record = from + i;
      if (!stored)
        throw damaged(`record ${record} of the pinned prompt ${JSON.stringify(id)} is missing`, {
          id,
          record,
          records: manifest.records.length,
        });
      if (seal) {
        // What opens is what was closed, to the last bit: no checksum could say more.
        const bytes = await seal.open(record, stored);
        if (!bytes) throw damagedRecord(manifest, record);
        return bytes;
      }
      await assertRecord(manifest, record, stored);
      return stored;
    }),
  );
}

/** Rejects with `storage-failed` for bytes that are not those of record `i`. */
export async function assertRecord(manifest: PromptManifest, i: number, bytes: Bytes): Promise<void> {
  const expected = manifest.records[i]!;
  if (bytes.byteLength === expected.byteLength && (await sha256(bytes)) === expected.sha256) return;
  throw damagedRecord(manifest, i);
}

function damagedRecord({ id, records }: PromptManifest, record: number): InlayError {
  const details = { id, record, records: records.length };
  return damaged(`record ${record} of the pinned prompt ${JSON.stringify(id)} is damaged`, details);
}
