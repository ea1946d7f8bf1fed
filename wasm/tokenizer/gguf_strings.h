// Reads an array of GGUF strings: a 64-bit little-endian length, then that many bytes, back to back. The bytes come
// from a model file, so every length is checked against what is left.
#pragma once

#include "bytes.h"

namespace tok {

class GgufStrings {
 public:
  explicit GgufStrings(Bytes array) : left_(array) {}

  // The next string, or false when it does not fit the array.
  bool next(Bytes* out) {
    if (left_.size < 8) return false;
    const uint64_t size = load_u64(left_.data);
    if (size > left_.size - 8) return false;
    *out = {left_.data + 8, static_cast<uint32_t>(size)};
    left_ = {left_.data + 8 + out->size, left_.size - 8 - out->size};
    return true;
  }

  bool at_end() const { return left_.size == 0; }

 private:
  Bytes left_;
};

}  // namespace tok
