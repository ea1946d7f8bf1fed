#include "byte_level.h"

#include "byte_alphabet.h"
#include "gguf_strings.h"

namespace tok {

namespace {

// Words up to this length are merged whole; longer ones are cut at joints first.
constexpr uint32_t kShortWord = 32;

// Splits "left right" at the first space that leaves something on its left. False without such a space.
bool split_merge(Bytes merge, Bytes* left, Bytes* right) {
  for (uint32_t i = 1; i + 1 < merge.size; i++) {
    if (merge.data[i] != ' ') continue;
    *left = {merge.data, i};
    *right = {merge.data + i + 1, merge.size - i - 1};
    return true;
  }
  return false;
}

}  // namespace

Status ByteLevel::load_merges(Bytes merges, uint32_t n_merges, uint32_t* bad_merge) {
  *bad_merge = merges.size / 8;
  if (n_merges > merges.size / 8) return kBadData;
  uint32_t n_slots = 16;
  while (n_slots < n_merges + n_merges / 2) n_slots *= 2;
  if (!joints_.reserve(0) || !merges_.reserve(n_merges) || !slots_.resize(n_slots)) return kOutOfMemory;
  for (uint32_t i = 0; i < n_slots; i++) slots_[i].rank = kNone;

  GgufStrings strings(merges);
  Array<uint8_t> scratch;
  for (uint32_t i = 0; i < n_merges; i++) {
    *bad_merge = i;
    Bytes merge, left_text, right_text;
    if (!strings.next(&merge) || !split_merge(merge, &left_text, &right_text)) return kBadData;
    merges_.push({kNone, kNone, kNone});
    if (!scratch.reserve(merge.size)) return kOutOfMemory;
    const int64_t left_size = decode_byte_alphabet(left_text, scratch.data());
    const int64_t right_size = left_size < 0 ? -1 : decode_byte_alphabet(right_text, scratch.data() + left_size);
    if (right_size < 0) continue;  // a part outside the byte alphabet matches no text
    const Bytes both = {scratch.data(), static_cast<uint32_t>(left_size + right_size)};
    if (!add_merge(both, static_cast<uint32_t>(left_size), i)) return kOutOfMemory;
  }
  *bad_merge = n_merges;
  return strings.at_end() ? kOk : kBadData;
}

// The symbol for `s`, made when there is none yet. kNone when the heap refuses.
uint32_t ByteLevel::symbol_of(Bytes s) {
  const uint32_t token = vocabulary_.find_form(s);
  if (token != kNone) return token;
  uint32_t extra = extra_index_.find(s);
  if (extra == kNone) {
    extra = extra_.size();
    extra_.add(s);
    if (extra_.failed() || !extra_index_.add(extra)) return kNone;
  }
  return vocabulary_.n_tokens() + extra;
}

// The symbol for what merge `rank` makes. Vocabularies mostly list tokens in the order of the merges that make them,
// so it is often the one that the merge before it makes, or the next.
uint32_t ByteLevel::result_of(Bytes s, uint32_t rank) {
  const uint32_t guess = rank > 0 && vocabulary_.has_distinct_forms() ? merges_[rank - 1].result : kNone;
  for (uint32_t i = 0; guess != kNone && i < 2; i++) {
    if (guess + i >= vocabulary_.n_tokens()) break;
    const Bytes form = vocabulary_.form(guess + i);
    if (form.size == s.size && equal_bytes(form.data, s.data, s.size)) return guess + i;
  }
  return symbol_of(s);
}

// The slot of the pair, or the free one where it would be with its hash filled in; `at` is its place.
ByteLevel::Slot ByteLevel::find_slot(uint32_t left, uint32_t right, uint32_t* at) const {
  const uint32_t hash = static_cast<uint32_t>(mix(static_cast<uint64_t>(left) << 32 | right));
  const uint32_t mask = slots_.size() - 1;
  for (uint32_t i = hash & mask;; i = (i + 1) & mask) {
    const Slot slot = slots_[i];
    *at = i;
    if (slot.rank == kNone) return {hash, kNone};
    if (slot.hash == hash && merges_[slot.rank].left == left && merges_[slot.rank].right == right) return slot;
  }
}

uint32_t ByteLevel::find_merge(uint32_t left, uint32_t right) const {
  uint32_t at;
  return find_slot(left, right, &at).rank;
}

// Adds the merge of the first `middle` bytes with the rest. False when the heap refuses.
bool ByteLevel::add_merge(Bytes both, uint32_t middle, uint32_t rank) {
  const Bytes left = {both.data, middle}, right = {both.data + middle, both.size - middle};
  const Merge merge = {symbol_of(left), symbol_of(right), result_of(both, rank)};
  if (merge.left == kNone || merge.right == kNone || merge.result == kNone) return false;
  joints_.add(both.data[middle - 1], both.data[middle]);  // those inside the parts come from their own merges
  merges_[rank] = merge;
  uint32_t at;
  const Slot slot = find_slot(merge.left, merge.right, &at);
  if (slot.rank == kNone) slots_[at] = {slot.hash, rank};  // of equal merges the first one counts
  return true;
}

bool ByteLevel::build(PreTokenizer pre_tokenizer, bool whole_words_first) {
  pre_tokenizer_ = pre_tokenizer;
  whole_words_first_ = whole_words_first;
  for (uint32_t byte = 0; byte < 256; byte++) {
    const uint8_t raw = static_cast<uint8_t>(byte);
    byte_symbols_[byte] = symbol_of({&raw, 1});
    if (byte_symbols_[byte] == kNone) return false;
  }
  return true;
}

bool ByteLevel::encode(Bytes text, Array<uint32_t>& ids) {
  bool ok = true;
  pre_tokenize(pre_tokenizer_, text.data, text.data + text.size, [&](const uint8_t* start, const uint8_t* end) {
    ok = ok && encode_word({start, static_cast<uint32_t>(end - start)}, ids);
  });
  return ok && !ids.failed();
}

bool ByteLevel::encode_word(Bytes word, Array<uint32_t>& ids) {
  if (const WordCache::Entry* entry = cache_.find(word)) {
    ids.append(entry->ids, entry->n_ids);
    return true;
  }
  const uint32_t start = ids.size();
  const uint32_t whole = whole_words_first_ ? vocabulary_.find_form(word) : kNone;
  if (whole != kNone) {
    ids.push(whole);
  } else if (!(word.size <= kShortWord ? merge_segment(word, ids) : encode_segments(word, ids))) {
    return false;
  }
  if (!ids.failed()) cache_.store(word, ids.data() + start, ids.size() - start);
  return true;
}

// Merges the parts of a long word one by one.
bool ByteLevel::encode_segments(Bytes word, Array<uint32_t>& ids) {
  for (uint32_t start = 0; start < word.size;) {
    uint32_t end = start + 1;
    while (end < word.size && joints_.has(word.data[end - 1], word.data[end])) end++;
    if (!merge_segment({word.data + start, end - start}, ids)) return false;
    start = end;
  }
  return true;
}

bool ByteLevel::merge_segment(Bytes segment, Array<uint32_t>& ids) {
  if (!merger_.start(segment.size)) return false;
  for (uint32_t i = 0; i < segment.size; i++) merger_.add(i, i + 1, byte_symbols_[segment.data[i]]);
  merger_.run(Pairs{*this});
  for (uint32_t i = 0; i < segment.size; i = merger_.next(i)) {
    if (merger_.id(i) < vocabulary_.n_tokens()) {
      ids.push(merger_.id(i));
      continue;
    }
    // Merged into something that is no token: what bytes have tokens.
    for (uint32_t k = i; k < merger_.next(i); k++)
      if (byte_symbols_[segment.data[k]] < vocabulary_.n_tokens()) ids.push(byte_symbols_[segment.data[k]]);
  }
  return !merger_.failed();
}

}  // namespace tok
