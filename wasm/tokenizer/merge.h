// Byte-pair merging of one piece of text: the pair of neighbouring symbols with the smallest priority is merged
// first, the leftmost of equal ones, until no pair can be merged. Sennrich et al. 2016, arXiv:1508.07909, with the
// order of merges that llama.cpp uses for both of its tokenizers.
//
// A symbol is named by the offset of its first byte, so every array has one element a byte. The queue holds
// priority << 32 | offset of the left symbol; an entry is live while the pair that starts there still has that
// priority. Time O(n log n), 24 bytes of memory a byte of text.
#pragma once

#include <cstdint>

#include "array.h"
#include "string_index.h"

namespace tok {

// A heap of numbers, the smallest on top. Four children to a parent: half as deep as with two, and they lie together.
class MinHeap {
 public:
  void clear() { items_.clear(); }
  void trim(uint32_t keep_bytes) { items_.trim(keep_bytes); }
  bool failed() const { return items_.failed(); }
  bool empty() const { return items_.size() == 0; }

  void push(uint64_t value) {
    items_.push(value);
    if (items_.failed()) return;
    uint32_t at = items_.size() - 1;
    for (; at > 0 && items_[(at - 1) / 4] > value; at = (at - 1) / 4) items_[at] = items_[(at - 1) / 4];
    items_[at] = value;
  }

  uint64_t pop() {
    const uint64_t top = items_[0];
    const uint64_t last = items_[items_.size() - 1];
    items_.pop();
    const uint32_t n = items_.size();
    uint32_t at = 0;
    for (uint32_t child = 1; child < n; child = 4 * at + 1) {
      const uint32_t end = n - child < 4 ? n : child + 4;
      uint32_t smallest = child;
      for (uint32_t i = child + 1; i < end; i++)
        if (items_[i] < items_[smallest]) smallest = i;
      if (items_[smallest] >= last) break;
      items_[at] = items_[smallest];
      at = smallest;
    }
    if (n > 0) items_[at] = last;
    return top;
  }

 private:
  Array<uint64_t> items_;
};

class Merger {
 public:
  // Merges the symbols set up with start() and add(). `pairs` says what can be merged:
  //
  //   uint32_t find(left, middle, end)   a name for the merge of symbols [left, middle) and [middle, end), or kNone;
  //                                      ids are read with id()
  //   uint32_t priority(merge)           smaller merges first
  //   uint32_t result(merge)             the id of the merged symbol
  template <typename Pairs>
  void run(const Pairs& pairs);

  // Prepares for `n` bytes; false when the heap refuses.
  bool start(uint32_t n) {
    n_ = n;
    heap_.clear();
    return next_.resize(n) && prev_.resize(n) && id_.resize(n) && merge_.resize(n);
  }

  // Sets symbol [left, end), in order of `left`.
  void add(uint32_t left, uint32_t end, uint32_t id) {
    next_[left] = end;
    if (end < n_) prev_[end] = left;
    id_[left] = id;
  }

  uint32_t next(uint32_t left) const { return next_[left]; }
  uint32_t id(uint32_t left) const { return id_[left]; }
  bool failed() const { return heap_.failed(); }

  void trim(uint32_t keep_bytes) {
    next_.trim(keep_bytes);
    prev_.trim(keep_bytes);
    id_.trim(keep_bytes);
    merge_.trim(keep_bytes);
    heap_.trim(keep_bytes);
  }

 private:
  template <typename Pairs>
  void look_up(const Pairs& pairs, uint32_t left) {
    const uint32_t middle = next_[left];
    merge_[left] = middle < n_ ? pairs.find(left, middle, next_[middle]) : kNone;
    if (merge_[left] != kNone) heap_.push(static_cast<uint64_t>(pairs.priority(merge_[left])) << 32 | left);
  }

  uint32_t n_ = 0;
  Array<uint32_t> next_;   // where the symbol ends and the next one starts
  Array<uint32_t> prev_;   // where the symbol before it starts; not set for the first
  Array<uint32_t> id_;
  Array<uint32_t> merge_;  // the merge of this symbol with the next one; kNone also once it was merged away
  MinHeap heap_;
};

template <typename Pairs>
void Merger::run(const Pairs& pairs) {
  for (uint32_t left = 0; left < n_; left = next_[left]) look_up(pairs, left);
  while (!heap_.empty() && !heap_.failed()) {
    const uint64_t entry = heap_.pop();
    const uint32_t left = static_cast<uint32_t>(entry);
    const uint32_t merge = merge_[left];
    if (merge == kNone || pairs.priority(merge) != entry >> 32) continue;
    const uint32_t right = next_[left];
    merge_[right] = kNone;
    next_[left] = next_[right];
    if (next_[left] < n_) prev_[next_[left]] = left;
    id_[left] = pairs.result(merge);
    look_up(pairs, left);
    if (left > 0) look_up(pairs, prev_[left]);
  }
}

}  // namespace tok
