/**
 * Reads the header of a GGUF file (version 2 or 3, little-endian) from a stream of chunks.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 *     "GGUF" · u32 version · u64 nTensors · u64 nKeys · nKeys × (key, type, value)
 *     · nTensors × (name, u32 nDims, u64 dims[], u32 type, u64 offset) · padding · tensor data
 *
 * Nothing in the file is trusted: see header-cursor.ts for lengths and tensor-table.ts for tensors.
 */

import { InlayError } from "../errors.ts";
import type { ByteReader } from "./byte-reader.ts";
import { HeaderCursor } from "./header-cursor.ts";
import { Metadata, type MetadataValue, type NumberArray, SCALAR_TYPES, type ScalarType } from "./metadata.ts";
import type { TensorInfo } from "./tensor-info.ts";
import { placeTensors, readTensorTable } from "./tensor-table.ts";

export type { TensorInfo } from "./tensor-info.ts";

/** Everything before the tensor data. */
export interface GgufHeader {
  readonly version: number;
  readonly metadata: Metadata;
  /** In the order of their bytes. */
  readonly tensors: readonly TensorInfo[];
  /** Where tensor data begins in the file. */
  readonly dataOffset: number;
  /** Tensors begin at multiples of this. */
  readonly alignment: number;
  /** The raw header without its padding: what a model's fingerprint is made of. */
  readonly headerBytes: Uint8Array;
}

/** More than any model has; each needs at least 32 bytes of header. */
const MAX_TENSORS = 65_535;
const MAX_KEYS = 65_535;
/** The format's own limit. */
const MAX_KEY_BYTES = 65_535;
/** 64 times the largest vocabulary so far. */
const MAX_ARRAY_ELEMENTS = 1 << 24;
const MAX_ALIGNMENT = 1 << 20;
const DEFAULT_ALIGNMENT = 32;

const MAGIC = 0x46554747;
const ARRAY_TYPE = 9;

/**
 * Reads the header and leaves `reader` at its end, before the padding. `shard` is copied into the TensorInfos.
 * Rejects with `invalid-model`, `unsupported-model`, whatever the source fails with, or the abort reason.
 */
export async function readHeader(reader: ByteReader, shard = 0): Promise<GgufHeader> {
  const cursor = new HeaderCursor(reader);
  const version = await readVersion(cursor);
  const nTensors = await cursor.count("the number of tensors", MAX_TENSORS);
  const nKeys = await cursor.count("the number of metadata keys", MAX_KEYS);
  const metadata = await readMetadata(cursor, nKeys);
  const alignment = readAlignment(cursor, metadata);
  const table = await readTensorTable(cursor, nTensors, shard);
  const headerBytes = cursor.finish();
  const dataOffset = Math.ceil(headerBytes.byteLength / alignment) * alignment;
  const tensors = placeTensors(cursor, table, dataOffset, alignment);
  return { version, metadata, tensors, dataOffset, alignment, headerBytes };
}

async function readVersion(cursor: HeaderCursor): Promise<number> {
  const start = await cursor.peekStart(256);
  const found = start.byteLength < 4 ? 0 : new DataView(start.buffer, start.byteOffset).getUint32(0, true);
  if (found !== MAGIC) throw cursor.invalid(`this is not a GGUF file: ${describeStart(start)}`);
  await cursor.u32("the magic");
  const version = await cursor.u32("the version");
  if (version === 2 || version === 3) return version;
  const what =
    (version & 0xffff) === 0
      ? `is big-endian (its version field reads ${version}); only little-endian files can be run`
      : `has GGUF version ${version}; versions 2 and 3 can be run`;
  throw new InlayError(
    "unsupported-model",
    `${cursor.fileName} ${what}. Convert the model again with a current llama.cpp`,
    {
      version,
    },
  );
}

