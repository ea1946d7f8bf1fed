// Cuts text into the words that byte-level BPE merges within. Each family of vocabularies has its rule, given as a
// regular expression in its training code; these are the same rules as scanners over characters.
//
// \s is Unicode White_Space, contractions are ASCII, and the text is well-formed UTF-8. Every scanner reads each
// character a bounded number of times.
#pragma once

#include "unicode_class.h"

namespace tok {

// The numbers are those of src/tokenizer/pre-tokenizer.ts.
enum PreTokenizer : uint32_t {
  kGpt2 = 0,
  kLlama3 = 1,   // numbers in groups of up to three
  kQwen2 = 2,    // as llama3, every number alone
  kSmollm = 3,   // every number alone, gpt-2's rule between them
  kDefault = 4,  // punctuation first, then gpt-2's rule, then numbers in groups of three
  kPreTokenizers = 5,
};

struct Character {
  uint32_t code_point;
  uint32_t size;   // bytes; 0 at the end
  uint32_t class_set;  // of one class; 0 at the end
};

inline Character character_at(const uint8_t* p, const uint8_t* end) {
  if (p == end) return {0, 0, 0};
  if (*p < 0x80) return {*p, 1, kAsciiClasses.of[*p]};
  const uint32_t code_point = utf8_decode(p);
  return {code_point, utf8_length(*p), class_of(code_point)};
}

// The end of the run of characters of `classes` that starts at `p`.
inline const uint8_t* skip(const uint8_t* p, const uint8_t* end, uint32_t classes) {
  while (p < end && (class_at(p) & classes)) p += utf8_length(*p);
  return p;
}

inline bool is_newline(uint32_t c) { return c == '\r' || c == '\n'; }

// Bytes of a contraction at `p`: 's 't 're 've 'm 'll 'd, or 0. `fold` is 0x20 to ignore case, else 0.
inline uint32_t contraction_at(const uint8_t* p, const uint8_t* end, uint8_t fold) {
  if (*p != '\'' || end - p < 2) return 0;
  const uint8_t a = p[1] | fold;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (end - p < 3) return 0;
  const uint8_t b = p[2] | fold;
  return (b == 'e' && (a == 'r' || a == 'v')) || (b == 'l' && a == 'l') ? 3 : 0;
}

// White space [p, end_of_run) with no newline to stop at: all of it at the end of the text, else all but the last
// character, which goes with what follows; but at least one.  \s+(?!\S)|\s+
inline const uint8_t* end_of_spaces(const uint8_t* p, const uint8_t* end_of_run, const uint8_t* end) {
  if (end_of_run == end) return end_of_run;
  const uint8_t* last = end_of_run - 1;
  while ((*last & 0xc0) == 0x80) last--;
  return last > p ? last : end_of_run;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
template <typename Emit>
void split_gpt2(const uint8_t* p, const uint8_t* end, Emit emit) {
  while (p < end) {
    const uint8_t* stop;
    if (const uint32_t contraction = contraction_at(p, end, 0)) {
      stop = p + contraction;
    } else {
      const uint8_t* body = *p == ' ' ? p + 1 : p;
      const uint32_t run = character_at(body, end).class_set;
      if (run == 0 || run == kSpaces) {
        stop = end_of_spaces(p, skip(p, end, kSpaces), end);
      } else {
        stop = skip(body, end, run & kOthers ? uint32_t{kOthers} : run);
      }
    }
    emit(p, stop);
    p = stop;
  }
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+
// |\s+(?!\S)|\s+
template <typename Emit>
void split_llama3(const uint8_t* p, const uint8_t* end, uint32_t max_digits, Emit emit) {
  while (p < end) {
    const Character first = character_at(p, end);
    const Character second = character_at(p + first.size, end);
    const uint8_t* stop;
    if (const uint32_t contraction = contraction_at(p, end, 0x20)) {
      stop = p + contraction;
    } else if (first.class_set == kLetters ||
               (second.class_set == kLetters && first.class_set != kNumbers && !is_newline(first.code_point))) {
      stop = skip(p + first.size, end, kLetters);
    } else if (first.class_set == kNumbers) {
      stop = p;
      for (uint32_t i = 0; i < max_digits && character_at(stop, end).class_set == kNumbers; i++)
        stop += utf8_length(*stop);
    } else if ((first.class_set & kOthers) || (first.code_point == ' ' && (second.class_set & kOthers))) {
      stop = skip(p + first.size, end, kOthers);
      while (stop < end && is_newline(*stop)) stop++;
    } else {
      const uint8_t* run = skip(p, end, kSpaces);
      stop = run;
      while (stop > p && !is_newline(stop[-1])) stop--;
      if (stop == p) stop = end_of_spaces(p, run, end);
    }
    emit(p, stop);
    p = stop;
  }
}

// \p{N}, then gpt-2's rule on what lies between.
template <typename Emit>
void split_smollm(const uint8_t* p, const uint8_t* end, Emit emit) {
  while (p < end) {
    const uint8_t* number = skip(p, end, ~uint32_t{kNumbers});
    split_gpt2(p, number, emit);
    if (number == end) return;
    p = number + utf8_length(*number);
    emit(number, p);
  }
}

// \p{N}+, and inside it [0-9][0-9][0-9] from the left. `p` is a number.
template <typename Emit>
void split_numbers(const uint8_t* p, const uint8_t* end, Emit emit) {
  const uint8_t* start = p;
  while (p < end) {
    const bool three = end - p >= 3 && p[0] < 0x80 && p[1] < 0x80 && p[2] < 0x80;
    if (!three) {
      p += utf8_length(*p);
      continue;
    }
    if (start < p) emit(start, p);
    emit(p, p + 3);
    p += 3;
    start = p;
  }
  if (start < end) emit(start, end);
}

// [\p{P}$+<=>^~|]
inline bool is_default_punctuation(uint32_t c, uint32_t class_set) {
  return class_set == kPunctuations || c == '$' || c == '+' || (c >= '<' && c <= '>') || c == '^' || c == '~' || c == '|';
}

// [\p{P}$+<=>^~|]+, then gpt-2's rule between and within, then \p{N}+ and [0-9][0-9][0-9] inside those words.
template <typename Emit>
void split_default(const uint8_t* p, const uint8_t* end, Emit emit) {
  const auto split_word = [&](const uint8_t* start, const uint8_t* stop) {
    const uint8_t* number = skip(start, stop, ~uint32_t{kNumbers});
    if (start < number) emit(start, number);
    if (number < stop) split_numbers(number, stop, emit);
  };
  while (p < end) {
    const Character first = character_at(p, end);
    const bool punctuation = is_default_punctuation(first.code_point, first.class_set);
    const uint8_t* stop = p + first.size;
    while (stop < end) {
      const Character c = character_at(stop, end);
      if (is_default_punctuation(c.code_point, c.class_set) != punctuation) break;
      stop += c.size;
    }
    split_gpt2(p, stop, split_word);
    p = stop;
  }
}

// Calls emit(start, end) for each word of [p, end), in order.
template <typename Emit>
void pre_tokenize(PreTokenizer rule, const uint8_t* p, const uint8_t* end, Emit emit) {
  switch (rule) {
    case kGpt2: return split_gpt2(p, end, emit);
    case kLlama3: return split_llama3(p, end, 3, emit);
    case kQwen2: return split_llama3(p, end, 1, emit);
    case kSmollm: return split_smollm(p, end, emit);
    default: return split_default(p, end, emit);
  }
}

}  // namespace tok
