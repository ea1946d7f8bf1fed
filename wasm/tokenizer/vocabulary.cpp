#include "vocabulary.h"

#include "byte_alphabet.h"
#include "gguf_strings.h"
#include "space_mark.h"

namespace tok {

namespace {

// GGUF's tokenizer.ggml.token_type.
uint8_t attributes_of_type(int32_t type) {
  switch (type) {
    case 1: return kNormal;
    case 2: return kUnknown;
    case 3: return kControl;
    case 4: return kUserDefined;
    case 6: return kByte;
    default: return kUnused;
  }
}

int hex_digit(uint8_t c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte that a spelling <0xXX> stands for, or -1.
int spelled_byte(Bytes text) {
  if (text.size != 6 || text.data[0] != '<' || text.data[1] != '0' || text.data[2] != 'x' || text.data[5] != '>')
    return -1;
  const int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

void append_unescaped(Bytes text, Array<uint8_t>& out) {
  const uint32_t start = out.size();
  if (!out.reserve_more(text.size)) return;
  out.resize(static_cast<uint32_t>(unescape_spaces(text, out.data() + start) - out.data()));
}

// Maps scores to numbers that sort the other way round; the bits of a positive float already sort as integers.
uint32_t priority_of(float score) {
  score += 0.0f;  // -0 becomes 0
  uint32_t bits;
  memcpy(&bits, &score, 4);
  return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

}  // namespace

Status Vocabulary::load(Kind kind, Bytes tokens, uint32_t n_tokens, const int32_t* types, const float* scores,
                        uint32_t* bad_token) {
  kind_ = kind;
  *bad_token = tokens.size / 8;
  if (n_tokens > tokens.size / 8) return kBadData;
  const uint32_t n_bytes = tokens.size - 8 * n_tokens;
  if (!texts_.reserve(n_tokens, n_bytes) || !forms_.reserve(n_tokens, n_bytes) || !index_.reserve(n_tokens) ||
      !attributes_.resize(n_tokens) || !priorities_.resize(kind == kSentencePiece ? n_tokens : 0))
    return kOutOfMemory;
  GgufStrings strings(tokens);
  Array<uint8_t> scratch;
  for (uint32_t i = 0; i < n_tokens; i++) {
    *bad_token = i;
    Bytes text;
    if (!strings.next(&text) || (scores && scores[i] != scores[i])) return kBadData;
    texts_.add(text);
    if (texts_.failed() || !add_form(text, scratch)) return kOutOfMemory;
    attributes_[i] = types ? attributes_of_type(types[i]) : uint8_t{kNormal};
    if (kind == kSentencePiece) priorities_[i] = priority_of(scores ? scores[i] : 0.0f);
  }
  *bad_token = n_tokens;
  if (!strings.at_end()) return kBadData;
  find_byte_tokens();
  return kOk;
}

// Sets `out` to the form of a token spelled `text`. False, and out of no use, when no text can match it.
bool Vocabulary::make_form(Bytes text, Array<uint8_t>& out) const {
  out.clear();
  if (!out.reserve(text.size)) return false;
  if (kind_ == kByteLevel) {
    const int64_t size = decode_byte_alphabet(text, out.data());
    return size >= 0 && out.resize(static_cast<uint32_t>(size));
  }
  // A space in text has become U+2581 before it is matched, so a token with a space in it never is.
  for (uint32_t i = 0; i < text.size; i++)
    if (text.data[i] == ' ') return false;
  append_unescaped(text, out);
  return true;
}

// Adds the form of the next token. False when the heap refuses.
bool Vocabulary::add_form(Bytes text, Array<uint8_t>& scratch) {
  if (!make_form(text, scratch)) scratch.clear();
  forms_.add({scratch.data(), scratch.size()});
  if (forms_.failed() || scratch.failed()) return false;
  if (scratch.size() == 0) return true;
  n_forms_++;
  return index_.add(forms_.size() - 1);
}

void Vocabulary::find_byte_tokens() {
  for (uint32_t byte = 0; byte < 256; byte++) {
    const uint8_t raw = static_cast<uint8_t>(byte);
    byte_tokens_[byte] = kNone;
    if (kind_ == kSentencePiece) {
      static constexpr char kHex[] = "0123456789ABCDEF";
      const uint8_t spelled[] = {'<', '0', 'x', uint8_t(kHex[raw >> 4]), uint8_t(kHex[raw & 15]), '>'};
      byte_tokens_[byte] = find_form({spelled, sizeof spelled});
    }
    if (byte_tokens_[byte] == kNone) byte_tokens_[byte] = find_form({&raw, 1});
  }
}

uint32_t Vocabulary::find_text(Bytes text) const {
  Array<uint8_t> form;
  return make_form(text, form) ? find_form({form.data(), form.size()}) : texts_.find(text);
}

void Vocabulary::append_piece(uint32_t token, bool with_special, Array<uint8_t>& out) const {
  const uint32_t attributes = attributes_[token];
  const Bytes text = texts_[token];
  if (attributes & (kUnknown | kControl)) {
    if (with_special) out.append(text.data, text.size);
  } else if (attributes & kUserDefined) {
    out.append(text.data, text.size);
  } else if (attributes & kNormal) {
    if (kind_ == kSentencePiece) {
      append_unescaped(text, out);
    } else {
      // A normal token outside the byte alphabet stands for its own spelling.
      const Bytes form = forms_[token];
      const Bytes piece = form.size > 0 ? form : text;
      out.append(piece.data, piece.size);
    }
  } else if (attributes & kByte) {
    const int byte = spelled_byte(text);
    if (byte >= 0) out.push(static_cast<uint8_t>(byte));
  }
}

}  // namespace tok