/** What a file that is no GGUF file seems to be. */
function describeStart(start: Uint8Array): string {
  if (start.byteLength === 0) return "it is empty";
  const text = new TextDecoder("latin1").decode(start);
  if (/^\s*(<!doctype|<html|<\?xml|<head)/i.test(text)) {
    return "it is a web page. Check the address: on Hugging Face it must contain /resolve/, not /blob/";
  }
  if (text.startsWith("version https://git-lfs")) return "it is a Git LFS pointer; download the file itself";
  if (/^(lmgg|fmgg|tjgg|algg|ggml|ggmf|ggjt|ggla)/.test(text)) {
    return "it is in an older ggml format; convert the model to GGUF with a current llama.cpp";
  }
  if (text.startsWith("PK\u0003\u0004"))
    return "it is a ZIP archive (a PyTorch checkpoint?); convert it to GGUF";
  if (/^.{8}\{"/s.test(text)) return "it seems to be a safetensors file; convert it to GGUF";
  if (/^\s*[{[]/.test(text)) return `it is JSON, perhaps an error message: ${text.trim().slice(0, 80)}`;
  const hex = Array.from(start.subarray(0, 8), (b) => b.toString(16).padStart(2, "0")).join(" ");
  return `it starts with the bytes ${hex} instead of "GGUF"`;
}

async function readMetadata(cursor: HeaderCursor, nKeys: number): Promise<Metadata> {
  const values = new Map<string, MetadataValue>();
  for (let i = 0; i < nKeys; i++) {
    const key = await cursor.string(`metadata key ${i} of ${nKeys}`, MAX_KEY_BYTES, true);
    if (values.has(key)) throw cursor.invalid(`the metadata key ${key} occurs twice`, { key });
    values.set(key, await readValue(cursor, key));
  }
  return new Metadata(cursor.fileName, values);
}

async function readValue(cursor: HeaderCursor, key: string): Promise<MetadataValue> {
  const typeId = await cursor.u32(`the type of ${key}`);
  if (typeId !== ARRAY_TYPE) {
    const type = scalarType(cursor, key, typeId);
    if (type === "string") return { type, value: await cursor.string(key) };
    const [value] = await readNumbers(cursor, key, type, 1);
    if (typeof value === "bigint") return { type, value: toNumberIfSafe(value) };
    return { type, value: type === "bool" ? value === 1 : value! };
  }
  const elementId = await cursor.u32(`the element type of ${key}`);
  if (elementId === ARRAY_TYPE)
    throw cursor.invalid(`${key} is an array of arrays, which GGUF readers do not accept`, { key });
  const elements = scalarType(cursor, key, elementId);
  const count = await cursor.count(`the length of the array ${key}`, MAX_ARRAY_ELEMENTS);
  if (elements === "string") return { type: "array", elements, value: await cursor.strings(count, key) };
  return { type: "array", elements, value: await readNumbers(cursor, key, elements, count) };
}

function scalarType(cursor: HeaderCursor, key: string, id: number): ScalarType {
  const type = SCALAR_TYPES[id];
  if (type) return type;
  throw cursor.invalid(`${key} has value type ${id}; types 0 to ${SCALAR_TYPES.length - 1} exist`, {
    key,
    type: id,
  });
}

/** Arrays over the file's own bytes. Their byte order is the machine's, and every one that runs WebAssembly is little-endian. */
const NUMBER_ARRAYS = {
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  f32: Float32Array,
  f64: Float64Array,
  u64: BigUint64Array,
  i64: BigInt64Array,
  bool: Uint8Array,
} as const;

async function readNumbers(
  cursor: HeaderCursor,
  key: string,
  type: Exclude<ScalarType, "string">,
  count: number,
): Promise<NumberArray> {
  const ArrayType = NUMBER_ARRAYS[type];
  const numbers = new ArrayType(await cursor.bytes(count * ArrayType.BYTES_PER_ELEMENT, key));
  if (type === "bool") {
    const wrong = (numbers as Uint8Array).findIndex((byte) => byte > 1);
    if (wrong >= 0)
      throw cursor.invalid(`${key} holds a boolean with the value ${numbers[wrong]}; 0 and 1 exist`, { key });
  }
  return numbers;
}

function toNumberIfSafe(value: bigint): number | bigint {
  return Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

function readAlignment(cursor: HeaderCursor, metadata: Metadata): number {
  const alignment = metadata.uint("general.alignment", DEFAULT_ALIGNMENT);
  if (alignment >= 1 && alignment <= MAX_ALIGNMENT && Number.isInteger(Math.log2(alignment)))
    return alignment;
  throw cursor.invalid(
    `general.alignment is ${alignment}; it must be a power of two from 1 to ${MAX_ALIGNMENT}`,
    { alignment },
  );
}
