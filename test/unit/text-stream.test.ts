import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Random } from "../../src/generate/random.ts";
import { type TextPiece, TextStream } from "../../src/generate/text-stream.ts";

const encode = (text: string) => new TextEncoder().encode(text);

/** Pushes the parts as tokens 0, 1, 2, … and checks what must always hold. */
function stream(parts: readonly Uint8Array[], stops: readonly string[]) {
  const textStream = new TextStream(stops);
  const pieces: TextPiece[] = [];
  for (const [id, bytes] of parts.entries()) {
    const piece = textStream.push({ id, bytes, attached: undefined });
    if (piece) {
      assert.notEqual(piece.text, "", "push never returns empty text");
      pieces.push(piece);
    }
    if (textStream.stop !== undefined) break;
  }
  const last = textStream.end();
  if (last) pieces.push(last);
  const ids = pieces.flatMap((piece) => piece.tokens.map((token) => token.id));
  assert.deepEqual(ids, [...ids.keys()], "tokens are listed once and in order");
  for (const { text } of pieces) assert.ok(!/\p{Surrogate}/u.test(text), "no piece cuts a surrogate pair");
  return { text: pieces.map((piece) => piece.text).join(""), stop: textStream.stop, pieces, ids };
}

/** The definition: the text grows unit by unit until it ends with a stop string; of several, the longest. */
function reference(text: string, stops: readonly string[]): { text: string; stop: string | undefined } {
  for (let end = 1; end <= text.length; end++) {
    const matches = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    const stop = matches.sort((a, b) => b.length - a.length)[0];
    if (stop !== undefined) return { text: text.slice(0, end - stop.length), stop };
  }
  return { text, stop: undefined };
}

function cut(bytes: Uint8Array, ...at: number[]): Uint8Array[] {
  const bounds = [0, ...at, bytes.length];
  return bounds.slice(1).map((end, i) => bytes.subarray(bounds[i], end));
}

describe("every cut of the bytes gives the same text", () => {
  const cases: { name: string; text: string; stops: string[] }[] = [
    { name: "no stop strings", text: "naïve 你好 🙂 end", stops: [] },
    { name: "a stop string", text: "Hello\nUser: hi", stops: ["\nUser:"] },
    { name: "a stop string at the start", text: "###x", stops: ["###"] },
    { name: "a stop string at the end", text: "one two END", stops: ["END"] },
    { name: "the whole text", text: "STOP", stops: ["STOP"] },
    { name: "only the beginning of a stop string", text: "abc<|im_en", stops: ["<|im_end|>"] },
    { name: "a false start before the match", text: "aab aaab", stops: ["aaab"] },
    { name: "repeated false starts", text: "aaaaaaab!", stops: ["aab"] },
    { name: "one stop string ends another", text: "xxab yy", stops: ["ab", "b"] },
    { name: "the same, other order", text: "xxab yy", stops: ["b", "ab"] },
    { name: "one inside another", text: "xabcdx", stops: ["abcd", "bc"] },
    { name: "a failed long one leaves a short one", text: "abcabx!", stops: ["abcabc", "bx"] },
    { name: "between multi-byte characters", text: "你|好🙂|", stops: ["🙂|"] },
    { name: "multi-byte stop string", text: "ça va 你好 bye", stops: ["你好"] },
    { name: "characters that share leading bytes", text: "你你你好你", stops: ["你好"] },
    { name: "emoji that share a surrogate", text: "😁😂😀 x", stops: ["😀"] },
    { name: "case matters", text: "end End END", stops: ["END"] },
    { name: "a byte order mark is text", text: "\ufeffa", stops: ["b"] },
  ];
  for (const { name, text, stops } of cases)
    test(name, () => {
      const bytes = encode(text);
      const expected = reference(text, stops);
      for (let i = 0; i <= bytes.length; i++)
        for (let j = i; j <= bytes.length; j++) {
          const actual = stream(cut(bytes, i, j), stops);
          assert.deepEqual({ text: actual.text, stop: actual.stop }, expected, `cut at ${i} and ${j}`);
        }
      const single = stream(
        Array.from(bytes, (byte) => Uint8Array.of(byte)),
        stops,
      );
      assert.deepEqual({ text: single.text, stop: single.stop }, expected, "one byte per token");
    });
});

