// U+2581, which SentencePiece writes for a space.
#pragma once

#include <cstdint>

#include "bytes.h"

namespace tok {

inline constexpr uint8_t kSpaceMark[] = {0xe2, 0x96, 0x81};

// Copies `text` to `out`, which has room for all of it, with every U+2581 made a space. Returns the end.
inline uint8_t* unescape_spaces(Bytes text, uint8_t* out) {
  for (uint32_t i = 0; i < text.size; i++) {
    const uint8_t* p = text.data + i;
    if (*p == 0xe2 && text.size - i >= 3 && p[1] == 0x96 && p[2] == 0x81) {
      *out++ = ' ';
      i += 2;
    } else {
      *out++ = *p;
    }
  }
  return out;
}

}  // namespace tok
