// The Unicode class of a character, as the pre-tokenizers ask for it.
#pragma once

#include "unicode_tables.h"
#include "utf8.h"

namespace tok {

// Sets of classes, to test several at once.
enum ClassSet : uint32_t {
  kOthers = 1 << unicode::kOther | 1 << unicode::kPunctuation,  // neither letter, number nor space
  kLetters = 1 << unicode::kLetter,
  kNumbers = 1 << unicode::kNumber,
  kSpaces = 1 << unicode::kSpace,
  kPunctuations = 1 << unicode::kPunctuation,
};

// The class of `code_point` as a set of one.
constexpr uint32_t class_of(uint32_t code_point) {
  if (code_point >= unicode::kTableEnd) return 1 << unicode::kOther;
  const uint32_t pair = unicode::kBlockOf[code_point >> 7] * 64u + (code_point >> 1 & 63);
  return 1u << (unicode::kClassPairs[pair] >> (code_point & 1) * 4 & 15);
}

struct AsciiClasses {
  uint8_t of[128];

  constexpr AsciiClasses() : of() {
    for (uint32_t c = 0; c < 128; c++) of[c] = static_cast<uint8_t>(class_of(c));
  }
};

inline constexpr AsciiClasses kAsciiClasses;

// The class of the character at `p`, in well-formed text.
inline uint32_t class_at(const uint8_t* p) { return *p < 0x80 ? kAsciiClasses.of[*p] : class_of(utf8_decode(p)); }

}  // namespace tok
