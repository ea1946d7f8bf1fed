#include "tokenizer.h"

#include "utf8.h"

namespace tok {

namespace {

// What each array may keep between calls.
constexpr uint32_t kKeepBytes = 64 << 10;

}  // namespace

bool Tokenizer::finish(const Options& options) {
  options_ = options;
  const bool built = vocabulary.kind() == kSentencePiece
                         ? sentence_piece.build(options.unknown)
                         : byte_level.build(options.pre_tokenizer, options.whole_words_first);
  return built && special_.build();
}

bool Tokenizer::encode(Bytes text, bool parse_control) {
  trim();
  if (utf8_valid_prefix(text) < text.size) {
    utf8_repair(text, repaired_);
    if (repaired_.failed()) return false;
    text = {repaired_.data(), repaired_.size()};
  }
  if (!special_.split(text, parse_control, fragments_)) return false;
  bool space_prefix = options_.space_prefix;
  for (uint32_t i = 0; i < fragments_.size(); i++) {
    const Fragment fragment = fragments_[i];
    const Bytes part = {text.data + fragment.start, fragment.end - fragment.start};
    if (fragment.token != kNone) {
      ids_.push(fragment.token);
      space_prefix = options_.space_prefix;
      continue;
    }
    const bool ok = vocabulary.kind() == kSentencePiece ? sentence_piece.encode(part, space_prefix, ids_)
                                                        : byte_level.encode(part, ids_);
    if (!ok) return false;
    space_prefix = false;
  }
  return !ids_.failed();
}

bool Tokenizer::decode(const uint32_t* ids, uint32_t n_ids, bool with_special) {
  trim();
  for (uint32_t i = 0; i < n_ids; i++) vocabulary.append_piece(ids[i], with_special, text_);
  return !text_.failed();
}

void Tokenizer::trim() {
  repaired_.trim(kKeepBytes);
  fragments_.trim(kKeepBytes);
  ids_.trim(kKeepBytes);
  text_.trim(kKeepBytes);
  special_.trim(kKeepBytes);
  sentence_piece.trim(kKeepBytes);
  byte_level.trim(kKeepBytes);
}

}  // namespace tok
