/**
 * Runs a chat template within bounds, and as Python would.
 *
 * A chat template is a program from a model file, so it is not trusted. @huggingface/jinja gives it no way to
 * JavaScript: values are wrapped, attributes are looked up in Maps, and the only functions are those put into the
 * environment. What the library does not bound is work and size: a template of forty bytes can loop for hours or
 * build a string of gigabytes. This subclass sees every node before it is evaluated and every value after, and ends
 * a template that
 *
 *     evaluates too much     each node costs 1, a value 1 per 1024 characters or 64 elements, a round of a loop 10
 *     nests too deeply       calls, blocks and expressions inside one another
 *     makes a value too large, in characters when written out (lists that share parts count them each time)
 *
 * Filters that multiply sizes (replace, join, indent, tojson) are refused before they run. Bounds grow with the
 * messages. Wall-clock time is not measured: the same messages give the same result on every machine.
 *
 * The library also differs from Python's Jinja. Corrected here, because templates meet it: strip, lstrip and rstrip
 * with an argument (it was ignored), `==` and `!=` (they were JavaScript's), capitalize and title, `for` over a
 * string or something undefined, the filters `d`, `count` and `trim(chars)`, and adding a list or dict to a string (an error; it gave
 * "[object Map]"). Not corrected: `{{ true }}`, `{{ none }}` and lists print as in JSON or not at all; `%` of negative
 * numbers has JavaScript's sign; an attribute of something undefined is undefined, not an error.
 */

import { type Environment, Interpreter } from "@huggingface/jinja";
import {
  arrayValue,
  booleanValue,
  capitalize,
  Extents,
  entriesOf,
  equals,
  isContainer,
  isNothing,
  itemsOf,
  stringValue,
  strip,
  textOf,
  titleCase,
  type Value,
} from "./template-values.ts";

type Node = NonNullable<Parameters<Interpreter["evaluate"]>[0]>;

/** The syntax tree's nodes that are looked into; the library does not export their types. */
interface Identifier extends Node {
  readonly value: string;
}
interface Call extends Node {
  readonly callee: Node;
  readonly args: readonly Node[];
}
interface Member extends Node {
  readonly object: Node;
  readonly property: Node;
  readonly computed: boolean;
}
interface Binary extends Node {
  readonly operator: { readonly value: string };
  readonly left: Node;
  readonly right: Node;
}
interface Filtered extends Node {
  readonly operand: Node;
  readonly filter: Identifier | Call;
}
interface FilterBlock extends Node {
  readonly filter: Identifier | Call;
  readonly body: readonly Node[];
}
interface Loop extends Node {
  readonly iterable: Node;
}
interface Select extends Node {
  readonly lhs: Node;
}
interface Assignment extends Node {
  readonly assignee: Node;
  readonly value: Node | null;
}
interface KeywordArgument extends Node {
  readonly key: Identifier;
  readonly value: Node;
}

/** A node that has been evaluated: lets an operation be given values instead of expressions. */
interface Known extends Node {
  readonly known: Value;
}
const known = (value: Value): Known => ({ type: "Known", known: value });

/** A round of a loop costs this before its body: the library makes a scope and nine values for it. */
const ROUND_WORK = 10;

/** What a template may use. */
export interface TemplateLimits {
  /** Units of work, as the header counts them. */
  readonly work: number;
  /** Nodes inside one another. */
  readonly depth: number;
  /** Characters of any value, written out. */
  readonly chars: number;
}

type StringMethod = (text: string, chars?: string) => string;

/** Methods of strings that the library lacks or gets wrong. `chars` is the first argument. */
const STRING_METHODS: ReadonlyMap<string, StringMethod> = new Map<string, StringMethod>([
  ["strip", (text, chars) => strip(text, { left: true, right: true }, chars)],
  ["lstrip", (text, chars) => strip(text, { left: true, right: false }, chars)],
  ["rstrip", (text, chars) => strip(text, { left: false, right: true }, chars)],
  ["capitalize", capitalize],
  ["title", titleCase],
]);
/** Filter → the method that does it. */
const STRING_FILTERS: ReadonlyMap<string, string> = new Map([
  ["trim", "strip"],
  ["capitalize", "capitalize"],
  ["title", "title"],
]);
const FILTER_ALIASES: ReadonlyMap<string, string> = new Map([
  ["d", "default"],
  ["count", "length"],
]);
/** Filters whose result can be much larger than what goes in. */
const GROWING_FILTERS: readonly string[] = ["replace", "join", "indent", "tojson"];

export class BoundedInterpreter extends Interpreter {
  readonly #limits: TemplateLimits;
  readonly #extents = new Extents();
  readonly #iterables = new WeakSet<Node>();
  #work = 0;
  #depth = 0;

  constructor(environment: Environment, limits: TemplateLimits) {
    super(environment);
    this.#limits = limits;
  }

