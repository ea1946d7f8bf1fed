// Byte-level BPE (Radford et al. 2019): text is cut into words by a pre-tokenizer, and inside a word the bytes are
// merged in the order of the vocabulary's merge list.
//
// Symbols are numbered: the tokens, then strings that appear in merges without being tokens.
#pragma once

#include <cstdint>

#include "joints.h"
#include "merge.h"
#include "pre_tokenize.h"
#include "vocabulary.h"
#include "word_cache.h"

namespace tok {

class ByteLevel {
 public:
  explicit ByteLevel(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  // Reads the merges, "left right" each. On kBadData, `bad_merge` is the first one that does not fit the array or has
  // no two parts, or n_merges when bytes are left over.
  Status load_merges(Bytes merges, uint32_t n_merges, uint32_t* bad_merge);

  // With `whole_words_first` a word that is a token is not merged (llama.cpp's ignore_merges). False when the heap
  // refuses.
  bool build(PreTokenizer pre_tokenizer, bool whole_words_first);

  // Appends the ids of `text`, well formed. False when the heap refuses.
  bool encode(Bytes text, Array<uint32_t>& ids);

  void trim(uint32_t keep_bytes) { merger_.trim(keep_bytes); }

 private:
  struct Merge {
    uint32_t left, right, result;  // symbols
  };

  struct Slot {
    uint32_t hash;
    uint32_t rank;  // or kNone
  };

  // The merges that Merger asks for: a merge is named by its rank in the list.
  struct Pairs {
    const ByteLevel& bpe;

    uint32_t find(uint32_t left, uint32_t middle, uint32_t) const {
      return bpe.find_merge(bpe.merger_.id(left), bpe.merger_.id(middle));
    }
    uint32_t priority(uint32_t rank) const { return rank; }
    uint32_t result(uint32_t rank) const { return bpe.merges_[rank].result; }
  };

  uint32_t symbol_of(Bytes s);
  uint32_t result_of(Bytes s, uint32_t rank);
  Slot find_slot(uint32_t left, uint32_t right, uint32_t* at) const;
  uint32_t find_merge(uint32_t left, uint32_t right) const;
  bool add_merge(Bytes both, uint32_t middle, uint32_t rank);
  bool encode_word(Bytes word, Array<uint32_t>& ids);
  bool encode_segments(Bytes word, Array<uint32_t>& ids);
  bool merge_segment(Bytes segment, Array<uint32_t>& ids);

  const Vocabulary& vocabulary_;
  PreTokenizer pre_tokenizer_ = kDefault;
  bool whole_words_first_ = false;
  StringList extra_;  // symbols that are not tokens
  StringIndex extra_index_{extra_};
  Array<Merge> merges_;     // by rank
  Array<Slot> slots_;       // hash map (left, right) -> rank: open addressing, a power of two
  uint32_t byte_symbols_[256];
  Joints joints_;
  Merger merger_;
  WordCache cache_;
};

}  // namespace tok
