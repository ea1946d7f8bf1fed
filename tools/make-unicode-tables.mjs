// Writes the Unicode table of the tokenizer's pre-tokenizers as a C++ header.
//
//   node tools/make-unicode-tables.mjs OUT.h
//
// One class per code point, taken from this Node's own Unicode data: letter \p{L}, number \p{N}, space
// \p{White_Space}, punctuation \p{P}, or other. The classes do not overlap. Two stages: code points are cut into
// blocks of 128, equal blocks are stored once, two classes to a byte.

import fs from "node:fs";
import path from "node:path";

const BLOCK = 128;
/** Class 0 is kOther; these are 1, 2, 3, 4. */
const CLASSES = [
  { name: "kLetter", test: /\p{L}/u },
  { name: "kNumber", test: /\p{N}/u },
  { name: "kSpace", test: /\p{White_Space}/u },
  { name: "kPunctuation", test: /\p{P}/u },
];

/** The class number of every code point, and how many code points there are up to the last one that has a class. */
function classify() {
  const classes = new Uint8Array(0x110000);
  let used = 0;
  for (let codePoint = 0; codePoint < classes.length; codePoint++) {
    const char = String.fromCodePoint(codePoint);
    const matching = CLASSES.filter((c) => c.test.test(char));
    if (matching.length > 1) throw new Error(`U+${codePoint.toString(16)} is in two classes`);
    if (matching.length === 0) continue;
    classes[codePoint] = 1 + CLASSES.indexOf(matching[0]);
    used = codePoint + 1;
  }
  return { classes, used };
}

/** The distinct blocks, and for each block of code points the number of its distinct block. */
function deduplicate(classes, used) {
  const numbers = new Map();
  const blocks = [];
  const index = [];
  for (let start = 0; start < used; start += BLOCK) {
    const block = classes.subarray(start, start + BLOCK);
    const key = block.join("");
    if (!numbers.has(key)) {
      numbers.set(key, blocks.length);
      blocks.push(block);
    }
    index.push(numbers.get(key));
  }
  if (blocks.length > 256) throw new Error(`${blocks.length} distinct blocks do not fit a byte`);
  return { blocks, index };
}

function rows(numbers) {
  const lines = [];
  for (let i = 0; i < numbers.length; i += 24) lines.push(`  ${numbers.slice(i, i + 24).join(",")},`);
  return lines.join("\n");
}

const out = process.argv[2];
if (!out) {
  console.error("usage: node tools/make-unicode-tables.mjs OUT.h");
  process.exit(2);
}
const { classes, used } = classify();
const { blocks, index } = deduplicate(classes, used);
const nibbles = blocks.flatMap((block) =>
  Array.from({ length: BLOCK / 2 }, (_, i) => block[2 * i] | (block[2 * i + 1] << 4)),
);

fs.mkdirSync(path.dirname(out), { recursive: true });
fs.writeFileSync(
  out,
  `// Made by tools/make-unicode-tables.mjs from Unicode ${process.versions.unicode}. Do not edit.
#pragma once

#include <cstdint>

namespace unicode {

enum Class : uint8_t { kOther, ${CLASSES.map((c) => c.name).join(", ")} };

// Code points from here on are kOther.
constexpr uint32_t kTableEnd = ${index.length * BLOCK};

// Code point / ${BLOCK} -> block.
constexpr uint8_t kBlockOf[] = {
${rows(index)}
};

// Block * ${BLOCK / 2} + (code point % ${BLOCK}) / 2 -> two classes, the even code point in the low half.
constexpr uint8_t kClassPairs[] = {
${rows(nibbles)}
};

}  // namespace unicode
`,
);
