// @ts-check
/**
 * Writes GGUF headers (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), good ones and, for tests, bad ones:
 * nothing is checked here, and the place of every field is returned so that it can be overwritten.
 */

/** Numbers of the value types in the file. */
export const VALUE_TYPES = /** @type {const} */ ({
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  u64: 10,
  i64: 11,
  f64: 12,
});

const ARRAY = 9;

/** @typedef {import("./model.mjs").ScalarType} ScalarType */
/** @typedef {import("./model.mjs").Scalar} Scalar */
/** @typedef {import("./model.mjs").KeyValue} KeyValue */

/**
 * The header of a file whose tensors follow each other in the given order, each padded to the alignment.
 * @param {readonly KeyValue[]} metadata
 * @param {readonly import("./model.mjs").TensorEntry[]} tensors
 * @param {{ alignment?: number, version?: number }} [options]
 * @returns {import("./model.mjs").Header}
 */
export function writeHeader(metadata, tensors, { alignment = 32, version = 3 } = {}) {
  const aligned = (/** @type {number} */ n) => Math.ceil(n / alignment) * alignment;
  const out = new ByteWriter();
  const keys =
    alignment === 32
      ? metadata
      : [...metadata, /** @type {KeyValue} */ (["general.alignment", "u32", alignment])];
  /** @type {Map<string, number>} */
  const fields = new Map();
  const mark = (/** @type {string} */ field) => fields.set(field, out.length);

  out.scalar("u32", 0x46554747);
  mark("version");
  out.scalar("u32", version);
  mark("tensorCount");
  out.scalar("u64", tensors.length);
  mark("keyCount");
  out.scalar("u64", keys.length);
  for (const [key, type, value] of keys) {
    mark(`key:${key}`);
    out.scalar("string", key);
    mark(`type:${key}`);
    out.value(type, value, () => mark(`value:${key}`));
  }
  /** @type {number[]} */
  const offsets = [];
  let dataBytes = 0;
  for (const { name, dims, typeId, byteLength } of tensors) {
    mark(`name:${name}`);
    out.scalar("string", name);
    mark(`nDims:${name}`);
    out.scalar("u32", dims.length);
    for (const [d, dim] of dims.entries()) {
      mark(`dim${d}:${name}`);
      out.scalar("u64", dim);
    }
    mark(`tensorType:${name}`);
    out.scalar("u32", typeId);
    mark(`offset:${name}`);
    out.scalar("u64", dataBytes);
    offsets.push(dataBytes);
    dataBytes = aligned(dataBytes + byteLength);
  }
  out.zeros(aligned(out.length) - out.length);
  return { bytes: out.finish(), offsets, dataBytes, fields };
}

const UTF8 = new TextEncoder();

/** @type {Readonly<Record<Exclude<ScalarType, "string">, readonly [put: (view: DataView, at: number, value: Scalar) => void, nBytes: number]>>} */
const NUMBERS = {
  u8: [(view, at, value) => view.setUint8(at, Number(value)), 1],
  i8: [(view, at, value) => view.setInt8(at, Number(value)), 1],
  bool: [(view, at, value) => view.setUint8(at, Number(value)), 1],
  u16: [(view, at, value) => view.setUint16(at, Number(value), true), 2],
  i16: [(view, at, value) => view.setInt16(at, Number(value), true), 2],
  u32: [(view, at, value) => view.setUint32(at, Number(value), true), 4],
  i32: [(view, at, value) => view.setInt32(at, Number(value), true), 4],
  f32: [(view, at, value) => view.setFloat32(at, Number(value), true), 4],
  f64: [(view, at, value) => view.setFloat64(at, Number(value), true), 8],
  u64: [(view, at, value) => view.setBigUint64(at, BigInt(value), true), 8],
  i64: [(view, at, value) => view.setBigInt64(at, BigInt(value), true), 8],
};

/** Little-endian values appended to a growing buffer. */
class ByteWriter {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  length = 0;

  /** @param {number} n */
  zeros(n) {
    this.#grow(n);
    this.length += n;
  }

  /**
   * A metadata value: type number, then the value itself.
   * @param {KeyValue[1]} type
   * @param {Scalar | ArrayLike<Scalar>} value
   * @param {() => void} atValue  called between the two
   */
  value(type, value, atValue) {
    const isArray = type.endsWith("[]");
    const scalar = /** @type {ScalarType} */ (isArray ? type.slice(0, -2) : type);
    this.scalar("u32", isArray ? ARRAY : VALUE_TYPES[scalar]);
    atValue();
    if (!isArray) {
      this.scalar(scalar, /** @type {Scalar} */ (value));
      return;
    }
    const elements = /** @type {ArrayLike<Scalar>} */ (value);
    this.scalar("u32", VALUE_TYPES[scalar]);
    this.scalar("u64", elements.length);
    for (let i = 0; i < elements.length; i++) this.scalar(scalar, elements[i]);
  }

  /**
   * @param {ScalarType} type
   * @param {Scalar} value
   */
  scalar(type, value) {
    if (type === "string") {
      const text = String(value);
      this.#grow(8 + 3 * text.length);
      const { written } = UTF8.encodeInto(text, this.#bytes.subarray(this.length + 8));
      this.#view.setBigUint64(this.length, BigInt(written), true);
      this.length += 8 + written;
      return;
    }
    this.#grow(8);
    const [put, nBytes] = NUMBERS[type];
    put(this.#view, this.length, value);
    this.length += nBytes;
  }

  finish() {
    return this.#bytes.slice(0, this.length);
  }

  /** @param {number} n */
  #grow(n) {
    if (this.length + n <= this.#bytes.length) return;
    const larger = new Uint8Array(2 * (this.length + n));
    larger.set(this.#bytes);
    this.#bytes = larger;
    this.#view = new DataView(larger.buffer);
  }
}
