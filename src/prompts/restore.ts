/** Reading a stored prompt, every byte checked: into a cache, or record by record. */

import { Sequence, withRoom } from "../engine/sequences.ts";
import type { InlayError } from "../errors.ts";
import { sha256 } from "../storage/digest.ts";
import type { Bytes, PromptEntry, PromptStore } from "../storage/prompt-store.ts";
import { decodeContent, type PinnedContent } from "./content.ts";
import { manifestDamaged, readHead } from "./file.ts";
import {
  coldFormat,
  damaged,
  FIRST_KV_RECORD,
  firstSqueezedRecord,
  kvBytes,
  kvRecords,
  type PromptManifest,
} from "./manifest.ts";
import { PageTransfer } from "./page-transfer.ts";
import { type PinProgress, progress } from "./pin-events.ts";
import { featuresOf, type PinHost, type Turn } from "./pin-host.ts";
import { keyGone, type Seal, sealOf } from "./seal.ts";

/** Read from the store at a time, about. */
const READ_BYTES = 4 << 20;

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

/** A prompt read into a cache, and held in its store. */
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
 * Reads a stored prompt into a cache of its own, in the order of its layers. `twin`: a cache that has its pages already,
 * which are shared then.
 */
export async function* restore(
  prompt: StoredPrompt,
  host: PinHost,
  twin: Sequence | undefined,
  turn: Turn,
): AsyncGenerator<PinProgress, Restored> {
  const { store, entry, manifest } = prompt;
  const { sequences } = turn.context;
  const { shape, nTokens } = manifest;
  const release = await store.hold(entry);
  const sequence = new Sequence(twin ? twin.cache.fork() : sequences.createCache());
  const { cache } = sequence;
  let isDone = false;
  try {
    const records = readRecords(prompt, twin ? FIRST_KV_RECORD : firstSqueezedRecord(manifest));
    const next = async () => (await records.next()).value as Bytes;
    const content = decodeContent(await next());
    const ids = idsOf(await next());
    if (!twin) {
      await withRoom(sequences, async () => cache.reserveCoded(nTokens, coldFormat(shape)));
      const transfer = new PageTransfer(cache, manifest, host.pages);
      const features = featuresOf(host, manifest);
      if (features) cache.attach(features.features);
      if (manifest.squeezed) {
        const clusters = await readChecked(prompt, firstSqueezedRecord(manifest), manifest.records.length);
        cache.attach(host.squeezer.prefix(manifest, manifest.squeezed, clusters));
      }
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
export async function* readRecords(prompt: StoredPrompt, n: number): AsyncGenerator<Bytes, void> {
  const { records } = prompt.manifest;
  const read = (from: number) => {
    let to = from;
    for (let bytes = 0; to < n && bytes < READ_BYTES; to++) bytes += records[to]!.byteLength;
    const checked = readChecked(prompt, from, to);
    checked.catch(() => {}); // it counts when it is waited for
    return { to, checked };
  };
  for (let part = read(0); ; ) {
    const bytes = await part.checked;
    const isLast = part.to === n;
    if (!isLast) part = read(part.to);
    yield* bytes;
    if (isLast) return;
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

/** Little-endian, as every machine that runs WebAssembly in practice is. */
function idsOf(bytes: Bytes): Uint32Array {
  return new Uint32Array(bytes.slice().buffer);
}
