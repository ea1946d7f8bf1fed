// The printable alphabet in which byte-level BPE vocabularies are written (Radford et al. 2019, GPT-2): each byte is
// one character. Bytes 33..126, 161..172 and 174..255 stand for themselves; the other 68 become U+0100, U+0101, …
#pragma once

#include <cstdint>

#include "bytes.h"

namespace tok {

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

constexpr uint32_t kAlphabetEnd = 256 + 68;

struct ByteAlphabet {
  int16_t byte_of[kAlphabetEnd];  // code point -> byte, or -1

  constexpr ByteAlphabet() : byte_of() {
    for (auto& byte : byte_of) byte = -1;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; byte++) byte_of[stands_for_itself(byte) ? byte : next++] = int16_t(byte);
  }
};

inline constexpr ByteAlphabet kByteAlphabet;

// Writes the bytes that `token` is a spelling of to `out`, which has room for token.size, and returns how many; -1
// when a character is not of the alphabet.
inline int64_t decode_byte_alphabet(Bytes token, uint8_t* out) {
  const uint8_t* const start = out;
  for (uint32_t i = 0; i < token.size; i++) {
    uint32_t code_point = token.data[i];
    if (code_point >= 0x80) {
      // The alphabet ends below U+0800, so longer sequences are not of it.
      if (code_point < 0xc2 || code_point > 0xdf || i + 1 == token.size) return -1;
      const uint32_t second = token.data[++i];
      if ((second & 0xc0) != 0x80) return -1;
      code_point = (code_point & 0x1f) << 6 | (second & 0x3f);
    }
    if (code_point >= kAlphabetEnd || kByteAlphabet.byte_of[code_point] < 0) return -1;
    *out++ = static_cast<uint8_t>(kByteAlphabet.byte_of[code_point]);
  }
  return out - start;
}

}  // namespace tok
