// Slow and plain twin of pack.cpp and formats.h: element i of a block, straight from ggml's block layouts. f32 scales, double result.
#include <cmath>
#include <cstring>

#include "bridge.h"
#include "reference.h"
#include "weights.h"

namespace {

int bits(uint32_t x, int from, int count) { return int(x >> from & ((1u << count) - 1)); }

double f16(const uint8_t* p) {
  const int h = p[0] | p[1] << 8, exponent = bits(h, 10, 5), fraction = bits(h, 0, 10);
  const double size = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
  return h >> 15 ? -size : size;
}

uint32_t u32(const uint8_t* p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}

float f32_of_bits(uint32_t x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}

// 32 elements in 16 bytes: the first 16 in low nibbles. 64 in 32 bytes likewise for the K types. Pairs: 128 in 32 bytes.
int nibble32(const uint8_t* p, int i) { return bits(p[i % 16], i < 16 ? 0 : 4, 4); }
int nibble256(const uint8_t* p, int i) { return bits(p[32 * (i / 64) + i % 32], i % 64 < 32 ? 0 : 4, 4); }
int pair256(const uint8_t* p, int i) { return bits(p[32 * (i / 128) + i % 32], 2 * (i / 32 % 4), 2); }

// Six-bit scale and minimum j of Q4_K and Q5_K.
int k_scale(const uint8_t* p, int j) { return j < 4 ? p[j] & 63 : (p[4 + j] & 15) | bits(p[j - 4], 6, 2) << 4; }
int k_min(const uint8_t* p, int j) { return j < 4 ? p[4 + j] & 63 : p[4 + j] >> 4 | bits(p[j], 6, 2) << 4; }

int q3_scale(const uint8_t* p, int j) {
  return (j < 8 ? p[j] & 15 : p[j - 8] >> 4) + 16 * bits(p[8 + j % 4], 2 * (j / 4), 2) - 32;
}

constexpr int kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Element i of the block at p.
double element(uint32_t type, const uint8_t* p, int i) {
  switch (type) {
    case kF32: return f32_of_bits(u32(p));
    case kF16: return f16(p);
    case kBF16: return f32_of_bits(uint32_t(p[0] | p[1] << 8) << 16);
    case kQ4_0: return f16(p) * (nibble32(p + 2, i) - 8);
    case kQ4_1: return f16(p) * nibble32(p + 4, i) + f16(p + 2);
    case kQ5_0: return f16(p) * (nibble32(p + 6, i) + 16 * bits(u32(p + 2), i, 1) - 16);
    case kQ5_1: return f16(p) * (nibble32(p + 8, i) + 16 * bits(u32(p + 4), i, 1)) + f16(p + 2);
    case kQ8_0: return f16(p) * int8_t(p[2 + i]);
    case kIQ4_NL: return f16(p) * kIq4Levels[nibble32(p + 2, i)];
    case kQ2_K: return f16(p + 80) * (p[i / 16] & 15) * pair256(p + 16, i) - f16(p + 82) * (p[i / 16] >> 4);
    case kQ3_K:
      return f16(p + 108) * q3_scale(p + 96, i / 16) * (pair256(p + 32, i) + 4 * bits(p[i % 32], i / 32, 1) - 4);
    case kQ4_K: return f16(p) * k_scale(p + 4, i / 32) * nibble256(p + 16, i) - f16(p + 2) * k_min(p + 4, i / 32);
    case kQ5_K:
      return f16(p) * k_scale(p + 4, i / 32) * (nibble256(p + 48, i) + 16 * bits(p[16 + i % 32], i / 32, 1)) -
             f16(p + 2) * k_min(p + 4, i / 32);
    case kQ6_K: {
      const int low = bits(p[64 * (i / 128) + i % 64], i % 128 < 64 ? 0 : 4, 4);
      return f16(p + 208) * int8_t(p[192 + i / 16]) * (low + 16 * pair256(p + 128, i) - 32);
    }
    default: return NAN;
  }
}

}  // namespace

double reference_weight(uint32_t type, const uint8_t* w, int cols, int row, int col) {
  const int block = block_columns(type);
  return element(type, w + row * row_bytes(type, cols) + size_t(col / block) * block_bytes(type), col % block);
}

// out: (rows, cols) f64, from the file's blocks.
INLAY_EXPORT(reference_dequantize)
void reference_dequantize(uint32_t type, const uint8_t* w, int rows, int cols, double* out) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < cols; c++) *out++ = reference_weight(type, w, cols, r, c);
}
