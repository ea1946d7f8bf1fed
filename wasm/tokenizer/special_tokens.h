// Finds the tokens that are matched as whole strings before anything else: control, unknown and user-defined ones.
//
// The longest token goes first over the whole text, then the next shorter one over what is left, as in llama.cpp: a
// long token wins over a shorter one that starts before it. Tokens are kept in a trie; one pass over the text finds
// which lengths occur at all, then each of these takes one pass over the text that is left.
#pragma once

#include <cstdint>

#include "array.h"
#include "vocabulary.h"

namespace tok {

// A stretch [start, end) of the text: a special token, or plain text when `token` is kNone.
struct Fragment {
  uint32_t start;
  uint32_t end;
  uint32_t token;
};

class SpecialTokens {
 public:
  explicit SpecialTokens(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  // Collects the special tokens. False when the heap refuses.
  bool build();

  // Cuts `text` into fragments. Without `parse_control` only user-defined tokens are matched, so that text cannot
  // smuggle control tokens in. False when the heap refuses.
  bool split(Bytes text, bool parse_control, Array<Fragment>& out);

  void trim(uint32_t keep_bytes) { scratch_.trim(keep_bytes); }

 private:
  // A character of a special token. Siblings are alternatives for the same position.
  struct Node {
    uint32_t child;
    uint32_t sibling;
    uint32_t token;  // the one that ends here, or kNone
    uint8_t byte;
  };

  bool insert(Bytes text, uint32_t token);
  uint32_t child(uint32_t node, uint8_t byte) const;
  bool is_matched(uint32_t token, bool parse_control) const;
  bool may_start(const uint8_t* p, uint32_t n) const;
  uint32_t match(Bytes text, uint32_t at, uint32_t length, bool parse_control) const;
  bool find_lengths(Bytes text, bool parse_control);
  bool split_by_length(Bytes text, uint32_t length, bool parse_control, Array<Fragment>& out);

  const Vocabulary& vocabulary_;
  Array<Node> nodes_;                   // the root is the first
  uint32_t first_two_[65536 / 32] = {};  // bit b0 | b1 << 8: a token may start with bytes b0, b1
  uint32_t max_length_ = 0;
  Array<uint8_t> has_length_;  // of the text at hand: which lengths occur
  Array<Fragment> scratch_;
};

}  // namespace tok
