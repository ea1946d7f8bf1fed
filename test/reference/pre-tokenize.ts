/**
 * The pre-tokenizers as the regular expressions of llama.cpp. Several in a row: each one cuts the pieces of the one
 * before it into its matches and what lies between them.
 */

const CONTRACTION = "'s|'t|'re|'ve|'m|'ll|'d";
/** Case is ignored for ASCII only. */
const ANY_CASE = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]";

const SPACE = "\\p{White_Space}";
const OTHER = `[^${SPACE}\\p{L}\\p{N}]`;
const TRAILING = `${SPACE}+(?!\\P{White_Space})|${SPACE}+`;

const GPT2 = `${CONTRACTION}| ?\\p{L}+| ?\\p{N}+| ?${OTHER}+|${TRAILING}`;

function llama3(number: string): string {
  return `${ANY_CASE}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${number}| ?${OTHER}+[\\r\\n]*|${SPACE}*[\\r\\n]+|${TRAILING}`;
}

const RULES: Record<string, string[]> = {
  "gpt-2": [GPT2],
  "llama-bpe": [llama3("\\p{N}{1,3}")],
  dbrx: [llama3("\\p{N}{1,3}")],
  qwen2: [llama3("\\p{N}")],
  smollm: ["\\p{N}", GPT2],
  default: ["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"],
};

/** The words of `text` by the rule of pre-tokenizer `pre`; together they are the text. */
export function preTokenize(pre: keyof typeof RULES, text: string): string[] {
  let pieces = [text];
  for (const rule of RULES[pre]!) pieces = pieces.flatMap((piece) => cut(piece, new RegExp(rule, "gu")));
  return pieces;
}

function cut(piece: string, rule: RegExp): string[] {
  const pieces: string[] = [];
  let end = 0;
  for (const match of piece.matchAll(rule)) {
    if (match.index > end) pieces.push(piece.slice(end, match.index));
    pieces.push(match[0]);
    end = match.index + match[0].length;
  }
  if (end < piece.length) pieces.push(piece.slice(end));
  return pieces;
}
