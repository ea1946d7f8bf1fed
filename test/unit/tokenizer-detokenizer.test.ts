/** Tokens to text: whole, and piece by piece without ever splitting a character. */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { InlayError } from "../../src/errors.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import {
  BYTE_TOKENS,
  byteLevelVocabulary,
  CONTROL,
  randomInts,
  sentencePieceVocabulary,
  type Token,
  tokenizerWasm,
  USER_DEFINED,
} from "../fixtures/tokenizer-vocabulary.ts";

let wasm: WasmModule;
let bytes: Tokenizer;
let pieces: Tokenizer;

const PIECES: Token[] = [
  ...BYTE_TOKENS,
  ["▁"],
  ["a"],
  ["▁a"],
  ["a▁b"],
  ["▁[", 0, USER_DEFINED],
  ["[unused]", 0, 5],
  ["<0xZZ>", 0, 6],
];
const id = (spelling: string): number => PIECES.findIndex(([text]) => text === spelling);

before(async () => {
  wasm = await tokenizerWasm();
  bytes = Tokenizer.create(
    wasm,
    byteLevelVocabulary(
      "gpt-2",
      [["a", "\xf0"]],
      [
        ["<｜c｜>", 0, CONTROL],
        ["…", 0, 1],
      ],
    ),
  );
  pieces = Tokenizer.create(wasm, sentencePieceVocabulary(PIECES));
});

const UTF8 = new TextEncoder();

/** Every way to cut a list into two or three parts. */
function* cuts<T>(list: T[]): Generator<T[][]> {
  for (let i = 0; i <= list.length; i++)
    for (let j = i; j <= list.length; j++) yield [list.slice(0, i), list.slice(i, j), list.slice(j)];
}

for (const text of [
  "aé界🙂",
  "🙂🙂",
  "e\u0301\ufeff",
  "\ufeffa",
  "\u0000\u007f\u0080\u07ff\u0800\uffff\u{10000}\u{10ffff}",
])
  test(`every split of ${JSON.stringify(text)} gives whole characters`, () => {
    for (const parts of cuts([...UTF8.encode(text)])) {
      const detokenizer = bytes.detokenizer();
      const printed = parts.map((part) => detokenizer.pushAll(part));
      assert.equal(printed.join(""), text);
      for (const piece of printed) assert.doesNotMatch(piece, /[\p{Cs}\ufffd]/u);
      assert.equal(detokenizer.flush(), "");
    }
  });

test("a character is printed with its last byte", () => {
  const detokenizer = bytes.detokenizer();
  assert.deepEqual(
    [...UTF8.encode("é🙂!")].map((b) => detokenizer.push(b)),
    ["", "é", "", "", "", "🙂", "!"],
  );
});

const illFormed: number[][] = [
  [0x80],
  [0xc3],
  [0xc3, 0x28],
  [0xe2, 0x82],
  [0xe2, 0x82, 0x61],
  [0xf0, 0x9f, 0x99],
  [0xf0, 0x9f, 0x99, 0xf0, 0x9f, 0x99, 0x82],
  [0xed, 0xa0, 0x80],
  [0xc0, 0xaf],
  [0xf4, 0x90, 0x80, 0x80],
  [0xff, 0x61, 0xfe],
  [0xe0, 0x9f, 0xbf],
];
for (const ids of illFormed)
  test(`ill-formed ${ids.map((b) => b.toString(16)).join(" ")} prints as TextDecoder prints it`, () => {
    const expected = new TextDecoder().decode(Uint8Array.from(ids));
    assert.equal(bytes.decode(ids), expected);
    const detokenizer = bytes.detokenizer();
    assert.equal(ids.map((b) => detokenizer.push(b)).join("") + detokenizer.flush(), expected);
    assert.equal(detokenizer.pushAll(UTF8.encode("ok")), "ok", "usable after flush");
  });

test("random bytes: piece by piece is the same as whole", () => {
  const random = randomInts(17);
  for (let i = 0; i < 300; i++) {
    const ids = Array.from({ length: random(20) }, () => (random(3) ? 0x80 + random(0x80) : random(257)));
    const detokenizer = bytes.detokenizer({ atStart: true });
    assert.equal(ids.map((t) => detokenizer.push(t)).join("") + detokenizer.flush(), bytes.decode(ids));
  }
});

