/** A model's vocabulary as its file describes it: what {@link Tokenizer.create} needs, read from GGUF metadata. */

import { InlayError } from "../errors.ts";
import { preTokenizerNamed } from "./pre-tokenizer.ts";

/** Strings as they lie in a GGUF file: a 64-bit little-endian length and that many bytes each, back to back. */
export interface StringArray {
  readonly count: number;
  readonly bytes: Uint8Array;
}

/** A vocabulary. Arrays that are one a token have `tokens.count` elements; ids are below it. */
export interface Vocabulary {
  /** SentencePiece ("llama") or byte-level BPE ("gpt2"). */
  readonly model: "llama" | "gpt2";
  /** Name of the pre-tokenizer of a byte-level vocabulary. */
  readonly pre: string;
  readonly tokens: StringArray;
  /** Of a SentencePiece vocabulary: the token with the higher score is merged first. All 0 when absent. */
  readonly scores?: Float32Array;
  /** GGUF token types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. All 1 when absent. */
  readonly types?: Int32Array;
  /** Of a byte-level vocabulary: "left right" each, the first is merged first. */
  readonly merges?: StringArray;
  readonly bosId?: number;
  readonly eosId?: number;
  /** End of turn. */
  readonly eotId?: number;
  /** End of message. */
  readonly eomId?: number;
  readonly unkId?: number;
  readonly fimPadId?: number;
  readonly fimRepId?: number;
  readonly fimSepId?: number;
  /** Whether a prompt starts with BOS; by default as its kind of vocabulary usually does. */
  readonly addBos?: boolean;
  /** Whether a prompt ends with EOS. @default false */
  readonly addEos?: boolean;
  /** Whether SentencePiece text gets a space before it. @default true */
  readonly addSpacePrefix?: boolean;
  /** White space after a special token belongs to it. @default false */
  readonly stripAfterSpecial?: boolean;
}

/** Metadata of a GGUF file: a number, boolean, string, typed array or {@link StringArray} by key, or undefined. */
export interface VocabularyMetadata {
  get(key: string): unknown;
}

const ID_KEYS = {
  bosId: "tokenizer.ggml.bos_token_id",
  eosId: "tokenizer.ggml.eos_token_id",
  eotId: "tokenizer.ggml.eot_token_id",
  eomId: "tokenizer.ggml.eom_token_id",
  unkId: "tokenizer.ggml.unknown_token_id",
  fimPadId: "tokenizer.ggml.fim_pad_token_id",
  fimRepId: "tokenizer.ggml.fim_rep_token_id",
  fimSepId: "tokenizer.ggml.fim_sep_token_id",
} as const;

/** What converters write for "there is no such token". */
const NO_TOKEN = new Set([-1, 0xffffffff]);

/**
 * The vocabulary in a GGUF file's metadata.
 * Throws `invalid-model` when keys are missing, of the wrong type, or disagree, and `unsupported-model` for a kind of
 * tokenizer or a pre-tokenizer that this version does not have.
 */
export function vocabularyFromMetadata(metadata: VocabularyMetadata): Vocabulary {
  const model = readString(metadata, "tokenizer.ggml.model");
  if (model === undefined) throw invalid("the model file has no tokenizer: tokenizer.ggml.model is missing");
  if (model !== "llama" && model !== "gpt2") {
    const supported = ["llama", "gpt2"];
    throw new InlayError(
      "unsupported-model",
      `the model's tokenizer (tokenizer.ggml.model) is ${JSON.stringify(model)}; ` +
        'supported are "llama" (SentencePiece) and "gpt2" (byte-level BPE)',
      { model, supported },
    );
  }
  const tokens = readStrings(metadata, "tokenizer.ggml.tokens");
  if (!tokens) throw invalid("the model file has no vocabulary: tokenizer.ggml.tokens is missing");
  const scores = readNumbers(metadata, "tokenizer.ggml.scores");
  const types = readNumbers(metadata, "tokenizer.ggml.token_type");
  const ids: Partial<Record<keyof typeof ID_KEYS, number>> = {};
  for (const [name, key] of Object.entries(ID_KEYS)) {
    const id = readId(metadata, key);
    if (id !== undefined) ids[name as keyof typeof ID_KEYS] = id;
  }
  const vocabulary: Vocabulary = {
    model,
    pre: readString(metadata, "tokenizer.ggml.pre") || "default",
    tokens,
    scores: scores instanceof Float32Array ? scores : scores && Float32Array.from(scores),
    types: types instanceof Int32Array ? types : types && Int32Array.from(types),
    merges: model === "gpt2" ? readStrings(metadata, "tokenizer.ggml.merges") : undefined,
    ...ids,
    addBos: readBoolean(metadata, "tokenizer.ggml.add_bos_token"),
    addEos: readBoolean(metadata, "tokenizer.ggml.add_eos_token"),
    addSpacePrefix: readBoolean(metadata, "tokenizer.ggml.add_space_prefix"),
    // The file does not say this; llama.cpp knows it by the model's name.
    stripAfterSpecial: /phi-?3/i.test(readString(metadata, "general.name") ?? ""),
  };
  checkVocabulary(vocabulary);
  return vocabulary;
}

