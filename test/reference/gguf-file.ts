/** A minimal reader of well-formed GGUF bytes, independent of src/gguf: it trusts the file. */

export interface ReferenceTensor {
  readonly name: string;
  /** Fastest axis first. */
  readonly dims: number[];
  readonly typeId: number;
  /** From the tensor's first byte to the end of the file: the type knows how many belong to it. */
  readonly bytes: Uint8Array;
}

export interface ReferenceFile {
  /** Numbers, strings, booleans, and arrays of them. */
  readonly metadata: ReadonlyMap<string, unknown>;
  readonly tensors: ReadonlyMap<string, ReferenceTensor>;
}

export function parseGguf(file: Uint8Array): ReferenceFile {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  let at = 8;
  /** Passes over `n` bytes and returns where they begin. */
  const take = (n: number) => {
    at += n;
    return at - n;
  };
  const u32 = () => view.getUint32(take(4), true);
  const u64 = () => Number(view.getBigUint64(take(8), true));
  const text = () => {
    const start = take(u64());
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(file.subarray(start, at));
  };
  const value = (type: number): unknown => {
    switch (type) {
      case 0:
        return view.getUint8(take(1));
      case 1:
        return view.getInt8(take(1));
      case 2:
        return view.getUint16(take(2), true);
      case 3:
        return view.getInt16(take(2), true);
      case 4:
        return u32();
      case 5:
        return view.getInt32(take(4), true);
      case 6:
        return view.getFloat32(take(4), true);
      case 7:
        return view.getUint8(take(1)) !== 0;
      case 8:
        return text();
      case 9: {
        const elementType = u32();
        return Array.from({ length: u64() }, () => value(elementType));
      }
      case 10:
        return u64();
      case 11:
        return Number(view.getBigInt64(take(8), true));
      case 12:
        return view.getFloat64(take(8), true);
      default:
        throw new Error(`value type ${type} at byte ${at}`);
    }
  };

  const nTensors = u64();
  const nKeys = u64();
  const metadata = new Map<string, unknown>();
  for (let i = 0; i < nKeys; i++) {
    const key = text();
    metadata.set(key, value(u32()));
  }
  const table = Array.from({ length: nTensors }, () => {
    const name = text();
    const dims = Array.from({ length: u32() }, u64);
    return { name, dims, typeId: u32(), offset: u64() };
  });
  const alignment = Number(metadata.get("general.alignment") ?? 32);
  const dataStart = Math.ceil(at / alignment) * alignment;
  const tensors = new Map(
    table.map(({ offset, ...t }) => [t.name, { ...t, bytes: file.subarray(dataStart + offset) }]),
  );
  return { metadata, tensors };
}
