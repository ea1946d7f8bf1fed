// One tokenizer: a vocabulary, the algorithm of its kind, and the arrays that results are handed over in.
#pragma once

#include <cstdint>

#include "byte_level.h"
#include "sentence_piece.h"
#include "special_tokens.h"
#include "vocabulary.h"

namespace tok {

class Tokenizer {
 public:
  struct Options {
    PreTokenizer pre_tokenizer;  // byte-level
    bool whole_words_first;      // byte-level
    bool space_prefix;           // SentencePiece: text at the start, and after a special token, gets a space before it
    uint32_t unknown;            // SentencePiece: see SentencePiece::build; or kNone
  };

  // First load the vocabulary (and the merges of a byte-level one), then settle attributes, then finish.
  Vocabulary vocabulary;
  SentencePiece sentence_piece{vocabulary};
  ByteLevel byte_level{vocabulary};

  // False when the heap refuses.
  bool finish(const Options& options);

  // Results of the last encode() or decode().
  const Array<uint32_t>& ids() const { return ids_; }
  const Array<uint8_t>& text() const { return text_; }

  // Sets ids() to those of `text`, without BOS or EOS; ill-formed UTF-8 becomes U+FFFD. False when the heap refuses.
  bool encode(Bytes text, bool parse_control);

  // Sets text() to what the tokens print, one after the other; the ids are below n_tokens. False when the heap refuses.
  bool decode(const uint32_t* ids, uint32_t n_ids, bool with_special);

  // Drops results and gives back what an unusually long text needed.
  void trim();

 private:
  Options options_ = {};
  SpecialTokens special_{vocabulary};
  Array<uint8_t> repaired_;
  Array<Fragment> fragments_;
  Array<uint32_t> ids_;
  Array<uint8_t> text_;
};

}  // namespace tok
