/**
 * A model as one thing, be it one file or a split of many: headers first, then tensor data in one sequential pass.
 *
 * llama.cpp's splits carry `split.no`, `split.count` and `split.tensors.count` in every file; metadata stands in
 * the first, each file describes its own tensors. The files may be given in any order.
 */

import { InlayError } from "../errors.ts";
import { ByteReader } from "./byte-reader.ts";
import type { Metadata } from "./metadata.ts";
import { type GgufHeader, readHeader } from "./reader.ts";
import type { ByteSource } from "./source.ts";
import type { TensorInfo } from "./tensor-info.ts";

/** One tensor's bytes as they arrive. */
export interface TensorBytes {
  readonly tensor: TensorInfo;
  /** All bytes of the tensor, in order; may be left unread. */
  readonly chunks: AsyncIterable<Uint8Array>;
}

/** A model whose headers are read and checked. Whoever opened it closes it. */
export interface ModelFile {
  /** Of the first file. */
  readonly metadata: Metadata;
  /** One per file, in the order of the split. */
  readonly headers: readonly GgufHeader[];
  /** Of all files, in reading order; `shard` is the index into `headers`. */
  readonly tensors: readonly TensorInfo[];
  /** Bytes of all files together, headers included; undefined when a source does not tell. */
  readonly byteLength: number | undefined;
  /**
   * The bytes of every tensor that `isWanted` accepts (default: all), in reading order. A second call reads the
   * sources again, which a bare stream refuses with `source-failed`.
   */
  readTensors(isWanted?: (tensor: TensorInfo) => boolean): AsyncIterable<TensorBytes>;
  /** Releases the sources. Idempotent. Waits for a read that is under way; the signal ends one that hangs. */
  close(): Promise<void>;
}

interface Shard {
  readonly source: ByteSource;
  readonly header: GgufHeader;
}

/**
 * Reads the headers of all files. Rejects with `invalid-model` when files of a split are missing or do not belong
 * together, and as `readHeader` does.
 */
export async function openModelFile(
  sources: readonly ByteSource[],
  signal?: AbortSignal,
): Promise<ModelFile> {
  const [only] = sources;
  if (only && sources.length === 1) return openSingle(only, signal);
  const shards: Shard[] = [];
  for (const source of sources) {
    // Closed at once: dozens of half-read downloads would exhaust the browser's connections.
    const reader = new ByteReader(source, 0, signal);
    try {
      shards.push({ source, header: await readHeader(reader) });
    } finally {
      await reader.close();
    }
  }
  return new OpenModel(inSplitOrder(shards), undefined, signal);
}

/** One file: the data pass continues the connection that the header came over. */
async function openSingle(source: ByteSource, signal: AbortSignal | undefined): Promise<ModelFile> {
  const reader = new ByteReader(source, 0, signal);
  try {
    const shards = inSplitOrder([{ source, header: await readHeader(reader) }]);
    return new OpenModel(shards, reader, signal);
  } catch (error) {
    await reader.close();
    throw error;
  }
}

class OpenModel implements ModelFile {
  readonly tensors: readonly TensorInfo[];
  #readers = new Set<ByteReader>();

  constructor(
    private readonly shards: readonly Shard[],
    /** Stands at the end of the only file's header, until the first pass takes it. */
    private headerReader: ByteReader | undefined,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.tensors = shards.flatMap(({ header }, shard) => header.tensors.map((t) => ({ ...t, shard })));
    if (headerReader) this.#readers.add(headerReader);
  }

  get metadata(): Metadata {
    return this.shards[0]!.header.metadata;
  }

  get headers(): readonly GgufHeader[] {
    return this.shards.map((s) => s.header);
  }

  get byteLength(): number | undefined {
    let total = 0;
    for (const { source } of this.shards) {
      if (source.size === undefined) return undefined;
      total += source.size;
    }
    return total;
  }

  async *readTensors(isWanted: (tensor: TensorInfo) => boolean = () => true): AsyncGenerator<TensorBytes> {
    for (const [shard, { source }] of this.shards.entries()) {
      const wanted = this.tensors.filter((t) => t.shard === shard && isWanted(t));
      if (wanted.length > 0) yield* this.#readShard(source, wanted);
    }
  }

  async close(): Promise<void> {
    const readers = [...this.#readers];
    this.#readers.clear();
    for (const reader of readers) await reader.close();
  }

  async *#readShard(source: ByteSource, wanted: readonly TensorInfo[]): AsyncGenerator<TensorBytes> {
    const reader = this.headerReader ?? new ByteReader(source, wanted[0]!.offset, this.signal);
    this.headerReader = undefined;
    this.#readers.add(reader);
    try {
      for (const tensor of wanted) {
        await reader.skipTo(tensor.offset, tensor.name);
        yield { tensor, chunks: reader.take(tensor.byteLength, tensor.name) };
        await reader.skipTo(tensor.offset + tensor.byteLength, tensor.name);
      }
    } finally {
      this.#readers.delete(reader);
      await reader.close();
    }
  }
}

/** The files in the order of their numbers, after checking that they are one complete split. */
function inSplitOrder(shards: readonly Shard[]): Shard[] {
  const ordered: Shard[] = [];
  for (const shard of shards) {
    const { name } = shard.source;
    const { metadata } = shard.header;
    const count = metadata.uint("split.count", 1);
    const number = metadata.uint("split.no", 0);
    if (count !== shards.length && !(count === 0 && shards.length === 1)) {
      throw splitError(
        `${name} is file ${number + 1} of a model split into ${count}, but ${shards.length} were given; ` +
          "pass all of them, and no others",
        { given: shards.length, count },
      );
    }
    if (number >= shards.length)
      throw splitError(`${name} says split.no ${number} of ${count}`, { number, count });
    const twin = ordered[number];
    if (twin)
      throw splitError(`${twin.source.name} and ${name} are both file ${number + 1} of ${count}`, { number });
    ordered[number] = shard;
  }
  checkTensors(ordered);
  return ordered;
}

function checkTensors(shards: readonly Shard[]): void {
  const owner = new Map<string, string>();
  for (const { source, header } of shards) {
    for (const { name } of header.tensors) {
      const other = owner.get(name);
      if (other)
        throw splitError(`the tensor ${name} is in ${other} and in ${source.name}`, { tensor: name });
      owner.set(name, source.name);
    }
  }
  const expected = shards[0]!.header.metadata.uint("split.tensors.count", owner.size);
  if (expected !== owner.size) {
    throw splitError(`the model has ${expected} tensors, its ${shards.length} files hold ${owner.size}`, {
      expected,
      found: owner.size,
    });
  }
}

function splitError(message: string, details: Record<string, unknown>): InlayError {
  return new InlayError("invalid-model", message, details);
}
