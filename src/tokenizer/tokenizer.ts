/** Text to token ids and back, over the tokenizer in WASM (wasm/tokenizer/). */

import type { WasmModule } from "../backend/wasm/module.ts";
import { InlayError } from "../errors.ts";
import { Detokenizer, type DetokenizerOptions } from "./detokenizer.ts";
import { preTokenizerNamed } from "./pre-tokenizer.ts";
import {
  type SpecialTokens,
  settleSpecialTokens,
  settleStripping,
  type TokenTable,
} from "./special-tokens.ts";
import { TokenAttribute } from "./token-attributes.ts";
import { checkVocabulary, type StringArray, type Vocabulary } from "./vocabulary.ts";

/** How {@link Tokenizer.encode} treats what is not plain text. */
export interface EncodeOptions {
  /** Add BOS and EOS where the model has them. @default false */
  readonly addSpecial?: boolean;
  /**
   * Read control tokens spelled out in the text, such as `<|im_end|>`, as those tokens. Leave it off for text that a
   * user wrote: with it on, the text could end its own turn. User-defined tokens are always read. @default false
   */
  readonly parseSpecial?: boolean;
}

/** How {@link Tokenizer.decode} prints. */
export interface DecodeOptions {
  /** Print the spelling of control and unknown tokens, which otherwise print nothing. @default false */
  readonly special?: boolean;
}

/** Kinds of vocabulary, as numbered in wasm/tokenizer/vocabulary.h. */
const KIND = { llama: 0, gpt2: 1 } as const;

/** `Status` in wasm/bridge.h; every other negative number is a large unsigned one. */
const OUT_OF_MEMORY = -1;
const BAD_DATA = -3;

const MAX_TEXT_BYTES = 2 ** 31 - 1;

/**
 * The tokenizer of one model. It holds memory in the WASM heap until it is disposed; several can share a module.
 * After {@link Tokenizer.dispose} every method throws `disposed`.
 */
export class Tokenizer {
  /** Number of tokens; ids are below it. */
  readonly nTokens: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  /** End of turn. */
  readonly eotId: number | undefined;
  /** End of message. */
  readonly eomId: number | undefined;
  readonly unkId: number | undefined;
  /** Whether `addSpecial` puts BOS first. */
  readonly addBos: boolean;
  /** Whether `addSpecial` puts EOS last. */
  readonly addEos: boolean;
  /** Whether encoding puts a space before the text, which decoding then takes away again. */
  readonly addSpacePrefix: boolean;
  readonly #wasm: WasmModule;
  readonly #endOfGeneration: ReadonlySet<number>;
  #handle: number | undefined;

  /**
   * Loads a vocabulary into the WASM heap; the vocabulary's arrays are not kept.
   * Throws `invalid-model` or `unsupported-model` when it cannot be used, `out-of-memory` when it does not fit.
   */
  static create(wasm: WasmModule, vocabulary: Vocabulary): Tokenizer {
    checkVocabulary(vocabulary);
    const handle = loadVocabulary(wasm, vocabulary);
    try {
      const table = new WasmTokenTable(wasm, handle);
      const special = settleSpecialTokens(table, vocabulary);
      settleStripping(table, vocabulary);
      return new Tokenizer(wasm, handle, vocabulary, special);
    } catch (error) {
      wasm.call("tok_destroy", handle);
      throw error;
    }
  }

  private constructor(wasm: WasmModule, handle: number, vocabulary: Vocabulary, special: SpecialTokens) {
    const isSentencePiece = vocabulary.model === "llama";
    const preTokenizer = isSentencePiece ? undefined : preTokenizerNamed(vocabulary.pre);
    // Ids that llama.cpp assumes for SentencePiece vocabularies whose file does not give them.
    const assume = (id: number): number | undefined =>
      isSentencePiece && id < vocabulary.tokens.count ? id : undefined;
    this.nTokens = vocabulary.tokens.count;
    this.bosId = vocabulary.bosId ?? assume(1);
    this.eosId = vocabulary.eosId ?? assume(2);
    this.unkId = vocabulary.unkId ?? assume(0);
    this.eotId = special.eotId;
    this.eomId = special.eomId;
    this.addBos = vocabulary.addBos ?? ((preTokenizer?.addBos ?? true) && this.bosId !== undefined);
    this.addEos = vocabulary.addEos ?? false;
    this.addSpacePrefix = isSentencePiece && (vocabulary.addSpacePrefix ?? true);
    requireId(this.addBos, this.bosId, "bos");
    requireId(this.addEos, this.eosId, "eos");
    this.#endOfGeneration =
      this.eosId === undefined ? special.endOfGeneration : new Set(special.endOfGeneration).add(this.eosId);
    this.#wasm = wasm;
    this.#handle = handle;

    const status = wasm.call(
      "tok_finish",
      handle,
      preTokenizer?.rule ?? 0,
      Number(preTokenizer?.wholeWordsFirst ?? false),
      Number(this.addSpacePrefix),
      this.unkId ?? -1,
    );
    if (status !== 0) throw outOfMemory(wasm, "the vocabulary");
  }

