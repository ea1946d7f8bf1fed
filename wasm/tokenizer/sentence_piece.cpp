#include "sentence_piece.h"

#include "space_mark.h"
#include "utf8.h"

namespace tok {

bool SentencePiece::build(uint32_t unknown) {
  unknown_ = unknown;
  const uint32_t n_tokens = vocabulary_.n_tokens();
  if (!joints_.reserve(n_tokens)) return false;
  for (uint32_t token = 0; token < n_tokens; token++) {
    const Bytes form = vocabulary_.form(token);
    // Text is well formed, so a token that is not cannot come of merging.
    if (form.size == 0 || utf8_valid_prefix(form) < form.size) continue;
    if (form.size > max_bytes_) max_bytes_ = form.size;
    uint32_t left = utf8_decode(form.data);
    for (uint32_t i = utf8_length(form.data[0]); i < form.size; i += utf8_length(form.data[i])) {
      const uint32_t right = utf8_decode(form.data + i);
      joints_.add(left, right);
      left = right;
    }
  }
  return true;
}

bool SentencePiece::encode(Bytes text, bool space_prefix, Array<uint32_t>& ids) {
  const uint32_t ids_start = ids.size();
  if (text.size == UINT32_MAX || !normalized_.resize(text.size + 1)) return false;
  const uint8_t* p = normalized_.data();
  normalized_[0] = ' ';
  const uint8_t* end = unescape_spaces(text, normalized_.data() + (space_prefix ? 1 : 0));
  while (p < end) {
    const uint8_t* cut = p + utf8_length(*p);
    for (uint32_t left = utf8_decode(p); cut < end; cut += utf8_length(*cut)) {
      const uint32_t right = utf8_decode(cut);
      if (!joints_.has(left, right)) break;
      left = right;
    }
    if (!encode_segment({p, static_cast<uint32_t>(cut - p)}, ids)) return false;
    p = cut;
  }
  fuse_unknown(ids_start, ids);
  return !ids.failed();
}

bool SentencePiece::encode_segment(Bytes segment, Array<uint32_t>& ids) {
  if (const WordCache::Entry* entry = cache_.find(segment)) {
    ids.append(entry->ids, entry->n_ids);
    return true;
  }
  const uint32_t start = ids.size();
  if (!merge_segment(segment, ids)) return false;
  if (!ids.failed()) cache_.store(segment, ids.data() + start, ids.size() - start);
  return true;
}

bool SentencePiece::merge_segment(Bytes segment, Array<uint32_t>& ids) {
  if (!merger_.start(segment.size)) return false;
  for (uint32_t i = 0; i < segment.size;) {
    const uint32_t end = i + utf8_length(segment.data[i]);
    merger_.add(i, end, vocabulary_.find_form({segment.data + i, end - i}));
    i = end;
  }
  merger_.run(Pairs{vocabulary_, segment.data, max_bytes_});
  for (uint32_t i = 0; i < segment.size; i = merger_.next(i)) {
    if (merger_.id(i) != kNone) {
      ids.push(merger_.id(i));
    } else {
      append_without_token({segment.data + i, merger_.next(i) - i}, ids);
    }
  }
  return !merger_.failed();
}

// A character that is no token: its bytes' tokens, or, when not all of them have one, the unknown token.
void SentencePiece::append_without_token(Bytes symbol, Array<uint32_t>& ids) const {
  if (symbol.data[0] == ' ') symbol = {kSpaceMark, sizeof kSpaceMark};
  bool has_bytes = true;
  for (uint32_t i = 0; i < symbol.size; i++) has_bytes &= vocabulary_.byte_token(symbol.data[i]) != kNone;
  if (has_bytes) {
    for (uint32_t i = 0; i < symbol.size; i++) ids.push(vocabulary_.byte_token(symbol.data[i]));
  } else if (unknown_ != kNone) {
    ids.push(unknown_);
  }
}

// Makes every run of unknown tokens from `start` on one, as the trainers of such vocabularies do.
void SentencePiece::fuse_unknown(uint32_t start, Array<uint32_t>& ids) const {
  uint32_t kept = start;
  for (uint32_t i = start; i < ids.size(); i++) {
    if (ids[i] == unknown_ && kept > start && ids[kept - 1] == unknown_) continue;
    ids[kept++] = ids[i];
  }
  ids.resize(kept);
}

void SentencePiece::trim(uint32_t keep_bytes) {
  normalized_.trim(keep_bytes);
  merger_.trim(keep_bytes);
}

}  // namespace tok
