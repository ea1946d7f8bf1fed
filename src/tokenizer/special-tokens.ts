/**
 * Which tokens end generation, and which are control tokens although the file does not say so.
 *
 * Files name some of these tokens by id; the rest is known by spelling, as in llama.cpp, because converters have
 * often marked them as plain text.
 */

import { TokenAttribute } from "./token-attributes.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** The vocabulary in WASM while it is being set up. */
export interface TokenTable {
  /** The token spelled like this, or undefined. */
  find(spelling: string): number | undefined;
  attributes(id: number): number;
  setAttributes(id: number, bits: number): void;
}

/** Special tokens as they turned out to be. */
export interface SpecialTokens {
  readonly eotId: number | undefined;
  readonly eomId: number | undefined;
  /** Every token that ends generation. */
  readonly endOfGeneration: ReadonlySet<number>;
}

/** End of turn, by spelling, in order of preference. */
const END_OF_TURN = [
  "<|eot_id|>",
  "<|im_end|>",
  "<|end|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<EOT>",
  "_<EOT>",
  "[EOT]",
  "<｜end▁of▁sentence｜>",
  "<end_of_utterance>",
];

const END_OF_MESSAGE = ["<|eom_id|>"];

/** End of the whole text, by spelling. */
const END_OF_TEXT = ["</s>", "<eos>", "[EOS]"];

/** Fill-in-the-middle tokens: of each row the first that exists is a control token. */
const FILL_IN_MIDDLE = [
  ["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"],
  ["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"],
  ["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"],
];
const FILL_PAD = ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FILL_REPOSITORY = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FILL_SEPARATOR = ["<|file_sep|>"];

/** Special tokens after which white space stays text where `stripAfterSpecial` is set. */
const NEVER_STRIPPED = ["<unk>", "<s>", "<|endoftext|>"];

const SPECIAL = TokenAttribute.control | TokenAttribute.unknown | TokenAttribute.userDefined;

/** Settles the attributes of special tokens in `table` and returns what they are. */
export function settleSpecialTokens(table: TokenTable, vocabulary: Vocabulary): SpecialTokens {
  const first = (spellings: readonly string[]): number | undefined => {
    for (const spelling of spellings) {
      const id = table.find(spelling);
      if (id !== undefined) return id;
    }
    return undefined;
  };
  const markControl = (id: number): void =>
    table.setAttributes(id, table.attributes(id) | TokenAttribute.control);

  const end = new Set<number>();
  for (const spelling of [...END_OF_TURN, ...END_OF_MESSAGE, ...END_OF_TEXT]) {
    const id = table.find(spelling);
    if (id === undefined) continue;
    markControl(id);
    end.add(id);
  }
  for (const row of FILL_IN_MIDDLE) {
    const id = first(row);
    if (id !== undefined) markControl(id);
  }
  for (const [given, row] of [
    [vocabulary.fimPadId, FILL_PAD],
    [vocabulary.fimRepId, FILL_REPOSITORY],
    [vocabulary.fimSepId, FILL_SEPARATOR],
  ] as const) {
    const id = given ?? first(row);
    if (id === undefined) continue;
    if (given === undefined) markControl(id);
    end.add(id);
  }
  const eotId = vocabulary.eotId ?? first(END_OF_TURN);
  const eomId = vocabulary.eomId ?? first(END_OF_MESSAGE);
  for (const id of [vocabulary.eosId, eotId, eomId]) if (id !== undefined) end.add(id);
  return { eotId, eomId, endOfGeneration: end };
}

/** Makes white space after special tokens part of them, where the vocabulary asks for that. */
export function settleStripping(table: TokenTable, vocabulary: Vocabulary): void {
  if (!vocabulary.stripAfterSpecial) return;
  for (let id = 0; id < vocabulary.tokens.count; id++)
    if (table.attributes(id) & SPECIAL)
      table.setAttributes(id, table.attributes(id) | TokenAttribute.stripRight);
  for (const spelling of NEVER_STRIPPED) {
    const id = table.find(spelling);
    if (id !== undefined) table.setAttributes(id, table.attributes(id) & ~TokenAttribute.stripRight);
  }
}
