/**
 * The key-value part of a GGUF header, with typed access.
 *
 * A getter called with one argument wants the key to be there; with a second argument that one is returned
 * when the key is absent. A value of the wrong type is always an error.
 */

import { InlayError } from "../errors.ts";
import type { StringArray } from "./string-array.ts";

/** GGUF's value types but the array, by their number in the file. */
export const SCALAR_TYPES = [
  "u8",
  "i8",
  "u16",
  "i16",
  "u32",
  "i32",
  "f32",
  "bool",
  "string",
  undefined,
  "u64",
  "i64",
  "f64",
] as const;

export type ScalarType = NonNullable<(typeof SCALAR_TYPES)[number]>;

/** Elements of a number array as in the file; booleans are bytes 0 and 1. */
export type NumberArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** One value. 64-bit integers beyond 2^53 are BigInts, all other numbers are numbers. */
export type MetadataValue =
  | { readonly type: ScalarType; readonly value: number | bigint | boolean | string }
  | { readonly type: "array"; readonly elements: "string"; readonly value: StringArray }
  | { readonly type: "array"; readonly elements: Exclude<ScalarType, "string">; readonly value: NumberArray };

export class Metadata {
  constructor(
    /** The file's name, for messages. */
    readonly fileName: string,
    private readonly values: ReadonlyMap<string, MetadataValue>,
  ) {}

  has(key: string): boolean {
    return this.values.has(key);
  }

  keys(): IterableIterator<string> {
    return this.values.keys();
  }

  /** The value as it stands in the file. */
  get(key: string): MetadataValue | undefined {
    return this.values.get(key);
  }

  string(key: string): string;
  string<F>(key: string, fallback: F): string | F;
  string(key: string, ...fallback: unknown[]): unknown {
    return this.#typed(key, "a string", fallback, ({ value }) =>
      typeof value === "string" ? value : undefined,
    );
  }

  bool(key: string): boolean;
  bool<F>(key: string, fallback: F): boolean | F;
  bool(key: string, ...fallback: unknown[]): unknown {
    return this.#typed(key, "a boolean", fallback, ({ value }) =>
      typeof value === "boolean" ? value : undefined,
    );
  }

  /** A whole number from 0 to 2^53 - 1, stored in any integer type. */
  uint(key: string): number;
  uint<F>(key: string, fallback: F): number | F;
  uint(key: string, ...fallback: unknown[]): unknown {
    return this.#typed(key, "a whole number", fallback, ({ type, value }) =>
      type !== "f32" && type !== "f64" && Number.isSafeInteger(value) && Number(value) >= 0
        ? value
        : undefined,
    );
  }

  /** A finite number of any type. */
  number(key: string): number;
  number<F>(key: string, fallback: F): number | F;
  number(key: string, ...fallback: unknown[]): unknown {
    return this.#typed(key, "a finite number", fallback, ({ value }) =>
      Number.isFinite(value) ? value : undefined,
    );
  }

  strings(key: string): StringArray;
  strings<F>(key: string, fallback: F): StringArray | F;
  strings(key: string, ...fallback: unknown[]): unknown {
    return this.#typed(key, "an array of strings", fallback, (v) =>
      v.type === "array" && v.elements === "string" ? v.value : undefined,
    );
  }

  /** An array of numbers or booleans, in the file's own element type. */
  numbers(key: string): NumberArray;
  numbers<F>(key: string, fallback: F): NumberArray | F;
  numbers(key: string, ...fallback: unknown[]): unknown {
    return this.#typed(key, "an array of numbers", fallback, (v) =>
      v.type === "array" && v.elements !== "string" ? v.value : undefined,
    );
  }

  #typed(key: string, wanted: string, fallback: unknown[], pick: (value: MetadataValue) => unknown): unknown {
    const found = this.values.get(key);
    if (!found) {
      if (fallback.length > 0) return fallback[0];
      throw new InlayError(
        "invalid-model",
        `${this.fileName}: the metadata key ${key} is missing; it must be ${wanted}`,
        { key },
      );
    }
    const picked = pick(found);
    if (picked !== undefined) return picked;
    throw new InlayError(
      "invalid-model",
      `${this.fileName}: ${key} is ${describeValue(found)}; it must be ${wanted}`,
      { key },
    );
  }
}

/** A short form of a value for messages: `u32 7`, `string "llama"`, `array of 3 f32`. */
export function describeValue(v: MetadataValue): string {
  if (v.type === "array") {
    const count = v.elements === "string" ? v.value.count : v.value.length;
    return `array of ${count} ${v.elements}`;
  }
  if (typeof v.value !== "string") return `${v.type} ${v.value}`;
  const shown = v.value.length > 40 ? `${v.value.slice(0, 40)}…` : v.value;
  return `string ${JSON.stringify(shown)}`;
}
