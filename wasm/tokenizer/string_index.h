// Byte strings numbered from 0 in the order they were added, and a map from a string back to its number.
#pragma once

#include <cstdint>

#include "array.h"
#include "bytes.h"

namespace tok {

constexpr uint32_t kNone = UINT32_MAX;

class StringList {
 public:
  // Room for `n_strings` of `n_bytes` in all. False when the heap refuses.
  bool reserve(uint32_t n_strings, uint32_t n_bytes) { return bytes_.reserve(n_bytes) && ends_.reserve(n_strings); }

  // Adds a copy of `s`, which must not be of this list. Its number is size() - 1, unless failed().
  void add(Bytes s) {
    bytes_.append(s.data, s.size);
    ends_.push(bytes_.size());
  }

  Bytes operator[](uint32_t number) const {
    const uint32_t start = number == 0 ? 0 : ends_[number - 1];
    return {bytes_.data() + start, ends_[number] - start};
  }

  // The number of the first string that equals `s`, or kNone; looks at them all.
  uint32_t find(Bytes s) const {
    uint32_t start = 0;
    for (uint32_t i = 0; i < ends_.size(); i++) {
      const uint32_t end = ends_[i];
      if (end - start == s.size && equal_bytes(bytes_.data() + start, s.data, s.size)) return i;
      start = end;
    }
    return kNone;
  }

  uint32_t size() const { return ends_.size(); }
  bool failed() const { return bytes_.failed() || ends_.failed(); }

 private:
  Array<uint8_t> bytes_;
  Array<uint32_t> ends_;
};

// A hash map from strings of a StringList to their numbers: open addressing, linear probing, at most three slots of
// four in use.
class StringIndex {
 public:
  explicit StringIndex(const StringList& strings) : strings_(strings) {}

  // Room for `n_strings`. False when the heap refuses.
  bool reserve(uint32_t n_strings);

  // Makes string `number` findable, unless an equal one already is. False when the heap refuses.
  bool add(uint32_t number);

  // How many strings can be found: fewer than were added when some were equal.
  uint32_t size() const { return n_used_; }

  // The number of the first string added that equals `s`, or kNone.
  uint32_t find(Bytes s) const {
    if (slots_.size() == 0) return kNone;
    const uint32_t hash = hash_bytes(s), mask = slots_.size() - 1;
    for (uint32_t i = hash & mask;; i = (i + 1) & mask) {
      const Slot slot = slots_[i];
      if (slot.number == kNone) return kNone;
      if (slot.hash == hash && equals(slot.number, s)) return slot.number;
    }
  }

 private:
  struct Slot {
    uint32_t hash;
    uint32_t number;
  };

  bool equals(uint32_t number, Bytes s) const {
    const Bytes t = strings_[number];
    return t.size == s.size && equal_bytes(t.data, s.data, s.size);
  }

  const StringList& strings_;
  Array<Slot> slots_;  // a power of two of them, or none
  uint32_t n_used_ = 0;
};

}  // namespace tok
