// The tokens of a model: their texts as in the file, their kinds and scores, and the bytes each stands for.
#pragma once

#include <cstdint>

#include "array.h"
#include "bridge.h"
#include "string_index.h"

namespace tok {

enum Kind : uint32_t {
  kSentencePiece = 0,  // tokenizer.ggml.model "llama"
  kByteLevel = 1,      // "gpt2"
};

// What a token is, as a set of bits: detecting tokens by name may add to what the file says. The numbers are those
// of src/tokenizer/token-attributes.ts.
enum Attribute : uint32_t {
  kUnknown = 1,
  kNormal = 2,
  kControl = 4,
  kUserDefined = 8,
  kByte = 16,
  kUnused = 32,      // and undefined ones
  kStripRight = 64,  // white space after it belongs to it
};

class Vocabulary {
 public:
  // Reads the tokens. types, scores: one a token, or null (all normal; all 0). On kBadData, `bad_token` is the first
  // token that does not fit the array or whose score is not a number, or n_tokens when bytes are left over.
  Status load(Kind kind, Bytes tokens, uint32_t n_tokens, const int32_t* types, const float* scores,
              uint32_t* bad_token);

  Kind kind() const { return kind_; }
  uint32_t n_tokens() const { return texts_.size(); }

  // The token's spelling in the file.
  Bytes text(uint32_t token) const { return texts_[token]; }

  // The first token spelled `text`, or kNone.
  uint32_t find_text(Bytes text) const;

  // What text is matched against: the spelling with U+2581 as a space (SentencePiece), or the bytes it spells
  // (byte-level). Empty when no text can match.
  Bytes form(uint32_t token) const { return forms_[token]; }

  // The first token with the form `s`, or kNone.
  uint32_t find_form(Bytes s) const { return index_.find(s); }

  // Whether no two tokens have the same form.
  bool has_distinct_forms() const { return index_.size() == n_forms_; }

  uint32_t attributes(uint32_t token) const { return attributes_[token]; }
  void set_attributes(uint32_t token, uint32_t bits) { attributes_[token] = static_cast<uint8_t>(bits); }

  // Orders merges: the higher the score, the smaller the number.
  uint32_t priority(uint32_t token) const { return priorities_[token]; }

  // The token that stands for a single byte, or kNone.
  uint32_t byte_token(uint8_t byte) const { return byte_tokens_[byte]; }

  // Appends what the token prints. Control and unknown tokens print their spelling, or nothing unless
  // `with_special`.
  void append_piece(uint32_t token, bool with_special, Array<uint8_t>& out) const;

 private:
  bool make_form(Bytes text, Array<uint8_t>& out) const;
  bool add_form(Bytes text, Array<uint8_t>& scratch);
  void find_byte_tokens();

  Kind kind_ = kSentencePiece;
  StringList texts_;
  StringList forms_;
  StringIndex index_{forms_};
  uint32_t n_forms_ = 0;  // that are not empty
  Array<uint8_t> attributes_;
  Array<uint32_t> priorities_;  // SentencePiece only
  uint32_t byte_tokens_[256];
};

}  // namespace tok
