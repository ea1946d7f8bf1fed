/**
 * Facts and questions in the language of recall-grammar.json, made of names and numbers that the recall model was
 * never trained on. tools/recall-model/grammar.py reads the same file; the two share no random numbers.
 */

import { Random } from "../generate/random.ts";
import grammar from "./recall-grammar.json";

const { tasks } = grammar;

type Kind = "places" | "people" | "numbers";
type Name = Exclude<Kind, "numbers">;

/** A property of a name, such as "code"; `of` and `value` say what kinds of names have it and what it is. */
interface Attribute {
  readonly name: string;
  readonly of: Name;
  readonly value: Kind;
}

const ATTRIBUTES = grammar.attributes as readonly Attribute[];
const LISTS = grammar.lists as readonly { one: string; many: string; of: Name; value: Kind }[];

/** What one question is about: sentences that go somewhere into the document, the question and its only right answer. */
export interface Unit {
  readonly facts: readonly string[];
  readonly question: string;
  readonly answer: string;
}

/** A choice of the elements of lists that depends on nothing but a seed. */
export class Chooser {
  readonly #random: Random;

  constructor(seed: number) {
    this.#random = new Random(seed);
  }

  /** An integer in [0, end). */
  below(end: number): number {
    return Math.floor(this.#random.next() * end);
  }

  chance(probability: number): boolean {
    return this.#random.next() < probability;
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }

  /** A new list in a random order (Fisher and Yates). */
  shuffled<T>(list: readonly T[]): T[] {
    const result = [...list];
    for (let i = result.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [result[i], result[j]] = [result[j]!, result[i]!];
    }
    return result;
  }
}

const heldOutPools = new Map<Kind, readonly string[]>();

/** All names or numbers of a kind that the grammar keeps for evaluation. */
export function heldOut(kind: Kind): readonly string[] {
  let pool = heldOutPools.get(kind);
  if (!pool) {
    pool = kind === "numbers" ? heldOutNumbers() : heldOutNames(kind);
    heldOutPools.set(kind, pool);
  }
  return pool;
}

function heldOutNumbers(): string[] {
  const { least, most } = grammar.numbers;
  const isHeldOut = (n: number) => (Math.floor(n / 10) + (n % 10)) % grammar.heldOut.modulus === 0;
  const numbers = Array.from({ length: most - least + 1 }, (_, i) => least + i);
  return numbers.filter(isHeldOut).map(String);
}

function heldOutNames(kind: Name): string[] {
  const { onsets, endings } = grammar[kind];
  return onsets.flatMap((onset, i) =>
    endings.filter((_, j) => (i + j) % grammar.heldOut.modulus === 0).map((ending) => onset + ending),
  );
}

/** `{slot}` → values.slot. Throws for a slot without a value: the grammar and this file must agree. */
export function fill(template: string, values: Readonly<Record<string, string>>): string {
  return template.replace(/\{(\w+)\}/g, (_, slot: string) => {
    const value = values[slot];
    if (value === undefined) throw new Error(`internal: nothing fills {${slot}} of "${template}"`);
    return value;
  });
}

/** Units that do not contradict each other. */
export class World {
  readonly #used = new Set<string>();
  readonly #pairs = new Set<string>();
  readonly #keys: Record<Name, string[]> = { places: [], people: [] };

  constructor(private readonly chooser: Chooser) {}

  lookup(): Unit {
    const { name, of, value } = this.chooser.of(ATTRIBUTES);
    const values = { attr: name, key: this.#key(of, name), value: this.#fresh(value) };
    return this.#unit(tasks.lookup, [fill(tasks.lookup.fact, values)], values);
  }

  /** Several lookups in one question. */
  queries(count: number): Unit {
    const units = Array.from({ length: count }, () => this.lookup());
    const join = (part: "question" | "answer") => units.map((unit) => unit[part]).join(tasks.queries.join);
    const facts = this.chooser.shuffled(units.flatMap((unit) => unit.facts));
    return { facts, question: join("question"), answer: join("answer") };
  }

  /** A lookup of something that the text does not say. */
  absent(): Unit {
    const { name, of } = this.chooser.of(ATTRIBUTES);
    const values = { attr: name, key: this.#key(of, name) };
    return this.#unit({ question: tasks.lookup.question, answer: tasks.absent.answer }, [], values);
  }

  /** Several values of one key, to be named in the text's order. */
  list(count: number): Unit {
    const { one, many, of, value: kind } = this.chooser.of(LISTS);
    const key = this.#key(of, one);
    const found = Array.from({ length: count }, () => this.#fresh(kind));
    const facts = found.map((value) => fill(tasks.list.fact, { one, key, value }));
    const values = found.slice(0, -1).join(tasks.list.comma) + tasks.list.and + found.at(-1);
    return this.#unit(tasks.list, facts, { many, key, values });
  }

  /** The attribute of an attribute. */
  hop(): Unit {
    const first = this.chooser.of(ATTRIBUTES.filter((a) => a.of === "places" && a.value === "people"));
    const second = this.chooser.of(ATTRIBUTES.filter((a) => a.of === "people"));
    const [key, middle] = [this.#key("places", first.name), this.#fresh("people")];
    const value = this.#fresh(second.value);
    const facts = [
      fill(tasks.lookup.fact, { attr: first.name, key, value: middle }),
      fill(tasks.lookup.fact, { attr: second.name, key: middle, value }),
    ];
    const values = { attr: first.name, attr2: second.name, key, middle, value };
    return this.#unit(tasks.hop, this.chooser.shuffled(facts), values);
  }

  /** A number that `links` variables hand on, in any order in the text. */
  variable(links: number): Unit {
    const chain = Array.from({ length: links }, () => this.#fresh("people"));
    const pairs = chain.map((key, i) => ({ key, value: chain[i + 1] ?? "" }));
    pairs.at(-1)!.value = this.#fresh("numbers");
    const facts = pairs.map((pair) => fill(tasks.variable.fact, pair));
    const answer = pairs.map((pair) => fill(tasks.variable.link, pair)).join(" ");
    const question = fill(this.chooser.of(tasks.variable.question), { key: chain[0]! });
    return { facts: this.chooser.shuffled(facts), question, answer };
  }

  /** How often something is said. */
  count(times: number): Unit {
    const key = this.#key("places", "bell");
    const facts = Array.from({ length: times }, () => fill(tasks.count.fact, { key }));
    return this.#unit(tasks.count, facts, { key, count: tasks.count.numerals[times]! });
  }

  #unit(
    task: { question: readonly string[]; answer: string },
    facts: readonly string[],
    values: Readonly<Record<string, string>>,
  ): Unit {
    const question = fill(this.chooser.of(task.question), values);
    return { facts, question, answer: fill(task.answer, values) };
  }

  /** A name or number that this world has not used yet. */
  #fresh(kind: Kind): string {
    const free = heldOut(kind).filter((value) => !this.#used.has(value));
    if (free.length === 0)
      throw new RangeError(`a text of this length needs more ${kind} than the grammar has`);
    const value = this.chooser.of(free);
    this.#used.add(value);
    return value;
  }

  /** A key without such an attribute; one time in four one that the text knows for something else. */
  #key(kind: Name, attribute: string): string {
    const known = this.#keys[kind].filter((key) => !this.#pairs.has(`${attribute} ${key}`));
    const key = known.length > 0 && this.chooser.chance(0.25) ? this.chooser.of(known) : this.#fresh(kind);
    this.#pairs.add(`${attribute} ${key}`);
    this.#keys[kind].push(key);
    return key;
  }
}
