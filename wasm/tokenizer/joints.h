// Which neighbours occur side by side inside tokens. Where two neighbours never do, no merge reaches across, so the
// text can be cut there and the parts tokenized on their own, with the same result.
//
// Neighbours are characters (SentencePiece) or bytes (byte-level). Pairs below 256 have a bit each; other pairs share
// bits by hash, and then the text is merely cut less often.
#pragma once

#include <cstdint>

#include "array.h"
#include "bytes.h"

namespace tok {

class Joints {
 public:
  // Makes room for the pairs of `n_tokens` tokens. False when the heap refuses.
  bool reserve(uint32_t n_tokens) {
    uint32_t n_hashed = 1 << 14;
    while (n_hashed < kMaxHashed && n_hashed / 16 < n_tokens) n_hashed *= 2;
    hash_mask_ = n_hashed - 1;
    if (!bits_.resize((kExact + n_hashed) / 32)) return false;
    for (uint32_t i = 0; i < bits_.size(); i++) bits_[i] = 0;
    return true;
  }

  void add(uint32_t left, uint32_t right) {
    const uint32_t i = bit(left, right);
    bits_[i >> 5] |= 1u << (i & 31);
  }

  bool has(uint32_t left, uint32_t right) const {
    const uint32_t i = bit(left, right);
    return bits_[i >> 5] >> (i & 31) & 1;
  }

 private:
  static constexpr uint32_t kExact = 256 * 256;
  static constexpr uint32_t kMaxHashed = 1 << 22;

  uint32_t bit(uint32_t left, uint32_t right) const {
    if ((left | right) < 256) return left << 8 | right;
    return kExact + (static_cast<uint32_t>(mix(static_cast<uint64_t>(left) << 32 | right)) & hash_mask_);
  }

  Array<uint32_t> bits_;
  uint32_t hash_mask_ = 0;
};

}  // namespace tok
