// The tokenizer's part of the C ABI; its caller is src/tokenizer/tokenizer.ts.
//
// A tokenizer is a pointer made by tok_create and freed by tok_destroy; several may live in one module.

#include <new>

#include "tokenizer.h"

using namespace tok;

namespace {

// The token or merge that the last kBadData was about.
uint32_t bad_item = 0;

}  // namespace

// A tokenizer for `n_tokens` GGUF strings; types and scores are null or one a token. Returns it, or a Status.
INLAY_EXPORT(tok_create)
intptr_t tok_create(uint32_t kind, const uint8_t* tokens, uint32_t n_bytes, uint32_t n_tokens, const int32_t* types,
                    const float* scores) {
  if (kind != kSentencePiece && kind != kByteLevel) return kBadArgument;
  void* memory = malloc(sizeof(Tokenizer));
  if (!memory) return kOutOfMemory;
  Tokenizer* tokenizer = new (memory) Tokenizer;
  const Status status =
      tokenizer->vocabulary.load(static_cast<Kind>(kind), {tokens, n_bytes}, n_tokens, types, scores, &bad_item);
  if (status == kOk) return reinterpret_cast<intptr_t>(tokenizer);
  tokenizer->~Tokenizer();
  free(memory);
  return status;
}

INLAY_EXPORT(tok_destroy)
void tok_destroy(Tokenizer* tokenizer) {
  tokenizer->~Tokenizer();
  free(tokenizer);
}

// The merges of a byte-level tokenizer, `n_merges` GGUF strings. Once, before tok_finish.
INLAY_EXPORT(tok_load_merges)
int32_t tok_load_merges(Tokenizer* tokenizer, const uint8_t* merges, uint32_t n_bytes, uint32_t n_merges) {
  return tokenizer->byte_level.load_merges({merges, n_bytes}, n_merges, &bad_item);
}

// After kBadData: the token or merge that is at fault, or their number when bytes were left over.
INLAY_EXPORT(tok_bad_item)
uint32_t tok_bad_item() { return bad_item; }

// The first token with this spelling, or -1.
INLAY_EXPORT(tok_find)
int32_t tok_find(const Tokenizer* tokenizer, const uint8_t* text, uint32_t n_bytes) {
  return static_cast<int32_t>(tokenizer->vocabulary.find_text({text, n_bytes}));
}

INLAY_EXPORT(tok_attributes)
uint32_t tok_attributes(const Tokenizer* tokenizer, uint32_t token) {
  return tokenizer->vocabulary.attributes(token);
}

// Overrules a token's attributes; before tok_finish.
INLAY_EXPORT(tok_set_attributes)
void tok_set_attributes(Tokenizer* tokenizer, uint32_t token, uint32_t bits) {
  tokenizer->vocabulary.set_attributes(token, bits);
}

// Makes the tokenizer ready. `unknown` is a token or -1. See Tokenizer::Options.
INLAY_EXPORT(tok_finish)
int32_t tok_finish(Tokenizer* tokenizer, uint32_t pre_tokenizer, uint32_t whole_words_first, uint32_t space_prefix,
                   uint32_t unknown) {
  if (pre_tokenizer >= kPreTokenizers) return kBadArgument;
  const bool ok = tokenizer->finish({static_cast<PreTokenizer>(pre_tokenizer), whole_words_first != 0,
                                     space_prefix != 0, unknown});
  return ok ? kOk : kOutOfMemory;
}

// Encodes UTF-8; returns the number of ids, which lie at tok_ids(), or a Status.
INLAY_EXPORT(tok_encode)
int32_t tok_encode(Tokenizer* tokenizer, const uint8_t* text, uint32_t n_bytes, uint32_t parse_control) {
  return tokenizer->encode({text, n_bytes}, parse_control != 0) ? static_cast<int32_t>(tokenizer->ids().size())
                                                                : int32_t{kOutOfMemory};
}

INLAY_EXPORT(tok_ids)
const uint32_t* tok_ids(const Tokenizer* tokenizer) { return tokenizer->ids().data(); }

// Decodes ids below n_tokens; returns the number of bytes, which lie at tok_text(), or a Status.
INLAY_EXPORT(tok_decode)
int32_t tok_decode(Tokenizer* tokenizer, const uint32_t* ids, uint32_t n_ids, uint32_t with_special) {
  return tokenizer->decode(ids, n_ids, with_special != 0) ? static_cast<int32_t>(tokenizer->text().size())
                                                          : int32_t{kOutOfMemory};
}

INLAY_EXPORT(tok_text)
const uint8_t* tok_text(const Tokenizer* tokenizer) { return tokenizer->text().data(); }

// Bytes of a token's spelling in the file, and where they lie.
INLAY_EXPORT(tok_spelling_bytes)
uint32_t tok_spelling_bytes(const Tokenizer* tokenizer, uint32_t token) {
  return tokenizer->vocabulary.text(token).size;
}

INLAY_EXPORT(tok_spelling)
const uint8_t* tok_spelling(const Tokenizer* tokenizer, uint32_t token) {
  return tokenizer->vocabulary.text(token).data;
}

// Gives back what the last call's results and an unusually long text needed.
INLAY_EXPORT(tok_trim)
void tok_trim(Tokenizer* tokenizer) { tokenizer->trim(); }
