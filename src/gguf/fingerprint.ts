/**
 * A model's fingerprint: SHA-256 over the headers of its files (metadata and tensor tables) and a sample of every
 * tensor's bytes. Keys and values belong to exactly the weights that computed them.
 */

import { hasSha256, sha256 } from "../storage/digest.ts";
import type { ModelFile, TensorBytes } from "./model-file.ts";
import type { TensorInfo } from "./tensor-info.ts";

/** Bytes taken from the start of each tensor, and as many from its end. */
const SAMPLE_BYTES = 512;

/** Samples tensors while they are loaded. */
export class Fingerprinter {
  readonly #parts: Uint8Array[];

  constructor(private readonly file: ModelFile) {
    this.#parts = file.headers.map(({ headerBytes }) => headerBytes);
  }

  /** The file, with every tensor that is read through it sampled. */
  sampled(): ModelFile {
    const { file } = this;
    return {
      metadata: file.metadata,
      headers: file.headers,
      tensors: file.tensors,
      byteLength: file.byteLength,
      close: () => file.close(),
      readTensors: (isWanted) => this.#readTensors(isWanted),
    };
  }

  /** Hexadecimal; undefined where there is no WebCrypto. */
  async finish(): Promise<string | undefined> {
    if (!hasSha256()) return undefined;
    const bytes = new Uint8Array(this.#parts.reduce((sum, part) => sum + part.byteLength, 0));
    let at = 0;
    for (const part of this.#parts) {
      bytes.set(part, at);
      at += part.byteLength;
    }
    return sha256(bytes);
  }

  async *#readTensors(isWanted?: (tensor: TensorInfo) => boolean): AsyncGenerator<TensorBytes> {
    for await (const { tensor, chunks } of this.file.readTensors(isWanted))
      yield { tensor, chunks: this.#sample(tensor, chunks) };
  }

  async *#sample(tensor: TensorInfo, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    let at = 0;
    const tail = Math.max(SAMPLE_BYTES, tensor.byteLength - SAMPLE_BYTES);
    for await (const chunk of chunks) {
      // A whole sample may come in pieces; concatenated they are the same bytes however the file was cut.
      if (at < SAMPLE_BYTES) this.#parts.push(chunk.slice(0, SAMPLE_BYTES - at));
      if (at + chunk.byteLength > tail) this.#parts.push(chunk.slice(Math.max(0, tail - at)));
      at += chunk.byteLength;
      yield chunk;
    }
  }
}
