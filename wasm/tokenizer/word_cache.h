// Remembers the ids of short pieces of text: a fixed number of entries in sets of two, of which the one that was not
// used last is replaced.
#pragma once

#include <cstdint>

#include "array.h"
#include "bytes.h"

namespace tok {

class WordCache {
 public:
  static constexpr uint32_t kMaxBytes = 30;
  static constexpr uint32_t kMaxIds = 8;

  struct Entry {
    uint8_t n_bytes;  // 0: free
    uint8_t n_ids;
    uint8_t bytes[kMaxBytes];
    uint32_t ids[kMaxIds];

    bool holds(Bytes word) const { return n_bytes == word.size && equal_bytes(bytes, word.data, word.size); }
  };
  static_assert(sizeof(Entry) == 64);

  // The entry of `word`, 1 byte or longer, or null.
  const Entry* find(Bytes word) {
    if (word.size > kMaxBytes || entries_.size() == 0) return nullptr;
    const uint32_t set = set_of(word);
    for (uint32_t way = 0; way < 2; way++) {
      const Entry* entry = &entries_[set * 2 + way];
      if (!entry->holds(word)) continue;
      recent_[set] = static_cast<uint8_t>(way);
      return entry;
    }
    return nullptr;
  }

  // Remembers the ids of `word`, when both are short and there is memory for a cache.
  void store(Bytes word, const uint32_t* ids, uint32_t n_ids) {
    if (word.size > kMaxBytes || n_ids > kMaxIds || !allocate()) return;
    const uint32_t set = set_of(word);
    recent_[set] ^= 1;
    Entry& entry = entries_[set * 2 + recent_[set]];
    entry.n_bytes = static_cast<uint8_t>(word.size);
    entry.n_ids = static_cast<uint8_t>(n_ids);
    for (uint32_t i = 0; i < word.size; i++) entry.bytes[i] = word.data[i];
    for (uint32_t i = 0; i < n_ids; i++) entry.ids[i] = ids[i];
  }

 private:
  static constexpr uint32_t kSets = 1 << 13;  // 1 MiB

  static uint32_t set_of(Bytes word) { return hash_bytes(word) & (kSets - 1); }

  bool allocate() {
    if (entries_.size() > 0) return true;
    if (!recent_.resize(kSets) || !entries_.resize(kSets * 2)) return false;
    for (uint32_t i = 0; i < kSets; i++) recent_[i] = 0;
    for (uint32_t i = 0; i < kSets * 2; i++) entries_[i].n_bytes = 0;
    return true;
  }

  Array<Entry> entries_;
  Array<uint8_t> recent_;  // of each set, the way used last
};

}  // namespace tok
