#include "utf8.h"

namespace tok {

namespace {

struct Step {
  uint32_t size;  // bytes of a well-formed character, or of the ill-formed part to replace
  bool ok;
};

// Looks at the sequence that starts with the non-ASCII byte p[0]; n >= 1 bytes are there.
Step step(const uint8_t* p, uint32_t n) {
  const uint8_t lead = p[0];
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const uint32_t size = utf8_length(lead);
  // Overlong forms, surrogates and code points past U+10FFFF are excluded by the second byte.
  const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (n < 2 || p[1] < low || p[1] > high) return {1, false};
  for (uint32_t i = 2; i < size; i++)
    if (i >= n || (p[i] & 0xc0) != 0x80) return {i, false};
  return {size, true};
}

}  // namespace

uint32_t utf8_valid_prefix(Bytes text) {
  uint32_t i = 0;
  while (i < text.size) {
    if (text.size - i >= 8 && (load_u64(text.data + i) & 0x8080808080808080u) == 0) {
      i += 8;
    } else if (text.data[i] < 0x80) {
      i++;
    } else {
      const Step s = step(text.data + i, text.size - i);
      if (!s.ok) return i;
      i += s.size;
    }
  }
  return i;
}

void utf8_repair(Bytes text, Array<uint8_t>& out) {
  static constexpr uint8_t kReplacement[] = {0xef, 0xbf, 0xbd};
  while (text.size > 0) {
    const uint32_t good = utf8_valid_prefix(text);
    out.append(text.data, good);
    text = {text.data + good, text.size - good};
    if (text.size == 0) return;
    const Step bad = step(text.data, text.size);
    out.append(kReplacement, sizeof kReplacement);
    text = {text.data + bad.size, text.size - bad.size};
  }
}

}  // namespace tok
