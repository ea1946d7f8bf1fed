/**
 * The pre-tokenizers of byte-level vocabularies: what a model file calls them, and which rule each is.
 *
 * Names and behaviour are those of llama.cpp's `tokenizer.ggml.pre`; the rules are in wasm/tokenizer/pre_tokenize.h.
 */

import { InlayError } from "../errors.ts";

/** A rule, and what else the name of a pre-tokenizer implies. */
export interface PreTokenizer {
  /** The number in wasm/tokenizer/pre_tokenize.h. */
  readonly rule: number;
  /** A word that is a token is taken as it is, without merging. */
  readonly wholeWordsFirst: boolean;
  /** BOS is added when the file does not say. */
  readonly addBos: boolean;
}

const gpt2: PreTokenizer = { rule: 0, wholeWordsFirst: false, addBos: false };
const llama3: PreTokenizer = { rule: 1, wholeWordsFirst: true, addBos: true };
const llama3Rule: PreTokenizer = { rule: 1, wholeWordsFirst: false, addBos: false };
const qwen2: PreTokenizer = { rule: 2, wholeWordsFirst: false, addBos: false };
const smollm: PreTokenizer = { rule: 3, wholeWordsFirst: false, addBos: false };
const fallback: PreTokenizer = { rule: 4, wholeWordsFirst: false, addBos: false };

const BY_NAME: ReadonlyMap<string, PreTokenizer> = new Map(
  Object.entries({
    default: fallback,
    "gpt-2": gpt2,
    "phi-2": gpt2,
    mpt: gpt2,
    olmo: gpt2,
    jais: gpt2,
    trillion: gpt2,
    exaone4: gpt2,
    gigachat: gpt2,
    mellum: gpt2,
    "a.x-4.0": gpt2,
    "granite-docling": gpt2,
    "llama-bpe": llama3,
    llama3: llama3,
    "llama-v3": llama3,
    falcon3: llama3,
    "falcon-h1": llama3,
    pixtral: llama3,
    "midm-2.0": llama3,
    lfm2: llama3,
    dbrx: llama3Rule,
    "smaug-bpe": llama3Rule,
    "chatglm-bpe": llama3Rule,
    glm4: llama3Rule,
    qwen2: qwen2,
    "deepseek-r1-qwen": qwen2,
    stablelm2: qwen2,
    megrez: qwen2,
    kormo: qwen2,
    hunyuan: qwen2,
    smollm: smollm,
    starcoder: smollm,
    refact: smollm,
    "command-r": smollm,
    codeshell: smollm,
    exaone: smollm,
    "minerva-7b": smollm,
    mellum2: smollm,
  }),
);

/** The pre-tokenizer called `name`. Throws `unsupported-model` when there is none. */
export function preTokenizerNamed(name: string): PreTokenizer {
  const found = BY_NAME.get(name);
  if (found) return found;
  const supported = [...BY_NAME.keys()];
  throw new InlayError(
    "unsupported-model",
    `the model's pre-tokenizer (tokenizer.ggml.pre) is ${JSON.stringify(name)}; supported are ${supported.join(", ")}`,
    { pre: name, supported },
  );
}
