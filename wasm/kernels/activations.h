// Activations for the integer dot products: int8 with one scale per 32 columns, as ggml's Q8 blocks.
//
//   d = max |x| / 127 of the 32,  q = round(x / d),  then d is rounded to f16
//
// The f16 is ggml's, and costs up to 2^-11 of accuracy: with it a Q8_0 model gives llama.cpp's tokens.
//
// Tokens are taken in tiles of kTileTokens, so that the matmul reads one forward-moving pointer. Within a tile of T tokens
// and a block of 32 columns:
//
//   narrow  int8  [8][T][4]    4 neighbouring columns of a token side by side   (relaxed 8-bit dot product)
//   wide    int16 [16][T][2]   columns 4i and 4i + 2, then 4i + 1 and 4i + 3    (16-bit dot product)
//   d       f32   [T]
//   sums    int32 [3][T]       sums of q: columns 0-15, 16-31, and all 32       (weights with an offset or a minimum)
//
// One token alone is a tile of 1 whose groups of 4 bytes are each written four times, narrow [8][4][4] and wide [16][4][2]:
// a load then needs no broadcast, for which V8 spends an instruction on the address.
//
// Scalar reference: matmul_reference.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int kTileTokens = 4;
// Copies of each group of 4 bytes in a tile of one token.
constexpr int kCopies = 4;

struct Activations {
  int n_tokens;
  int cols;  // a multiple of 32
  int tile;  // 1 or kTileTokens
  int n_tiles;
  int8_t* narrow;  // null when no weight needs it
  int16_t* wide;   // null when no weight needs it
  float* d;
  int32_t* sums;

  int n_blocks() const { return cols / 32; }
};

// Bytes of scratch for `n_tokens` x `cols`.
size_t activation_bytes(int n_tokens, int cols, bool narrow, bool wide);

// Lays out the arrays in `scratch` (64-byte aligned).
Activations plan_activations(int n_tokens, int cols, bool narrow, bool wide, void* scratch);

// Quantizes the tokens of tile `t`. x: (n_tokens, cols). Tokens past the end become zeros.
void quantize_tile(const Activations& a, const float* x, int t);