  override evaluate(node: Node | undefined, environment: Environment): Value {
    if (node?.type === "Known") return (node as Known).known;
    this.#spend(1);
    if (++this.#depth > this.#limits.depth)
      throw new Error(`nested more than ${this.#limits.depth} levels deep`);
    try {
      const value = this.#evaluate(node, environment);
      this.#account(value);
      return node !== undefined && this.#iterables.has(node) ? this.#iterate(value) : value;
    } finally {
      this.#depth--;
    }
  }

  #evaluate(node: Node | undefined, environment: Environment): Value {
    switch (node?.type) {
      case "BinaryExpression":
        return this.#binary(node as Binary, environment);
      case "CallExpression":
        return this.#call(node as Call, environment);
      case "FilterExpression":
        return this.#filter(node as Filtered, environment);
      case "FilterStatement": {
        // As an expression, so that the filter meets the same checks.
        const { filter, body } = node as FilterBlock;
        const operand = { type: "Program", body } as Node;
        return this.evaluate({ type: "FilterExpression", operand, filter } as Node, environment);
      }
      case "For": {
        const { iterable } = node as Loop;
        this.#iterables.add(iterable.type === "SelectExpression" ? (iterable as Select).lhs : iterable);
        return super.evaluate(node, environment);
      }
      case "Set":
        return this.#set(node as Assignment, environment);
      default:
        return super.evaluate(node, environment);
    }
  }

