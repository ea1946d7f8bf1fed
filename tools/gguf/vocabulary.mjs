// @ts-check
/**
 * Made-up vocabularies of any size whose tokenizers work: every text can be encoded, merges follow from each other,
 * and control tokens, BOS/EOS and chat template are those of the model family.
 *
 * Words are built from syllables (consonant, vowel, perhaps a consonant), so that English text meets short tokens
 * and generated text can be read aloud.
 */

/** @typedef {import("./model.mjs").TokenizerKind} TokenizerKind */
/** @typedef {import("./model.mjs").Vocabulary} Vocabulary */

/** @typedef {{ controls: string[], nControls: number, isFront: boolean, bos: string, eos: string, addBos: boolean, template: string }} Family */

const CHATML =
  "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const HEADERS =
  "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n" +
  "{{ message.content | trim }}<|eot_id|>{% endfor %}" +
  "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

const TAGS =
  "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}" +
  "{% if add_generation_prompt %}<|assistant|>\n{% endif %}";

/** @type {Readonly<Record<Exclude<TokenizerKind, "spm">, Family>>} */
const FAMILIES = {
  smollm: {
    controls: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    nControls: 17,
    isFront: true,
    bos: "<|im_start|>",
    eos: "<|im_end|>",
    addBos: false,
    template: CHATML,
  },
  qwen2: {
    controls: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    nControls: 293,
    isFront: false,
    bos: "<|endoftext|>",
    eos: "<|im_end|>",
    addBos: false,
    template: CHATML,
  },
  "llama-bpe": {
    controls: [
      "<|begin_of_text|>",
      "<|end_of_text|>",
      "<|start_header_id|>",
      "<|end_header_id|>",
      "<|eot_id|>",
    ],
    nControls: 256,
    isFront: false,
    bos: "<|begin_of_text|>",
    eos: "<|eot_id|>",
    addBos: true,
    template: HEADERS,
  },
};

const CONSONANTS = [..."tnshrdlcmfwgypbvkjxqz"];
const VOWELS = [..."eaoiu"];

/**
 * Pairs of earlier strings to join, in merge order, without end in practice (over a million).
 * @param {string} space  how the tokenizer writes a space at the start of a word
 * @returns {Generator<[string, string]>}
 */
function* joins(space) {
  const open = CONSONANTS.flatMap((c) => VOWELS.map((v) => c + v));
  for (const syllable of open) yield [syllable[0], syllable[1]];
  for (const letter of [...VOWELS, ...CONSONANTS]) yield [space, letter];
  for (const syllable of open) yield [space, syllable];
  for (const syllable of open) for (const c of CONSONANTS) yield [syllable, c];
  for (const syllable of open) for (const c of CONSONANTS) yield [space + syllable, c];
  for (const a of open) for (const b of open) yield [a, b];
  for (const a of open) for (const b of open) yield [space + a, b];
  for (const a of open) for (const b of open) for (const c of open) yield [space + a + b, c];
}

/**
 * Joins until `count` new strings exist.
 * @param {string} space
 * @param {number} count
 * @param {ReadonlySet<string>} existing
 */
function makeWords(space, count, existing) {
  /** @type {string[]} */
  const words = [];
  /** @type {string[]} */
  const merges = [];
  const seen = new Set(existing);
  for (const [left, right] of joins(space)) {
    if (words.length === count) break;
    if (seen.has(left + right)) continue;
    seen.add(left + right);
    words.push(left + right);
    merges.push(`${left} ${right}`);
  }
  return { words, merges };
}

/** GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up. Index = token order. */
function byteAlphabet() {
  const isPrintable = (/** @type {number} */ b) => (b > 32 && b < 127) || (b > 160 && b !== 173);
  const all = Array.from({ length: 256 }, (_, b) => b);
  const printable = all.filter(isPrintable).map((b) => String.fromCharCode(b));
  const others = all.filter((b) => !isPrintable(b)).map((_, i) => String.fromCharCode(256 + i));
  return [...printable, ...others];
}

/** How byte-level BPE writes a space. */
const BYTE_SPACE = "\u0120";
/** How SentencePiece writes a space. */
const SPM_SPACE = "\u2581";

const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const BYTE = 6;

/**
 * A vocabulary with exactly `size` tokens.
 * @param {TokenizerKind} kind
 * @param {number} size
 * @returns {Vocabulary}
 */
