/** What a token is, as a set of bits. The same numbers as `Attribute` in wasm/tokenizer/vocabulary.h. */
export const TokenAttribute = {
  /** Stands for text that has no token. */
  unknown: 1,
  /** Text. */
  normal: 2,
  /** Steers the model: never made from plain text, not printed unless asked for. */
  control: 4,
  /** Text that is matched as a whole before anything else. */
  userDefined: 8,
  /** One byte of text, spelled <0xXX>. */
  byte: 16,
  unused: 32,
  /** White space that follows the token belongs to it. */
  stripRight: 64,
} as const;
