#include "special_tokens.h"

namespace tok {

namespace {

constexpr uint32_t kNoNode = 0;  // the root is nobody's child

// As C's isspace in the "C" locale.
bool is_strippable(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

void set_bit(uint32_t* bits, uint32_t i) { bits[i >> 5] |= 1u << (i & 31); }

}  // namespace

bool SpecialTokens::build() {
  nodes_.push({kNoNode, kNoNode, kNone, 0});
  if (nodes_.failed()) return false;
  for (uint32_t token = 0; token < vocabulary_.n_tokens(); token++) {
    const Bytes text = vocabulary_.text(token);
    if (text.size == 0 || !(vocabulary_.attributes(token) & (kControl | kUserDefined | kUnknown))) continue;
    if (!insert(text, token)) return false;
    if (text.size > max_length_) max_length_ = text.size;
    // A token of one byte may be followed by anything.
    const uint32_t from = text.size == 1 ? 0 : text.data[1], to = text.size == 1 ? 255 : text.data[1];
    for (uint32_t second = from; second <= to; second++) set_bit(first_two_, text.data[0] | second << 8);
  }
  return has_length_.resize(max_length_ + 1);
}

bool SpecialTokens::insert(Bytes text, uint32_t token) {
  uint32_t node = 0;
  for (uint32_t i = 0; i < text.size; i++) {
    uint32_t next = child(node, text.data[i]);
    if (next == kNoNode) {
      next = nodes_.size();
      nodes_.push({kNoNode, nodes_[node].child, kNone, text.data[i]});
      if (nodes_.failed()) return false;
      nodes_[node].child = next;
    }
    node = next;
  }
  // Of tokens with the same spelling the first one counts.
  if (nodes_[node].token == kNone) nodes_[node].token = token;
  return true;
}

uint32_t SpecialTokens::child(uint32_t node, uint8_t byte) const {
  uint32_t next = nodes_[node].child;
  while (next != kNoNode && nodes_[next].byte != byte) next = nodes_[next].sibling;
  return next;
}

bool SpecialTokens::is_matched(uint32_t token, bool parse_control) const {
  return token != kNone && (parse_control || !(vocabulary_.attributes(token) & (kControl | kUnknown)));
}

bool SpecialTokens::may_start(const uint8_t* p, uint32_t n) const {
  if (n < 2) return true;
  const uint32_t i = p[0] | p[1] << 8;
  return first_two_[i >> 5] >> (i & 31) & 1;
}

// The token of exactly `length` bytes at `at`, or kNone.
uint32_t SpecialTokens::match(Bytes text, uint32_t at, uint32_t length, bool parse_control) const {
  uint32_t node = 0;
  for (uint32_t i = 0; i < length; i++) {
    node = child(node, text.data[at + i]);
    if (node == kNoNode) return kNone;
  }
  const uint32_t token = nodes_[node].token;
  return is_matched(token, parse_control) ? token : kNone;
}

// Sets has_length_ for every length at which some token occurs in the text. False when none does.
bool SpecialTokens::find_lengths(Bytes text, bool parse_control) {
  bool any = false;
  for (uint32_t length = 0; length <= max_length_; length++) has_length_[length] = 0;
  for (uint32_t at = 0; at < text.size; at++) {
    if (!may_start(text.data + at, text.size - at)) continue;
    uint32_t node = 0;
    for (uint32_t i = at; i < text.size; i++) {
      node = child(node, text.data[i]);
      if (node == kNoNode) break;
      if (!is_matched(nodes_[node].token, parse_control)) continue;
      has_length_[i - at + 1] = 1;
      any = true;
    }
  }
  return any;
}

bool SpecialTokens::split(Bytes text, bool parse_control, Array<Fragment>& out) {
  out.clear();
  if (text.size > 0) out.push({0, text.size, kNone});
  if (find_lengths(text, parse_control)) {
    for (uint32_t length = max_length_; length > 0; length--)
      if (has_length_[length] && !split_by_length(text, length, parse_control, out)) return false;
  }
  return !out.failed();
}

// Splits the plain fragments of `out` at the tokens of one length.
bool SpecialTokens::split_by_length(Bytes text, uint32_t length, bool parse_control, Array<Fragment>& out) {
  scratch_.clear();
  scratch_.append(out.data(), out.size());
  if (scratch_.failed()) return false;
  out.clear();
  for (uint32_t k = 0; k < scratch_.size(); k++) {
    const Fragment fragment = scratch_[k];
    if (fragment.token != kNone) {
      out.push(fragment);
      continue;
    }
    uint32_t start = fragment.start;
    for (uint32_t at = start; at + length <= fragment.end;) {
      const uint32_t token =
          may_start(text.data + at, fragment.end - at) ? match(text, at, length, parse_control) : kNone;
      if (token == kNone) {
        at++;
        continue;
      }
      if (start < at) out.push({start, at, kNone});
      at += length;
      out.push({at - length, at, token});
      if (vocabulary_.attributes(token) & kStripRight)
        while (at < fragment.end && is_strippable(text.data[at])) at++;
      start = at;
    }
    if (start < fragment.end) out.push({start, fragment.end, kNone});
  }
  return true;
}

}  // namespace tok
