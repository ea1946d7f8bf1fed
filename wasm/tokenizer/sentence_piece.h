// SentencePiece-style tokenization (Kudo & Richardson 2018, arXiv:1808.06226) with llama.cpp's order: two neighbouring
// symbols are merged when together they are a token, the token with the highest score first.
//
// Text and tokens are compared with a space for every U+2581, since a space in the text becomes one.
#pragma once

#include <cstdint>

#include "joints.h"
#include "merge.h"
#include "vocabulary.h"
#include "word_cache.h"

namespace tok {

class SentencePiece {
 public:
  explicit SentencePiece(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  // `unknown` is the token for a run of characters that have neither a token nor byte tokens; kNone leaves them out.
  // False when the heap refuses.
  bool build(uint32_t unknown);

  // Appends the ids of `text`, well formed, with a space before it when `space_prefix`. False when the heap refuses.
  bool encode(Bytes text, bool space_prefix, Array<uint32_t>& ids);

  void trim(uint32_t keep_bytes);

 private:
  // The merges that Merger asks for: a merge is named by the token it makes.
  struct Pairs {
    const Vocabulary& vocabulary;
    const uint8_t* text;
    uint32_t max_bytes;  // of a token

    uint32_t find(uint32_t left, uint32_t, uint32_t end) const {
      return end - left > max_bytes ? kNone : vocabulary.find_form({text + left, end - left});
    }
    uint32_t priority(uint32_t token) const { return vocabulary.priority(token); }
    uint32_t result(uint32_t token) const { return token; }
  };

  bool encode_segment(Bytes segment, Array<uint32_t>& ids);
  bool merge_segment(Bytes segment, Array<uint32_t>& ids);
  void append_without_token(Bytes symbol, Array<uint32_t>& ids) const;
  void fuse_unknown(uint32_t start, Array<uint32_t>& ids) const;

  const Vocabulary& vocabulary_;
  uint32_t unknown_ = kNone;
  uint32_t max_bytes_ = 0;
  Joints joints_;
  Array<uint8_t> normalized_;
  Merger merger_;
  WordCache cache_;
};

}  // namespace tok
