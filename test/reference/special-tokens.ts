/** Cutting text at special tokens as llama.cpp does: the longest token first, over all of the text that is left. */

export interface SpecialToken {
  readonly text: string;
  /** White space after it is dropped. */
  readonly stripRight?: boolean;
}

/** A piece of plain text, or a special token. */
export type Piece = string | SpecialToken;

export function splitAtSpecial(text: string, tokens: readonly SpecialToken[]): Piece[] {
  const byLength = [...tokens].sort((a, b) => utf8Length(b.text) - utf8Length(a.text));
  let pieces: Piece[] = [text];
  for (const token of byLength)
    pieces = pieces.flatMap((piece) => (typeof piece === "string" ? splitAt(piece, token) : [piece]));
  return pieces.filter((piece) => piece !== "");
}

function splitAt(text: string, token: SpecialToken): Piece[] {
  const at = text.indexOf(token.text);
  if (at < 0) return [text];
  let rest = text.slice(at + token.text.length);
  if (token.stripRight) rest = rest.replace(/^[ \t-\r]+/, "");
  return [text.slice(0, at), token, ...splitAt(rest, token)];
}

function utf8Length(text: string): number {
  return new TextEncoder().encode(text).length;
}
