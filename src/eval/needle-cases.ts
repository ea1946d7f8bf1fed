/**
 * A fixed set of questions about generated documents: for every task, length and depth the same cases each time,
 * whatever the model.
 */

import { Chooser, fill, heldOut, type Unit, World } from "./needle-world.ts";
import grammar from "./recall-grammar.json";

/** What is asked; `text` says it for people. */
export const NEEDLE_TASKS = {
  single: "one fact in a text without others",
  "multi-key": "one fact among many of its kind",
  "multi-value": "two or three values of one key, in the text's order",
  "multi-query": "two facts in one question",
  "two-hop": "the attribute of an attribute",
  variable: "a number that two or three variables hand on",
  count: "how often something happened, one to four times",
  absent: "a fact that the text does not have, among others that it has",
} as const;

export type NeedleTask = keyof typeof NEEDLE_TASKS;

/** One question about one document. */
export interface NeedleCase {
  readonly task: NeedleTask;
  /** Tokens of the whole prompt in the recall model's vocabulary, about. */
  readonly length: number;
  /** Where the first fact that the answer needs stands: 0 at the beginning, 1 at the end. */
  readonly depth: number;
  readonly index: number;
  readonly document: string;
  readonly question: string;
  readonly answer: string;
}

/** Which case; the same numbers give the same case. */
export interface NeedleCaseSpec {
  readonly task: NeedleTask;
  readonly length: number;
  readonly depth: number;
  readonly index: number;
  readonly seed: number;
}

/** Tokens that are kept free for the chat template and the question. */
const RESERVED = 48;

/** Of the lines of a text with distractors, the part that are facts. */
const DISTRACTORS = 0.2;

type Genre = (typeof grammar.genres)[number];

/** A line of a document with the genre of its section. `isOpening`: the section's title. */
interface Line {
  readonly text: string;
  readonly genre: Genre;
  readonly isOpening: boolean;
}

/** Makes one case. Throws a RangeError for a length that leaves no room for the facts. */
export function makeNeedleCase({ task, length, depth, index, seed }: NeedleCaseSpec): NeedleCase {
  const taskNumber = Object.keys(NEEDLE_TASKS).indexOf(task);
  const parts = [taskNumber, length, Math.round(depth * 1000), index];
  // A different seed for each case: the parts are digits of a number, mixed into the set's seed.
  const chooser = new Chooser(parts.reduce((sum, part) => (sum * 100_003 + part) % 2 ** 34, seed));
  const world = new World(chooser);
  const unit = askedUnit(task, world, chooser);
  const room = length - RESERVED - unit.facts.reduce((sum, fact) => sum + countTokens(fact) + 8, 0);
  if (room < 64) throw new RangeError(`${length} tokens are too few for a text of the task ${task}`);
  const lines = surroundings(chooser, world, room, task === "single" ? 0 : DISTRACTORS);
  const document = place(chooser, lines, unit.facts, depth).join("\n");
  return { task, length, depth, index, document, question: unit.question, answer: unit.answer };
}

function askedUnit(task: NeedleTask, world: World, chooser: Chooser): Unit {
  switch (task) {
    case "single":
    case "multi-key":
      return world.lookup();
    case "multi-value":
      return world.list(2 + chooser.below(2));
    case "multi-query":
      return world.queries(2);
    case "two-hop":
      return world.hop();
    case "variable":
      return world.variable(2 + chooser.below(2));
    case "count":
      return world.count(1 + chooser.below(4));
    case "absent":
      return world.absent();
  }
}

/** Sections of filler, with facts that are not asked for, until `room` tokens are used. */
function surroundings(chooser: Chooser, world: World, room: number, distractors: number): Line[] {
  const lines: Line[] = [];
  let left = room;
  while (left > 0) {
    const genre = chooser.of(grammar.genres);
    const section: Line[] = [{ text: `${genre.opening}:`, genre, isOpening: true }];
    const nLines = 4 + chooser.below(8);
    for (let i = 0; i < nLines; i++) {
      const text = chooser.chance(distractors)
        ? frame(chooser, genre, world.lookup().facts[0]!)
        : fillerLine(chooser, genre);
      section.push({ text, genre, isOpening: false });
    }
    for (const line of section) {
      left -= countTokens(line.text) + 1;
      if (left > 0) lines.push(line);
    }
  }
  return lines;
}

function fillerLine(chooser: Chooser, genre: Genre): string {
  const words = grammar.words as Readonly<Record<string, readonly string[]>>;
  return chooser.of(genre.filler).replace(/\{(\w+)\}/g, (_, slot: string) => chooser.of(words[slot]!));
}

function frame(chooser: Chooser, genre: Genre, fact: string): string {
  return fill(chooser.of(genre.frames), { fact, Fact: fact[0]!.toUpperCase() + fact.slice(1) });
}

/** Puts the first fact at `depth` and the others at random behind it or before it, each as its section's genre has it. */
function place(chooser: Chooser, lines: readonly Line[], facts: readonly string[], depth: number): string[] {
  const last = lines.length - 1;
  const first = Math.round(depth * last);
  // Random depths for the others; the order of facts in the text stays theirs.
  const others = facts.slice(1).map(() => first + chooser.below(last - first + 1));
  const positions = [first, ...others.sort((a, b) => a - b)];
  const texts: string[] = [];
  lines.forEach(({ text, genre }, i) => {
    texts.push(text);
    facts.forEach((fact, j) => {
      if (positions[j] === i) texts.push(frame(chooser, genre, fact));
    });
  });
  return texts;
}

const PIECES = / ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+/gu;
let names: ReadonlySet<string> | undefined;

/** Tokens of text in the recall model's vocabulary: a word or mark is one, a name or a number two. */
export function countTokens(text: string): number {
  names ??= new Set([...heldOut("places"), ...heldOut("people")]);
  let count = 0;
  for (const [piece] of text.matchAll(PIECES)) {
    const word = piece.trim();
    count += names.has(word) || /^\d{4}$/.test(word) ? 2 : 1;
  }
  return count;
}