/** Throws `invalid-model` or `unsupported-model` for a vocabulary whose parts do not fit each other. */
export function checkVocabulary(vocabulary: Vocabulary): void {
  const { model, pre, tokens, scores, types, merges } = vocabulary;
  if (tokens.count === 0) throw invalid("the vocabulary has no tokens");
  if (scores && scores.length !== tokens.count)
    throw invalid(`the vocabulary has ${tokens.count} tokens but ${scores.length} scores`, {
      nTokens: tokens.count,
      nScores: scores.length,
    });
  if (types && types.length !== tokens.count)
    throw invalid(`the vocabulary has ${tokens.count} tokens but ${types.length} token types`, {
      nTokens: tokens.count,
      nTypes: types.length,
    });
  for (const [name, key] of Object.entries(ID_KEYS)) {
    const id = vocabulary[name as keyof typeof ID_KEYS];
    if (id !== undefined && !(Number.isInteger(id) && id >= 0 && id < tokens.count))
      throw invalid(`${key} is ${id}, but the vocabulary has ${tokens.count} tokens`, {
        key,
        id,
        nTokens: tokens.count,
      });
  }
  if (model === "gpt2") {
    preTokenizerNamed(pre);
    if (!merges) throw invalid("the byte-level vocabulary has no merges: tokenizer.ggml.merges is missing");
  }
}

function readString(metadata: VocabularyMetadata, key: string): string | undefined {
  const value = metadata.get(key);
  if (value === undefined || typeof value === "string") return value;
  throw wrongType(key, "a string", value);
}

function readBoolean(metadata: VocabularyMetadata, key: string): boolean | undefined {
  const value = metadata.get(key);
  if (value === undefined || typeof value === "boolean") return value;
  throw wrongType(key, "a boolean", value);
}

function readId(metadata: VocabularyMetadata, key: string): number | undefined {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  if (typeof value !== "number" && typeof value !== "bigint") throw wrongType(key, "a number", value);
  return NO_TOKEN.has(Number(value)) ? undefined : Number(value);
}

function readStrings(metadata: VocabularyMetadata, key: string): StringArray | undefined {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  const { count, bytes } = Object(value) as Partial<StringArray>;
  if (!(bytes instanceof Uint8Array) || !Number.isInteger(count) || count! < 0)
    throw wrongType(key, "an array of strings", value);
  return { count: count!, bytes };
}

function readNumbers(metadata: VocabularyMetadata, key: string): ArrayLike<number> | undefined {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  if (!ArrayBuffer.isView(value) || value instanceof DataView || isBigIntArray(value))
    throw wrongType(key, "an array of 32-bit numbers", value);
  return value as unknown as ArrayLike<number>;
}

function isBigIntArray(value: ArrayBufferView): boolean {
  return value instanceof BigInt64Array || value instanceof BigUint64Array;
}

function wrongType(key: string, expected: string, value: unknown): InlayError {
  const found = ArrayBuffer.isView(value) ? value.constructor.name : typeof value;
  return invalid(`${key} should be ${expected} but is of type ${found}`, { key, found });
}

function invalid(message: string, details: Record<string, unknown> = {}): InlayError {
  return new InlayError("invalid-model", message, details);
}
