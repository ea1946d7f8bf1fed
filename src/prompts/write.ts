/** Storing a prompt: the records of one that was prefilled, and writing records and the manifest that names them. */

import type { Sequence } from "../engine/sequences.ts";
import { sha256 } from "../storage/digest.ts";
import type { Bytes, PromptEntry, PromptStore } from "../storage/prompt-store.ts";
import { averageBits } from "./coding.ts";
import { writeHead } from "./file.ts";
import {
  coldFormat,
  describeModel,
  kvBytes,
  kvRecords,
  type PromptManifest,
  type RecordInfo,
} from "./manifest.ts";
import { PageTransfer } from "./page-transfer.ts";
import { type PinProgress, progress } from "./pin-events.ts";
import { featuresOf, type PinHost, type Turn } from "./pin-host.ts";
import { Seal } from "./seal.ts";

/** What a prompt is stored with beside its pages. */
export interface PromptParts {
  readonly content: Bytes;
  readonly ids: Bytes;
  /** One for each layer that is clustered. */
  readonly clusters: readonly Bytes[];
}

/** The records of a prefilled prompt. It becomes what a restored one would be: pages as stored, features and clusters of those. */
export async function* prefilledRecords(
  { content, ids, clusters }: PromptParts,
  draft: PromptManifest,
  { cache }: Sequence,
  host: PinHost,
): AsyncGenerator<Bytes, void> {
  const { shape, nTokens } = draft;
  const cold = coldFormat(shape);
  if (cold) cache.quantize(cold);
  yield content;
  yield ids;
  const transfer = new PageTransfer(cache, draft, host.pages);
  const features = featuresOf(host, draft);
  for (const record of kvRecords(shape, nTokens)) {
    const bytes = await transfer.take(record);
    features?.add(record, bytes);
    yield bytes;
  }
  if (features) cache.replaceCompanion(features.features);
  if (draft.squeezed) cache.replaceCompanion(host.squeezer.prefix(draft, draft.squeezed, clusters));
  yield* clusters;
}

/** Stores records under `key`, then the entry that names them, encrypted if `isEncrypted`. Nobody holds the result yet. */
export async function* writePrompt(
  store: PromptStore,
  key: string,
  draft: PromptManifest,
  records: AsyncGenerator<Bytes, void>,
  isEncrypted: boolean,
  { signal }: Pick<Turn, "signal">,
): AsyncGenerator<PinProgress, PromptEntry> {
  const writer = await store.startWriting();
  try {
    const { pages } = writer;
    const sealKey = isEncrypted ? await store.keys.current() : undefined;
    const seal = sealKey && new Seal(sealKey.key, { key, pages });
    const written: RecordInfo[] = [];
    const total = kvBytes(draft.shape, draft.nTokens);
    let byteLength = 0;
    for await (const record of records) {
      signal.throwIfAborted();
      const stored = seal ? await seal.close(written.length, record) : record;
      written.push({ byteLength: record.byteLength, sha256: await sha256(record) });
      byteLength += stored.byteLength;
      await writer.write(stored);
      yield progress("store", Math.min(byteLength, total), total);
    }
    const manifest: PromptManifest = { ...draft, records: written };
    const plain = await writeHead(manifest);
    const head = seal ? await seal.close("head", plain.head) : plain.head;
    const { id, nTokens: tokens, raw, createdAt, model, attention, prefillSeconds } = manifest;
    const info = {
      id,
      tokens,
      bits: averageBits(manifest),
      sparsity: manifest.squeezed?.sparsity ?? 0,
      attention,
      prefillSeconds,
      raw,
      encrypted: isEncrypted,
      createdAt,
      usedAt: Date.now(),
      byteLength: byteLength + head.byteLength,
    };
    const entry = {
      key,
      fingerprint: model.fingerprint,
      modelName: describeModel(model),
      pages,
      info,
      sealedBy: sealKey?.id,
      head,
      sha256: seal ? await sha256(head) : plain.sha256,
    };
    await writer.commit(entry);
    return entry;
  } finally {
    await writer.close();
  }
}