export function makeVocabulary(kind, size) {
  return kind === "spm" ? makeSpm(size) : makeBpe(kind, size);
}

/**
 * @param {Exclude<TokenizerKind, "spm">} kind
 * @param {number} size
 * @returns {Vocabulary}
 */
function makeBpe(kind, size) {
  const family = FAMILIES[kind];
  const alphabet = byteAlphabet();
  // Small vocabularies have only the control tokens with a meaning.
  const nControls = size >= 16 * family.nControls ? family.nControls : family.controls.length;
  const nNormal = size - nControls;
  if (nNormal < alphabet.length)
    throw new RangeError(`a ${kind} vocabulary needs ${alphabet.length + nControls} tokens, not ${size}`);
  const { words, merges } = makeWords(BYTE_SPACE, nNormal - alphabet.length, new Set(alphabet));
  const controls = Array.from({ length: nControls }, (_, i) => family.controls[i] ?? `<|reserved_${i}|>`);
  const normal = [...alphabet, ...words];
  const firstNormal = family.isFront ? nControls : 0;
  const firstControl = family.isFront ? 0 : nNormal;
  const tokens = family.isFront ? [...controls, ...normal] : [...normal, ...controls];
  const isControl = (/** @type {number} */ id) => id >= firstControl && id < firstControl + nControls;
  const idOf = (/** @type {string} */ control) => firstControl + controls.indexOf(control);
  const nAscii = 94;
  return {
    metadata: [
      ["tokenizer.ggml.model", "string", "gpt2"],
      ["tokenizer.ggml.pre", "string", kind],
      ["tokenizer.ggml.tokens", "string[]", tokens],
      ["tokenizer.ggml.token_type", "i32[]", tokens.map((_, id) => (isControl(id) ? CONTROL : NORMAL))],
      ["tokenizer.ggml.merges", "string[]", merges],
      ["tokenizer.ggml.bos_token_id", "u32", idOf(family.bos)],
      ["tokenizer.ggml.eos_token_id", "u32", idOf(family.eos)],
      ["tokenizer.ggml.padding_token_id", "u32", firstControl],
      ["tokenizer.ggml.add_bos_token", "bool", family.addBos],
      ["tokenizer.chat_template", "string", family.template],
    ],
    isQuiet: (id) => isControl(id) || (id >= firstNormal + nAscii && id < firstNormal + alphabet.length),
  };
}

/**
 * A SentencePiece-style vocabulary: unknown, BOS, EOS, 256 byte tokens, single characters, then words with falling scores.
 * @param {number} size
 * @returns {Vocabulary}
 */
function makeSpm(size) {
  const controls = ["<unk>", "<s>", "</s>"];
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);
  const ascii = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i));
  const characters = [SPM_SPACE, ...ascii, ..."äöüßéèñ日本語"];
  const nFixed = controls.length + bytes.length + characters.length;
  if (size < nFixed) throw new RangeError(`an spm vocabulary needs ${nFixed} tokens, not ${size}`);
  const { words } = makeWords(SPM_SPACE, size - nFixed, new Set(characters));
  const tokens = [...controls, ...bytes, ...characters, ...words];
  const firstCharacter = controls.length + bytes.length;
  const typeOf = (/** @type {number} */ id) => {
    if (id === 0) return UNKNOWN;
    if (id < controls.length) return CONTROL;
    return id < firstCharacter ? BYTE : NORMAL;
  };
  return {
    metadata: [
      ["tokenizer.ggml.model", "string", "llama"],
      ["tokenizer.ggml.pre", "string", "default"],
      ["tokenizer.ggml.tokens", "string[]", tokens],
      [
        "tokenizer.ggml.scores",
        "f32[]",
        tokens.map((_, id) => (id < firstCharacter ? 0 : firstCharacter - id)),
      ],
      ["tokenizer.ggml.token_type", "i32[]", tokens.map((_, id) => typeOf(id))],
      ["tokenizer.ggml.bos_token_id", "u32", 1],
      ["tokenizer.ggml.eos_token_id", "u32", 2],
      ["tokenizer.ggml.unknown_token_id", "u32", 0],
      ["tokenizer.ggml.add_bos_token", "bool", true],
      ["tokenizer.ggml.add_eos_token", "bool", false],
      ["tokenizer.ggml.add_space_prefix", "bool", true],
      ["tokenizer.chat_template", "string", TAGS],
    ],
    isQuiet: (id) => id < firstCharacter,
  };
}