  /** The ids of `text`. Lone surrogates count as U+FFFD. Throws `out-of-memory`. */
  encode(text: string, options: EncodeOptions = {}): Uint32Array {
    return this.encodeBytes(new TextEncoder().encode(text), options);
  }

  /** The ids of UTF-8 text. Ill-formed sequences count as U+FFFD, as TextDecoder reads them. Throws `out-of-memory`. */
  encodeBytes(text: Uint8Array, options: EncodeOptions = {}): Uint32Array {
    const handle = this.#live();
    if (text.length > MAX_TEXT_BYTES) throw outOfMemory(this.#wasm, `${text.length} bytes of text`);
    const wasm = this.#wasm;
    const ptr = copyIn(wasm, text, "text to tokenize");
    try {
      const nIds = wasm.call("tok_encode", handle, ptr, text.length, Number(options.parseSpecial ?? false));
      if (nIds < 0) throw outOfMemory(wasm, `the tokens of ${text.length} bytes of text`);
      const start = options.addSpecial && this.addBos ? 1 : 0;
      const end = options.addSpecial && this.addEos ? 1 : 0;
      const ids = new Uint32Array(start + nIds + end);
      if (start) ids[0] = this.bosId!;
      ids.set(wasm.u32(wasm.call("tok_ids", handle) >>> 0, nIds), start);
      if (end) ids[start + nIds] = this.eosId!;
      return ids;
    } finally {
      wasm.call("tok_trim", handle);
      wasm.free(ptr);
    }
  }

  /**
   * The text of `ids`, with U+FFFD for what is not UTF-8. The space that encoding puts before the text is taken away,
   * also after a BOS that is not printed; text that continues other text is for {@link Tokenizer.detokenizer}.
   * Throws `invalid-option` for an id outside the vocabulary.
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const decoder = this.detokenizer({ ...options, atStart: true });
    return decoder.pushAll(ids) + decoder.flush();
  }

  /** A decoder for tokens that come one by one. */
  detokenizer(options: DetokenizerOptions = {}): Detokenizer {
    this.#live();
    return new Detokenizer(this, options);
  }

  /**
   * The bytes that `ids` print, one after the other; they need not be whole characters. Throws `invalid-option` for
   * an id outside the vocabulary.
   */
  tokenBytes(ids: number | ArrayLike<number>, options: DecodeOptions = {}): Uint8Array<ArrayBuffer> {
    const handle = this.#live();
    const list = typeof ids === "number" ? [ids] : ids;
    for (let i = 0; i < list.length; i++) this.#checked(list[i]!);
    const wasm = this.#wasm;
    const ptr = copyIn(wasm, new Uint8Array(new Uint32Array(list).buffer), "token ids");
    try {
      const nBytes = wasm.call("tok_decode", handle, ptr, list.length, Number(options.special ?? false));
      if (nBytes < 0) throw outOfMemory(wasm, `the text of ${list.length} tokens`);
      return wasm.bytes(wasm.call("tok_text", handle) >>> 0, nBytes).slice();
    } finally {
      wasm.call("tok_trim", handle);
      wasm.free(ptr);
    }
  }

  /** How the model file spells the token: `▁the`, `Ġthe`, `<0x0A>`, `<|im_end|>`. */
  tokenText(id: number): string {
    const handle = this.#live();
    this.#checked(id);
    const nBytes = this.#wasm.call("tok_spelling_bytes", handle, id) >>> 0;
    const bytes = this.#wasm.bytes(this.#wasm.call("tok_spelling", handle, id) >>> 0, nBytes).slice();
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  /** The first token spelled `spelling` in the model file, or undefined. */
  tokenId(spelling: string): number | undefined {
    return new WasmTokenTable(this.#wasm, this.#live()).find(spelling);
  }

  /** Whether the token is a control token: made from text only with `parseSpecial`, printed only with `special`. */
  isControl(id: number): boolean {
    const handle = this.#live();
    return (this.#wasm.call("tok_attributes", handle, this.#checked(id)) & TokenAttribute.control) !== 0;
  }

  /** Whether the model is done when it has sampled this token. */
  isEndOfGeneration(id: number): boolean {
    return this.#endOfGeneration.has(id);
  }

  /** Every token that ends generation. */
  get endOfGenerationIds(): number[] {
    return [...this.#endOfGeneration].sort((a, b) => a - b);
  }

  /** Frees the tokenizer's memory. Calling it again does nothing. */
  dispose(): void {
    if (this.#handle !== undefined) this.#wasm.call("tok_destroy", this.#handle);
    this.#handle = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #live(): number {
    if (this.#handle === undefined)
      throw new InlayError("disposed", "the tokenizer was used after dispose()");
    return this.#handle;
  }

  #checked(id: number): number {
    if (Number.isInteger(id) && id >= 0 && id < this.nTokens) return id;
    throw new InlayError(
      "invalid-option",
      `${id} is no token id; the vocabulary has ids 0 to ${this.nTokens - 1}`,
      {
        id,
        nTokens: this.nTokens,
      },
    );
  }
}

/** A vocabulary in WASM whose special tokens are being settled. */
class WasmTokenTable implements TokenTable {
  constructor(
    readonly wasm: WasmModule,
    readonly handle: number,
  ) {}

  find(spelling: string): number | undefined {
    const bytes = new TextEncoder().encode(spelling);
    const ptr = copyIn(this.wasm, bytes, "a token's spelling");
    const id = this.wasm.call("tok_find", this.handle, ptr, bytes.length);
    this.wasm.free(ptr);
    return id < 0 ? undefined : id;
  }

  attributes(id: number): number {
    return this.wasm.call("tok_attributes", this.handle, id);
  }

  setAttributes(id: number, bits: number): void {
    this.wasm.call("tok_set_attributes", this.handle, id, bits);
  }
}

/** Copies tokens and merges into a new tokenizer; returns its handle. */
function loadVocabulary(wasm: WasmModule, vocabulary: Vocabulary): number {
  const { tokens, types, scores, merges } = vocabulary;
  const copies: number[] = [];
  const copy = (array: Uint8Array | Int32Array | Float32Array | undefined): number => {
    if (!array) return 0;
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    copies.push(copyIn(wasm, bytes, "the vocabulary"));
    return copies[copies.length - 1]!;
  };
  try {
    const ptr = copy(tokens.bytes);
    const [typesPtr, scoresPtr] = [copy(types), copy(scores)];
    const kind = KIND[vocabulary.model];
    const result = wasm.call("tok_create", kind, ptr, tokens.bytes.length, tokens.count, typesPtr, scoresPtr);
    if (result === OUT_OF_MEMORY) throw outOfMemory(wasm, `a vocabulary of ${tokens.count} tokens`);
    if (result === BAD_DATA) throw badItem(wasm, "token", tokens, scores);
    const handle = result >>> 0;
    if (vocabulary.model === "gpt2" && merges) {
      const status = wasm.call(
        "tok_load_merges",
        handle,
        copy(merges.bytes),
        merges.bytes.length,
        merges.count,
      );
      if (status !== 0) {
        wasm.call("tok_destroy", handle);
        throw status === BAD_DATA
          ? badItem(wasm, "merge", merges)
          : outOfMemory(wasm, `${merges.count} merges`);
      }
    }
    return handle;
  } finally {
    for (const ptr of copies) wasm.free(ptr);
  }
}

function copyIn(wasm: WasmModule, bytes: Uint8Array, what: string): number {
  const ptr = wasm.alloc(bytes.length, what, 16);
  wasm.u8.set(bytes, ptr);
  return ptr;
}

/** The error for strings that WASM found wanting. */
function badItem(
  wasm: WasmModule,
  what: "token" | "merge",
  array: StringArray,
  scores?: Float32Array,
): InlayError {
  const item = wasm.call("tok_bad_item") >>> 0;
  const { count, bytes } = array;
  let fault: string;
  if (item >= count) fault = `bytes are left over after ${count} of them`;
  else if (scores && Number.isNaN(scores[item])) fault = "its score is not a number";
  else if (what === "token") fault = `it does not fit the ${bytes.length} bytes of the array`;
  else
    fault = `it does not fit the ${bytes.length} bytes of the array, or is not two parts with a space between`;
  const details = { item, count, byteLength: bytes.length };
  return new InlayError(
    "invalid-model",
    `${what} ${item} of ${count} in the vocabulary is unusable: ${fault}`,
    details,
  );
}

function requireId(isNeeded: boolean, id: number | undefined, name: "bos" | "eos"): void {
  if (isNeeded && id === undefined)
    throw new InlayError(
      "invalid-model",
      `tokenizer.ggml.add_${name}_token is true, but the file has no tokenizer.ggml.${name}_token_id`,
    );
}

function outOfMemory(wasm: WasmModule, what: string): InlayError {
  const heapBytes = wasm.memory.buffer.byteLength;
  const heap = `${(heapBytes / 2 ** 20).toFixed(0)} MiB`;
  return new InlayError("out-of-memory", `the WASM heap (${heap}) has no room for ${what}`, { heapBytes });
}
