// Weight types and how the kernels hold them.
//
// Float types (F32, F16, BF16) stay as in the file: (rows, cols), row-major.
//
// Quantized types are repacked once, at load, without losing or adding a bit: four rows are interleaved so that
// one 16-byte vector holds 4 rows x 4 columns, and a dot product with 4 broadcast activations leaves one row in
// each 32-bit lane. A group of four rows of `cols` columns is a run of units; a unit covers 32 columns (256 for
// the K types) and takes exactly four of the file's blocks. Rows are padded with zero blocks to a multiple of 4.
//
// Scalar reference: weights_reference.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

// ggml's numbers.
enum WeightType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kBF16 = 30,
};

constexpr int kRowsPerGroup = 4;

inline bool is_quantized(uint32_t type) { return type != kF32 && type != kF16 && type != kBF16; }

// Columns of one file block; 1 for float types.
inline int block_columns(uint32_t type) {
  if (!is_quantized(type)) return 1;
  return type >= kQ2_K && type <= kQ6_K ? 256 : 32;
}

// Bytes of one file block; 0 for an unknown type.
inline int block_bytes(uint32_t type) {
  switch (type) {
    case kF32: return 4;
    case kF16: return 2;
    case kBF16: return 2;
    case kQ4_0: return 18;
    case kQ4_1: return 20;
    case kQ5_0: return 22;
    case kQ5_1: return 24;
    case kQ8_0: return 34;
    case kQ2_K: return 84;
    case kQ3_K: return 110;
    case kQ4_K: return 144;
    case kQ5_K: return 176;
    case kQ6_K: return 210;
    case kIQ4_NL: return 18;
    default: return 0;
  }
}

// Bytes of one row as in the file.
inline size_t row_bytes(uint32_t type, int cols) {
  return size_t(cols / block_columns(type)) * size_t(block_bytes(type));
}

// Bytes of a packed matrix, rows padded to whole groups for quantized types.
inline size_t packed_bytes(uint32_t type, int rows, int cols) {
  const int padded = is_quantized(type) ? (rows + 3) / 4 * 4 : rows;
  return size_t(padded) * row_bytes(type, cols);
}

// Interleaves `n_rows` (1..4, missing ones become zero) rows of file blocks into one packed group.
// Returns 0, or -(1 + block index) of the first block whose scale is not finite.
int pack_group(uint32_t type, const uint8_t* rows, int n_rows, int cols, uint8_t* group);

// Writes row `row` of a packed (or float) matrix as f32: out (cols).
void dequantize_row(uint32_t type, const uint8_t* weights, int cols, int row, float* out);