test("random text over two letters, random stop strings, random cuts", () => {
  const random = new Random(99);
  const letters = (max: number) =>
    Array.from({ length: 1 + Math.floor(random.next() * max) }, () => (random.next() < 0.5 ? "a" : "b")).join(
      "",
    );
  for (let round = 0; round < 3000; round++) {
    const text = letters(30);
    const stops = Array.from({ length: 1 + Math.floor(random.next() * 4) }, () => letters(6));
    const bytes = encode(text);
    const at = Array.from({ length: 5 }, () => Math.floor(random.next() * (bytes.length + 1))).sort(
      (a, b) => a - b,
    );
    const actual = stream(cut(bytes, ...at), stops);
    assert.deepEqual({ text: actual.text, stop: actual.stop }, reference(text, stops), `${text} ${stops}`);
  }
});

describe("what is held back", () => {
  const texts = (parts: (string | number[])[], stops: string[] = []) => {
    const bytes = parts.map((part) => (typeof part === "string" ? encode(part) : Uint8Array.from(part)));
    return stream(bytes, stops).pieces.map((piece) => piece.text);
  };
  test("nothing without a reason", () => assert.deepEqual(texts(["a", "b", "c"]), ["a", "b", "c"]));
  test("only what may begin a stop string", () =>
    assert.deepEqual(texts(["ab", "c<", "|", "im", "<"], ["<|end|>"]), ["ab", "c", "<|im", "<"]));
  test("only the incomplete character", () =>
    assert.deepEqual(texts([[0x61, 0xe4], [0xbd], [0xa0, 0x62]]), ["a", "你b"]));
  test("an incomplete character at the end becomes U+FFFD", () =>
    assert.deepEqual(texts([[0x61, 0xe4, 0xbd]]), ["a", "\ufffd"]));
  test("invalid bytes become U+FFFD at once", () =>
    assert.deepEqual(texts([[0x61, 0xff], "b"]), ["a\ufffd", "b"]));
});

describe("which tokens belong to a piece", () => {
  const tokens = (parts: (string | number[])[], stops: string[] = []) => {
    const bytes = parts.map((part) => (typeof part === "string" ? encode(part) : Uint8Array.from(part)));
    return stream(bytes, stops).pieces.map((piece) => [piece.text, piece.tokens.map((token) => token.id)]);
  };
  test("all parts of a character come with it", () =>
    assert.deepEqual(tokens([[0xf0, 0x9f], [0x99], [0x82], "!"]), [
      ["🙂", [0, 1, 2]],
      ["!", [3]],
    ]));
  test("a token that is half held back comes with its first half", () =>
    assert.deepEqual(tokens(["a<", "b"], ["<|"]), [
      ["a", [0]],
      ["<b", [1]],
    ]));
  test("a token that is wholly held back waits for its own text", () =>
    assert.deepEqual(tokens(["<", "<", "b"], ["<|"]), [
      ["<", [0]],
      ["<b", [1, 2]],
    ]));
  test("tokens of the stop string are not listed, one that reaches into it is", () =>
    assert.deepEqual(tokens(["a", "b<", "|end", "|>"], ["<|end|>"]), [
      ["a", [0]],
      ["b", [1]],
    ]));
  test("tokens without text come with the next text, or at the end", () =>
    assert.deepEqual(tokens(["", "a", "", "b", "", ""]), [
      ["a", [0, 1]],
      ["b", [2, 3]],
      ["", [4, 5]],
    ]));
  test("attachments stay with their token", () => {
    const textStream = new TextStream<string>([]);
    const piece = textStream.push({ id: 5, bytes: encode("x"), attached: "note" });
    assert.deepEqual(
      piece?.tokens.map((token) => token.attached),
      ["note"],
    );
  });
  test("nothing at all gives no piece", () => assert.equal(new TextStream([]).end(), undefined));
});

test("no token may follow the stop string", () => {
  const textStream = new TextStream(["x"]);
  textStream.push({ id: 0, bytes: encode("x"), attached: undefined });
  assert.equal(textStream.stop, "x");
  assert.equal(textStream.end(), undefined);
  assert.throws(() => textStream.push({ id: 1, bytes: encode("y"), attached: undefined }), {
    code: "internal",
  });
});