test("tokenBytes gives a token's bytes, whole characters or not", () => {
  assert.deepEqual([...bytes.tokenBytes(256)], [0x61, 0xf0]);
  assert.deepEqual([...bytes.tokenBytes([256, 0x9f])], [0x61, 0xf0, 0x9f]);
  assert.deepEqual([...bytes.tokenBytes([])], []);
  assert.deepEqual([...pieces.tokenBytes(id("<0x0A>"))], [10]);
  assert.deepEqual([...pieces.tokenBytes(id("▁a"))], [0x20, 0x61]);
});

test("a normal token outside the byte alphabet prints its spelling", () => {
  assert.equal(bytes.decode([258]), "…");
});

test("control and unknown tokens print only when asked for", () => {
  assert.equal(bytes.decode([97, 257, 98]), "ab");
  assert.equal(bytes.decode([97, 257, 98], { special: true }), "a<｜c｜>b");
  assert.equal(pieces.decode([0, 1, id("a"), 2]), "a");
  assert.equal(pieces.decode([0, 1, id("a"), 2], { special: true }), "<unk><s>a</s>");
  assert.equal(bytes.detokenizer({ special: true }).push(257), "<｜c｜>");
});

test("unused tokens and misspelled byte tokens print nothing, user-defined ones their spelling", () => {
  assert.equal(pieces.decode([id("a"), id("[unused]"), id("<0xZZ>"), id("▁[")], { special: true }), "a▁[");
});

const spaces: { reason: string; ids: number[]; text: string }[] = [
  { reason: "dropped at the start", ids: [id("▁a"), id("▁a")], text: "a a" },
  { reason: "only one of them", ids: [id("▁"), id("▁a")], text: " a" },
  { reason: "after tokens that do not print", ids: [1, id("▁a")], text: "a" },
  { reason: "as a byte token", ids: [id("<0x20>"), id("a")], text: "a" },
  { reason: "not when something else comes first", ids: [id("a"), id("▁a")], text: "a a" },
  { reason: "inside a token it stays", ids: [id("a▁b")], text: "a b" },
];
for (const { reason, ids, text } of spaces)
  test(`the space before SentencePiece text: ${reason}`, () => {
    assert.equal(pieces.decode(ids), text);
    const detokenizer = pieces.detokenizer({ atStart: true });
    assert.equal(ids.map((t) => detokenizer.push(t)).join(""), text);
  });

test("text that continues keeps its space, and so does text after a printed BOS", () => {
  assert.equal(pieces.detokenizer().pushAll([id("▁a")]), " a");
  assert.equal(pieces.decode([1, id("▁a")], { special: true }), "<s> a");
});

test("decoding undoes encoding", () => {
  const random = randomInts(23);
  const alphabet = [..."ab  é界🙂\n\u0000▁"];
  for (let i = 0; i < 300; i++) {
    const text = Array.from({ length: random(15) }, () => alphabet[random(alphabet.length)]).join("");
    for (const addSpecial of [false, true]) {
      assert.equal(bytes.decode(bytes.encode(text, { addSpecial })), text);
      // SentencePiece cannot tell U+2581 from a space.
      assert.equal(pieces.decode(pieces.encode(text, { addSpecial })), text.replaceAll("▁", " "));
    }
  }
});

test("ids outside the vocabulary are refused", () => {
  for (const bad of [-1, bytes.nTokens, 1.5, Number.NaN, 2 ** 32]) {
    const isRefusal = (error: unknown): boolean =>
      error instanceof InlayError && error.code === "invalid-option" && error.message.includes(`${bad}`);
    assert.throws(() => bytes.decode([97, bad]), isRefusal);
    assert.throws(() => bytes.tokenBytes(bad), isRefusal);
    assert.throws(() => bytes.tokenText(bad), isRefusal);
    assert.throws(() => bytes.detokenizer().push(bad), isRefusal);
  }
});