  #binary(node: Binary, environment: Environment): Value {
    const operator = node.operator.value;
    if (operator === "and" || operator === "or") return super.evaluate(node, environment);
    let left = this.evaluate(node.left, environment);
    let right = this.evaluate(node.right, environment);
    if (operator === "==") return booleanValue(equals(left, right));
    if (operator === "!=") return booleanValue(!equals(left, right));
    if (operator === "~") {
      if (isContainer(left)) left = stringValue(left.toString());
      if (isContainer(right)) right = stringValue(right.toString());
    }
    const text = textOf(left) ?? textOf(right);
    if (operator === "+" && text !== undefined && (isContainer(left) || isContainer(right)))
      throw new Error(`cannot add ${left.type} and ${right.type}`);
    return super.evaluate({ ...node, left: known(left), right: known(right) } as Node, environment);
  }

  #call(node: Call, environment: Environment): Value {
    const callee = node.callee as Member;
    if (callee.type !== "MemberExpression" || callee.computed) return super.evaluate(node, environment);
    const name = (callee.property as Identifier).value;
    const method = STRING_METHODS.get(name);
    if (!method && name !== "replace") return super.evaluate(node, environment);

    const object = this.evaluate(callee.object, environment);
    const args = this.#evaluateArguments(node.args, environment);
    const text = textOf(object);
    if (text !== undefined && method) return stringValue(method(text, charsArgument(name, args)));
    if (text !== undefined) this.#checkReplace(text, args);
    return super.evaluate(
      { ...node, callee: { ...callee, object: known(object) }, args } as Node,
      environment,
    );
  }

  #filter(node: Filtered, environment: Environment): Value {
    const call = node.filter.type === "CallExpression" ? (node.filter as Call) : undefined;
    const identifier = (call?.callee ?? node.filter) as Identifier;
    const name = FILTER_ALIASES.get(identifier.value) ?? identifier.value;
    const operand = this.evaluate(node.operand, environment);
    const text = textOf(operand);
    const method = STRING_METHODS.get(STRING_FILTERS.get(name) ?? "");

    if ((text !== undefined && method) || GROWING_FILTERS.includes(name)) {
      const args = this.#evaluateArguments(call?.args ?? [], environment);
      if (text !== undefined && method) return stringValue(method(text, charsArgument(name, args)));
      if (name === "join") return this.#join(operand, args);
      this.#checkGrowth(name, operand, args);
      const filter = call ? { ...call, args } : node.filter;
      return super.evaluate({ ...node, operand: known(operand), filter } as Node, environment);
    }
    const renamed = { ...identifier, value: name };
    // The library knows `default` only with parentheses.
    const filter =
      call || name === "default"
        ? { type: "CallExpression", args: call?.args ?? [], callee: renamed }
        : renamed;
    return super.evaluate({ ...node, operand: known(operand), filter } as Node, environment);
  }

  /** Positional arguments become known; keyword arguments keep their names. */
  #evaluateArguments(args: readonly Node[], environment: Environment): Node[] {
    return args.map((arg) => {
      if (arg.type === "SpreadExpression" || arg.type === "KeywordSpreadExpression")
        throw new Error("* and ** arguments are not supported here");
      if (arg.type !== "KeywordArgumentExpression") return known(this.evaluate(arg, environment));
      const keyword = arg as KeywordArgument;
      return { ...keyword, value: known(this.evaluate(keyword.value, environment)) } as Node;
    });
  }

  #set(node: Assignment, environment: Environment): Value {
    if (node.assignee.type !== "MemberExpression" || !node.value) return super.evaluate(node, environment);
    const value = this.evaluate(node.value, environment);
    if (value.type === "NamespaceValue") throw new Error("a namespace cannot be put into a namespace");
    return super.evaluate({ ...node, value: known(value) } as Node, environment);
  }

  #join(operand: Value, args: readonly Node[]): Value {
    const text = textOf(operand);
    const items = text === undefined ? itemsOf(operand) : Array.from(text, stringValue);
    if (!items) throw new Error(`cannot join ${operand.type}`);
    if (args.length > 1 || keywordValue(args, "attribute")) throw new Error("join takes a separator only");
    const argument = positionalValue(args, 0) ?? keywordValue(args, "d");
    const separator = argument ? textOf(argument) : "";
    if (separator === undefined) throw new Error("the separator of join must be a string");
    this.#checkChars(this.#extents.of(operand).nChars + items.length * separator.length);
    return stringValue(items.map((item) => (isNothing(item) ? "" : item.toString())).join(separator));
  }

  #checkGrowth(name: string, operand: Value, args: readonly Node[]): void {
    const text = textOf(operand);
    if (name === "replace" && text !== undefined) this.#checkReplace(text, args);
    if (name === "indent" && text !== undefined) {
      const width = numberArgument(positionalValue(args, 0) ?? keywordValue(args, "width"));
      this.#checkChars(text.length + width * (occurrences(text, "\n") + 1));
    }
    if (name === "tojson") {
      const indent = numberArgument(keywordValue(args, "indent"));
      const separators = keywordValue(args, "separators");
      const nSeparatorChars = separators ? this.#extents.of(separators).nChars : 0;
      const { nChars, nValues, depth } = this.#extents.of(operand);
      this.#checkChars(nChars + nValues * (indent * (depth + 1) + nSeparatorChars));
    }
  }

  #checkReplace(text: string, args: readonly Node[]): void {
    const [wanted, replacement] = [positionalValue(args, 0), positionalValue(args, 1)].map(
      (value) => value && textOf(value),
    );
    if (wanted === undefined || replacement === undefined) return;
    this.#checkChars(text.length + occurrences(text, wanted) * replacement.length);
  }

  /** What a loop iterates: a string is its characters, something undefined is empty. Each round is paid for. */
  #iterate(value: Value): Value {
    const text = value.type === "UndefinedValue" ? "" : textOf(value);
    const iterated = text === undefined ? value : arrayValue(Array.from(text, stringValue));
    this.#spend(ROUND_WORK * (itemsOf(iterated)?.length ?? entriesOf(iterated)?.size ?? 0));
    return iterated;
  }

  #account(value: Value): void {
    const text = textOf(value);
    if (text !== undefined) {
      this.#checkChars(text.length);
      this.#spend(text.length >> 10);
    } else if (isContainer(value)) {
      this.#checkChars(this.#extents.of(value).nChars);
      this.#spend((itemsOf(value)?.length ?? 0) >> 6);
    }
  }

  #spend(units: number): void {
    this.#work += units;
    if (this.#work > this.#limits.work)
      throw new Error(`did more than ${this.#limits.work} steps; it may not end`);
  }

  #checkChars(nChars: number): void {
    // NaN fails too.
    if (!(nChars <= this.#limits.chars))
      throw new Error(`makes a value of more than ${this.#limits.chars} characters`);
  }
}

function positionalValue(args: readonly Node[], index: number): Value | undefined {
  const arg = args[index];
  return arg?.type === "Known" ? (arg as Known).known : undefined;
}

function keywordValue(args: readonly Node[], name: string): Value | undefined {
  for (const arg of args) {
    const { type, key, value } = arg as KeywordArgument;
    if (type === "KeywordArgumentExpression" && key.value === name) return (value as Known).known;
  }
  return undefined;
}

/** The `chars` argument of a strip method: a string, or absent, or none. */
function charsArgument(name: string, args: readonly Node[]): string | undefined {
  if (args.length === 0) return undefined;
  const argument = positionalValue(args, 0) ?? keywordValue(args, "chars");
  if (args.length === 1 && argument?.type === "NullValue") return undefined;
  const chars = argument && textOf(argument);
  if (args.length > 1 || chars === undefined) throw new Error(`${name} takes one string`);
  return chars;
}

/** A number argument; what the filter assumes when it is absent or none is small. */
function numberArgument(value: Value | undefined): number {
  return typeof value?.value === "number" ? value.value : 4;
}

function occurrences(text: string, wanted: string): number {
  if (wanted === "") return text.length + 1;
  let n = 0;
  for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) n++;
  return n;
}
