#include "string_index.h"

namespace tok {

bool StringIndex::reserve(uint32_t n_strings) {
  uint32_t n = 16;
  while (n / 4 * 3 < n_strings) {
    if (n > UINT32_MAX / 2) return false;
    n *= 2;
  }
  if (n <= slots_.size()) return true;

  Array<Slot> used;
  if (!used.reserve(n_used_)) return false;
  for (uint32_t i = 0; i < slots_.size(); i++)
    if (slots_[i].number != kNone) used.push(slots_[i]);
  if (!slots_.resize(n)) return false;
  for (uint32_t i = 0; i < n; i++) slots_[i].number = kNone;
  for (uint32_t k = 0; k < used.size(); k++) {
    uint32_t i = used[k].hash & (n - 1);
    while (slots_[i].number != kNone) i = (i + 1) & (n - 1);
    slots_[i] = used[k];
  }
  return true;
}

bool StringIndex::add(uint32_t number) {
  if (!reserve(n_used_ + 1)) return false;
  const Bytes s = strings_[number];
  const uint32_t hash = hash_bytes(s), mask = slots_.size() - 1;
  uint32_t i = hash & mask;
  for (; slots_[i].number != kNone; i = (i + 1) & mask)
    if (slots_[i].hash == hash && equals(slots_[i].number, s)) return true;
  slots_[i] = {hash, number};
  n_used_++;
  return true;
}

}  // namespace tok
