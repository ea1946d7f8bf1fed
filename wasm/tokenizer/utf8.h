// UTF-8 as the WHATWG Encoding Standard decodes it (section 8.1.1): an ill-formed sequence becomes U+FFFD, one for
// each maximal part of a well-formed sequence.
#pragma once

#include <cstdint>

#include "array.h"
#include "bytes.h"

namespace tok {

// Bytes of the character that starts with `lead`, in well-formed text.
inline uint32_t utf8_length(uint8_t lead) { return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4; }

// The character at `p`, in well-formed text.
inline uint32_t utf8_decode(const uint8_t* p) {
  const uint32_t b = p[0];
  if (b < 0x80) return b;
  if (b < 0xe0) return (b & 0x1f) << 6 | (p[1] & 0x3f);
  if (b < 0xf0) return (b & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
  return (b & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

// How many bytes from the start are well formed: `text.size` when all are.
uint32_t utf8_valid_prefix(Bytes text);

// Appends `text` to `out` with every ill-formed sequence replaced by U+FFFD.
void utf8_repair(Bytes text, Array<uint8_t>& out);

}  // namespace tok
