/**
 * The values of the template language (@huggingface/jinja's runtime values), with Python's meaning where the library
 * has JavaScript's, and with measures of their size.
 */

import { Environment, type Interpreter } from "@huggingface/jinja";

/** A runtime value. `type` names its class; `value` is the JavaScript value inside. */
export type Value = ReturnType<Interpreter["evaluate"]>;

/** The library exports no value classes; its own conversion makes one of each, and they make the rest. */
const samples = new Environment();
const StringValue = samples.set("string", "").constructor as new (text: string) => Value;
const BooleanValue = samples.set("boolean", false).constructor as new (isTrue: boolean) => Value;
const ArrayValue = samples.set("array", []).constructor as new (items: readonly Value[]) => Value;

export const stringValue = (text: string): Value => new StringValue(text);
export const booleanValue = (isTrue: boolean): Value => new BooleanValue(isTrue);
export const arrayValue = (items: readonly Value[]): Value => new ArrayValue(items);

/** The text of a string value, undefined for any other. */
export function textOf(value: Value): string | undefined {
  return value.type === "StringValue" ? (value.value as string) : undefined;
}

/** The elements of a list or tuple, undefined for any other value. */
export function itemsOf(value: Value): readonly Value[] | undefined {
  return value.type === "ArrayValue" || value.type === "TupleValue" ? (value.value as Value[]) : undefined;
}

/** The entries of a dict or namespace, undefined for any other value. */
export function entriesOf(value: Value): ReadonlyMap<string, Value> | undefined {
  const hasEntries = ["ObjectValue", "KeywordArgumentsValue", "NamespaceValue"].includes(value.type);
  return hasEntries ? (value.value as Map<string, Value>) : undefined;
}

/** A list, tuple, dict or namespace. */
export function isContainer(value: Value): boolean {
  return itemsOf(value) !== undefined || entriesOf(value) !== undefined;
}

/** none, or something undefined. */
export function isNothing(value: Value): boolean {
  return value.type === "NullValue" || value.type === "UndefinedValue";
}

/** The number of an integer, float or boolean (Python's True is 1), undefined for any other value. */
function numberOf(value: Value): number | undefined {
  const isNumber = ["IntegerValue", "FloatValue", "BooleanValue"].includes(value.type);
  return isNumber ? Number(value.value) : undefined;
}

/** Python's `==`: by type, and inside lists and dicts. (The library's is JavaScript's `==`: 1 == "1", [] != [].) */
export function equals(a: Value, b: Value): boolean {
  const aNumber = numberOf(a);
  if (aNumber !== undefined) return aNumber === numberOf(b);
  const aItems = itemsOf(a);
  const bItems = itemsOf(b);
  if (aItems && bItems)
    return aItems.length === bItems.length && aItems.every((item, i) => equals(item, bItems[i]!));
  const aEntries = entriesOf(a);
  const bEntries = entriesOf(b);
  if (aEntries && bEntries) {
    if (aEntries.size !== bEntries.size) return false;
    for (const [key, item] of aEntries) {
      const other = bEntries.get(key);
      if (other === undefined || !equals(item, other)) return false;
    }
    return true;
  }
  return a.type === b.type && a.value === b.value;
}

/** Python's white space, as a character class: str.isspace(). JavaScript's trim() has U+FEFF, and lacks five others. */
const WHITE_SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const LEADING = new RegExp(`^[${WHITE_SPACE}]+`);
const NOT_WHITE_SPACE = new RegExp(`[^${WHITE_SPACE}]`);

/** Python's lstrip, rstrip and strip: removes white space, or any of the characters of `chars`, from the ends. */
export function strip(text: string, ends: { left: boolean; right: boolean }, chars?: string): string {
  if (chars === undefined) {
    const fromLeft = ends.left ? text.replace(LEADING, "") : text;
    if (!ends.right) return fromLeft;
    let end = fromLeft.length;
    while (end > 0 && !NOT_WHITE_SPACE.test(fromLeft[end - 1]!)) end--;
    return fromLeft.slice(0, end);
  }
  const removable = new Set(chars);
  const characters = Array.from(text);
  let from = 0;
  let to = characters.length;
  if (ends.left) while (from < to && removable.has(characters[from]!)) from++;
  if (ends.right) while (to > from && removable.has(characters[to - 1]!)) to--;
  return characters.slice(from, to).join("");
}

/** Python's str.capitalize: the rest becomes lower case. */
export function capitalize(text: string): string {
  const [first = "", ...rest] = text;
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** Python's str.title: a letter after a non-letter is upper case, every other lower case. */
export function titleCase(text: string): string {
  return text.replace(/\p{L}+/gu, (word) => capitalize(word));
}

/** How large a value is when written out. */
export interface Extent {
  /** Characters, without indentation and escapes. */
  readonly nChars: number;
  /** Values inside, itself included. */
  readonly nValues: number;
  /** Levels of containers. */
  readonly depth: number;
}

/**
 * Measures values. Lists and dicts never change once made, so each is measured once, and a list that holds another
 * twice counts it twice, as writing it out would. Namespaces do change, and are therefore not allowed inside
 * containers: measuring them throws.
 */
export class Extents {
  readonly #known = new WeakMap<object, Extent>();

  of(value: Value): Extent {
    const text = textOf(value);
    if (text !== undefined) return { nChars: text.length + 2, nValues: 1, depth: 0 };
    const items = itemsOf(value);
    const entries = entriesOf(value);
    if (!items && !entries) return SCALAR;
    const known = this.#known.get(value);
    if (known) return known;
    const extent = items ? this.#sum(items, 0) : this.#sum(entries!.values(), keyChars(entries!));
    if (value.type !== "NamespaceValue") this.#known.set(value, extent);
    return extent;
  }

  #sum(values: Iterable<Value>, nKeyChars: number): Extent {
    let nChars = nKeyChars + 2;
    let nValues = 1;
    let depth = 0;
    for (const value of values) {
      if (value.type === "NamespaceValue")
        throw new Error("a namespace cannot be put into a list, dict or namespace");
      const extent = this.of(value);
      nChars += extent.nChars + 2;
      nValues += extent.nValues;
      depth = Math.max(depth, extent.depth);
    }
    return { nChars, nValues, depth: depth + 1 };
  }
}

const SCALAR: Extent = { nChars: 24, nValues: 1, depth: 0 };

function keyChars(entries: ReadonlyMap<string, Value>): number {
  let nChars = 0;
  for (const key of entries.keys()) nChars += key.length + 4;
  return nChars;
}
