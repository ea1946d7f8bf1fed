/**
 * Checks of option values. Each returns the value with its type narrowed, or throws `invalid-option` with a message
 * that names the option, the value found, and what is allowed.
 */

import { InlayError } from "./errors.ts";

/** The error for an option outside its range. `allowed` completes the sentence "… must be". */
export function invalidOption(option: string, value: unknown, allowed: string): InlayError {
  return new InlayError("invalid-option", `${option} is ${show(value)}; it must be ${allowed}`, {
    option,
    value: plain(value),
    allowed,
  });
}

/** The error for an option that has a meaning, but not in this version. */
export function notSupported(option: string, value: unknown, instead: string): InlayError {
  const asked = typeof value === "object" ? option : `${option} ${show(value)}`;
  return new InlayError("invalid-option", `${asked} is not supported in this version; ${instead}`, {
    option,
    value: plain(value),
  });
}

/** Bounds of a number, both included. */
export interface NumberBounds {
  readonly min: number;
  readonly max: number;
  /** true: `min` itself is not allowed. */
  readonly aboveMin?: boolean;
  /** true: `max` itself is not allowed. */
  readonly belowMax?: boolean;
  readonly isInteger?: boolean;
}

export function checkNumber(option: string, value: unknown, bounds: NumberBounds): number {
  const { min, max, aboveMin = false, belowMax = false, isInteger = false } = bounds;
  const fits = (x: number) =>
    (aboveMin ? x > min : x >= min) && (belowMax ? x < max : x <= max) && (!isInteger || Number.isInteger(x));
  if (typeof value === "number" && fits(value)) return value;
  const kind = isInteger ? "an integer" : "a number";
  throw invalidOption(
    option,
    value,
    `${kind} with ${min} ${aboveMin ? "<" : "<="} ${option} ${belowMax ? "<" : "<="} ${max}`,
  );
}

export function checkOneOf<T extends string>(option: string, value: unknown, allowed: readonly T[]): T {
  if (typeof value === "string" && (allowed as readonly string[]).includes(value)) return value as T;
  throw invalidOption(option, value, oneOf(allowed));
}

export function checkBoolean(option: string, value: unknown): boolean {
  if (typeof value === "boolean") return value;
  throw invalidOption(option, value, "true or false");
}

export function checkString(option: string, value: unknown): string {
  if (typeof value === "string") return value;
  throw invalidOption(option, value, "a string");
}

export function checkArray(option: string, value: unknown): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw invalidOption(option, value, "an array");
}

/** A plain object or class instance, not an array and not null. */
export function checkObject(option: string, value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, unknown>;
  throw invalidOption(option, value, "an object");
}

/** Throws unless `value` is JSON all the way down; undefined properties are allowed, as JSON.stringify skips them. */
export function checkJson(option: string, value: unknown): void {
  if (Array.isArray(value)) for (const [i, item] of value.entries()) checkJson(`${option}[${i}]`, item);
  else if (typeof value === "object" && value !== null) {
    if (!isPlainObject(value)) throw invalidOption(option, value, "a plain object");
    for (const [name, item] of Object.entries(value))
      if (item !== undefined) checkJson(`${option}.${name}`, item);
  } else if (
    !(value === null || typeof value === "string" || typeof value === "boolean" || Number.isFinite(value))
  )
    throw invalidOption(option, value, "a string, a finite number, true, false, null, an array or an object");
}

/** An object literal, of this realm or another. */
function isPlainObject(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

/**
 * Throws for the first property of `object` that `known` does not list and whose value is not undefined.
 * `path` is what precedes the name in the message: "" or, say, "attention.".
 */
export function checkKnownNames(path: string, object: object, known: readonly string[]): void {
  for (const [name, value] of Object.entries(object)) {
    if (known.includes(name) || value === undefined) continue;
    const nearest = nearestName(name, known);
    const advice =
      nearest === undefined ? `known are ${known.join(", ")}` : `did you mean ${path}${nearest}?`;
    throw new InlayError("invalid-option", `unknown option ${path}${name}; ${advice}`, {
      option: `${path}${name}`,
      value: plain(value),
      nearest,
    });
  }
}

/** The known name with the fewest edits from `name`, ignoring case and underscores; undefined if none is close. */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  const fold = (text: string) => text.toLowerCase().replaceAll("_", "");
  const wanted = fold(name);
  const ranked = known
    .map((candidate) => ({ candidate, edits: editDistance(wanted, fold(candidate)) }))
    .sort((a, b) => a.edits - b.edits);
  const best = ranked[0];
  return best && best.edits <= Math.max(1, Math.floor(wanted.length / 3)) ? best.candidate : undefined;
}

/** Insertions, deletions and replacements from `a` to `b` (Levenshtein). */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + Number(a[i - 1] !== b[j - 1]);
      next.push(Math.min(replaced, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

/** "a", "b" or "c" */
export function oneOf(names: readonly string[]): string {
  const quoted = names.map((name) => JSON.stringify(name));
  const last = quoted.pop()!;
  return quoted.length === 0 ? last : `${quoted.join(", ")} or ${last}`;
}

const SHOWN_LENGTH = 60;

/** A value in a message, short. */
export function show(value: unknown): string {
  if (typeof value === "string")
    return value.length <= SHOWN_LENGTH
      ? JSON.stringify(value)
      : `${JSON.stringify(value.slice(0, SHOWN_LENGTH))}… (${value.length} characters)`;
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object" && value !== null) return "an object";
  if (typeof value === "function") return "a function";
  return Object.is(value, -0) ? "-0" : String(value);
}

/** A value in an error's details: itself if it is primitive and cloneable, else how it is shown. */
function plain(value: unknown): unknown {
  const isPrimitive = value === null || ["string", "number", "boolean", "undefined"].includes(typeof value);
  return isPrimitive ? value : show(value);
}
