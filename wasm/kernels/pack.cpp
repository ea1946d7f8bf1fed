// Repacking of quantized rows at load: four rows of file blocks become one group of units (formats.h).
//
// Every type goes the same way: the block's quants become one byte per column, in column order; then four rows
// are woven into the unit's bit planes; scales are woven beside them. No bit is lost: unpacking gives the
// numbers of ggml's dequantization.

#include <cstring>

#include "formats.h"
#include "weights.h"

namespace {

uint16_t load_u16(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

void store_u16(uint8_t* p, uint16_t v) {
  p[0] = uint8_t(v);
  p[1] = uint8_t(v >> 8);
}

uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}

void store_u32(uint8_t* p, uint32_t v) { memcpy(p, &v, 4); }

// ---- file block -> one byte per column -------------------------------------------------------------------

// 16 bytes: low nibbles are columns 0..15, high nibbles 16..31.
void nibbles_split_16(const uint8_t* src, uint8_t* q) {
  for (int j = 0; j < 16; j++) {
    q[j] = src[j] & 15;
    q[16 + j] = src[j] >> 4;
  }
}

void add_bits_32(uint32_t bits, uint8_t* q) {
  for (int j = 0; j < 32; j++) q[j] |= uint8_t(bits >> j & 1) << 4;
}

void quants_of_block(uint32_t type, const uint8_t* b, uint8_t* q) {
  switch (type) {
    case kQ4_0:
    case kIQ4_NL:
      return nibbles_split_16(b + 2, q);
    case kQ4_1:
      return nibbles_split_16(b + 4, q);
    case kQ5_0:
      nibbles_split_16(b + 6, q);
      return add_bits_32(load_u32(b + 2), q);
    case kQ5_1:
      nibbles_split_16(b + 8, q);
      return add_bits_32(load_u32(b + 4), q);
    case kQ8_0:
      memcpy(q, b + 2, 32);
      return;
    case kQ2_K:  // 2 x 32 bytes; bits 2k..2k+1 are columns 32k + j of each half
      for (int half = 0; half < 2; half++)
        for (int k = 0; k < 4; k++)
          for (int j = 0; j < 32; j++) q[128 * half + 32 * k + j] = b[16 + 32 * half + j] >> (2 * k) & 3;
      return;
    case kQ3_K:  // as Q2_K at byte 32; third bit: bit (column / 32) of byte column % 32
      for (int half = 0; half < 2; half++)
        for (int k = 0; k < 4; k++)
          for (int j = 0; j < 32; j++)
            q[128 * half + 32 * k + j] =
                uint8_t((b[32 + 32 * half + j] >> (2 * k) & 3) | (b[j] >> (4 * half + k) & 1) << 2);
      return;
    case kQ4_K:  // 4 x 32 bytes: low nibbles are columns 64c + j, high nibbles 64c + 32 + j
      for (int c = 0; c < 4; c++)
        for (int j = 0; j < 32; j++) {
          q[64 * c + j] = b[16 + 32 * c + j] & 15;
          q[64 * c + 32 + j] = b[16 + 32 * c + j] >> 4;
        }
      return;
    case kQ5_K:  // fifth bit: bit (column / 32) of byte column % 32 at byte 16; nibbles at 48 as Q4_K
      for (int c = 0; c < 4; c++)
        for (int j = 0; j < 32; j++) {
          q[64 * c + j] = uint8_t((b[48 + 32 * c + j] & 15) | (b[16 + j] >> (2 * c) & 1) << 4);
          q[64 * c + 32 + j] = uint8_t(b[48 + 32 * c + j] >> 4 | (b[16 + j] >> (2 * c + 1) & 1) << 4);
        }
      return;
    case kQ6_K:  // ql[128], qh[64]; each half of 128 columns: 4 runs of 32
      for (int half = 0; half < 2; half++) {
        const uint8_t *ql = b + 64 * half, *qh = b + 128 + 32 * half;
        uint8_t* out = q + 128 * half;
        for (int j = 0; j < 32; j++) {
          out[j] = uint8_t((ql[j] & 15) | (qh[j] & 3) << 4);
          out[32 + j] = uint8_t((ql[32 + j] & 15) | (qh[j] >> 2 & 3) << 4);
          out[64 + j] = uint8_t(ql[j] >> 4 | (qh[j] >> 4 & 3) << 4);
          out[96 + j] = uint8_t(ql[32 + j] >> 4 | (qh[j] >> 6) << 4);
        }
      }
      return;
    default:
      return;
  }
}

// ---- one byte per column -> planes of a step; q is (4 rows, stride), 32 columns from `q` ------------------

// Word (i, row) holds columns 4i..4i+3 of the row.
uint32_t word(const uint8_t* q, int stride, int row, int i) { return load_u32(q + row * stride + 4 * i); }

void pack_nibble_plane(const uint8_t* q, int stride, uint8_t* out) {
  for (int i = 0; i < 4; i++)
    for (int row = 0; row < 4; row++) {
      const uint32_t low = word(q, stride, row, i) & 0x0f0f0f0f;
      const uint32_t high = word(q, stride, row, 4 + i) & 0x0f0f0f0f;
      store_u32(out + 16 * i + 4 * row, low | high << 4);
    }
}

// Bit `bit` of column 4i + c becomes bit i of byte (row, c).
void pack_bit_plane(const uint8_t* q, int stride, int bit, uint8_t* out) {
  for (int row = 0; row < 4; row++) {
    uint32_t plane = 0;
    for (int i = 0; i < 8; i++) plane |= (word(q, stride, row, i) >> bit & 0x01010101) << i;
    store_u32(out + 4 * row, plane);
  }
}

// Two bits from `bit` of columns 4(2j + half) + c become bits 2j..2j+1 of byte (half, row, c).
void pack_pair_plane(const uint8_t* q, int stride, int bit, uint8_t* out) {
  for (int half = 0; half < 2; half++)
    for (int row = 0; row < 4; row++) {
      uint32_t plane = 0;
      for (int j = 0; j < 4; j++) plane |= (word(q, stride, row, 2 * j + half) >> bit & 0x03030303) << (2 * j);
      store_u32(out + 16 * half + 4 * row, plane);
    }
}

void pack_bytes(const uint8_t* q, int stride, uint8_t* out) {
  for (int i = 0; i < 8; i++)
    for (int row = 0; row < 4; row++) store_u32(out + 16 * i + 4 * row, word(q, stride, row, i));
}

// ---- scales -----------------------------------------------------------------------------------------------

// f16 fields at `offset` of the four rows' blocks, side by side.
bool pack_f16(const uint8_t* const blocks[4], int offset, uint8_t* out) {
  bool finite = true;
  for (int row = 0; row < 4; row++) {
    const uint16_t h = load_u16(blocks[row] + offset);
    finite &= f16_is_finite(h);
    store_u16(out + 2 * row, h);
  }
  return finite;
}

// Two such fields: the scale, and the min or its scale.
bool pack_two_f16(const uint8_t* const blocks[4], int first, int second, uint8_t* out) {
  const bool first_finite = pack_f16(blocks, first, out);
  const bool second_finite = pack_f16(blocks, second, out + 8);
  return first_finite && second_finite;
}

// ggml's 12 bytes of eight 6-bit scales and eight 6-bit mins.
void unpack_k4_scales(const uint8_t* s, uint8_t scale[8], uint8_t min[8]) {
  for (int j = 0; j < 4; j++) {
    scale[j] = s[j] & 63;
    min[j] = s[4 + j] & 63;
    scale[4 + j] = uint8_t((s[8 + j] & 15) | (s[j] >> 6) << 4);
    min[4 + j] = uint8_t(s[8 + j] >> 4 | (s[4 + j] >> 6) << 4);
  }
}

// Layout: unpack_k_scales in formats.h.
void pack_k4_scales(const uint8_t* const blocks[4], uint8_t* out) {
  uint8_t scales[32], mins[32];  // (step, row)
  for (int row = 0; row < 4; row++) {
    uint8_t scale[8], min[8];
    unpack_k4_scales(blocks[row] + 4, scale, min);
    for (int step = 0; step < 8; step++) {
      scales[4 * step + row] = scale[step];
      mins[4 * step + row] = min[step];
    }
  }
  for (int i = 0; i < 16; i++) {
    out[i] = uint8_t((scales[i] & 15) | (scales[16 + i] & 15) << 4);
    out[16 + i] = uint8_t((mins[i] & 15) | (mins[16 + i] & 15) << 4);
    out[32 + i] = uint8_t(scales[i] >> 4 | (scales[16 + i] >> 4) << 2 | (mins[i] >> 4) << 4 | (mins[16 + i] >> 4) << 6);
  }
}

// ggml's 12 bytes of sixteen 6-bit scales: low nibbles in bytes 0..7, high pairs in bytes 8..11.
void pack_q3_scales(const uint8_t* const blocks[4], uint8_t* out) {
  uint8_t scales[64];  // (sub-block, row)
  for (int row = 0; row < 4; row++) {
    const uint8_t* s = blocks[row] + 96;
    for (int j = 0; j < 16; j++) {
      const uint8_t low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
      const uint8_t high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
      scales[4 * j + row] = uint8_t(low | high << 4);
    }
  }
  for (int i = 0; i < 16; i++) {
    out[i] = uint8_t((scales[i] & 15) | (scales[16 + i] & 15) << 4);
    out[16 + i] = uint8_t((scales[32 + i] & 15) | (scales[48 + i] & 15) << 4);
    out[32 + i] =
        uint8_t(scales[i] >> 4 | (scales[16 + i] >> 4) << 2 | (scales[32 + i] >> 4) << 4 | (scales[48 + i] >> 4) << 6);
  }
}

// ---- one unit ---------------------------------------------------------------------------------------------

// Returns false when a scale is not finite.
bool pack_unit(uint32_t type, const uint8_t* const blocks[4], uint8_t* out) {
  alignas(16) uint8_t q[4 * 256];
  const int stride = block_columns(type);
  const int steps = stride / 32;
  for (int row = 0; row < 4; row++) quants_of_block(type, blocks[row], q + row * stride);

  bool finite = true;
  switch (type) {
    case kQ4_0:
    case kIQ4_NL:
      finite = pack_f16(blocks, 0, out);
      pack_nibble_plane(q, stride, out + 8);
      break;
    case kQ4_1:
      finite = pack_two_f16(blocks, 0, 2, out);
      pack_nibble_plane(q, stride, out + 16);
      break;
    case kQ5_0:
      finite = pack_f16(blocks, 0, out);
      pack_bit_plane(q, stride, 4, out + 8);
      pack_nibble_plane(q, stride, out + 24);
      break;
    case kQ5_1:
      finite = pack_two_f16(blocks, 0, 2, out);
      pack_bit_plane(q, stride, 4, out + 16);
      pack_nibble_plane(q, stride, out + 32);
      break;
    case kQ8_0:
      finite = pack_f16(blocks, 0, out);
      pack_bytes(q, stride, out + 8);
      break;
    case kQ2_K:
      finite = pack_two_f16(blocks, 80, 82, out);
      for (int row = 0; row < 4; row++)
        for (int j = 0; j < 16; j++) out[16 + 4 * j + row] = blocks[row][j];
      for (int s = 0; s < steps; s++) pack_pair_plane(q + 32 * s, stride, 0, out + 80 + 32 * s);
      break;
    case kQ3_K:
      finite = pack_f16(blocks, 108, out);
      pack_q3_scales(blocks, out + 8);
      for (int s = 0; s < steps; s++) {
        pack_bit_plane(q + 32 * s, stride, 2, out + 56 + 48 * s);
        pack_pair_plane(q + 32 * s, stride, 0, out + 56 + 48 * s + 16);
      }
      break;
    case kQ4_K:
      finite = pack_two_f16(blocks, 0, 2, out);
      pack_k4_scales(blocks, out + 16);
      for (int s = 0; s < steps; s++) pack_nibble_plane(q + 32 * s, stride, out + 64 + 64 * s);
      break;
    case kQ5_K:
      finite = pack_two_f16(blocks, 0, 2, out);
      pack_k4_scales(blocks, out + 16);
      for (int s = 0; s < steps; s++) {
        pack_bit_plane(q + 32 * s, stride, 4, out + 64 + 80 * s);
        pack_nibble_plane(q + 32 * s, stride, out + 64 + 80 * s + 16);
      }
      break;
    case kQ6_K:
      finite = pack_f16(blocks, 208, out);
      for (int row = 0; row < 4; row++)
        for (int j = 0; j < 16; j++) out[8 + 4 * j + row] = blocks[row][192 + j];
      for (int s = 0; s < steps; s++) {
        pack_nibble_plane(q + 32 * s, stride, out + 72 + 96 * s);
        pack_pair_plane(q + 32 * s, stride, 4, out + 72 + 96 * s + 64);
      }
      break;
    default:
      break;
  }
  return finite;
}

}  // namespace

int pack_group(uint32_t type, const uint8_t* rows, int n_rows, int cols, uint8_t* group) {
  static const uint8_t zeros[256] = {};
  const int bytes = block_bytes(type);
  const int blocks_per_row = cols / block_columns(type);
  const size_t stride = row_bytes(type, cols);
  int status = 0;
  for (int b = 0; b < blocks_per_row; b++) {
    const uint8_t* blocks[4];
    for (int row = 0; row < 4; row++) blocks[row] = row < n_rows ? rows + row * stride + size_t(b) * bytes : zeros;
    if (!pack_unit(type, blocks, group + size_t(b) * 4 * bytes) && status == 0) status = -(1 + b);
  }
  return status;
}

namespace {

template <class F>
void dequantize_packed_row(const uint8_t* weights, int cols, int row, float* out) {
  const int units = cols / F::kColumns;
  const uint8_t* p = weights + size_t(row / 4) * size_t(units) * F::kBytes;
  const int lane = row % 4;
  constexpr int kSteps = F::kColumns / 32;
  for (int u = 0; u < units; u++, p += F::kBytes) {
    alignas(16) float d[kSteps * F::kScales][4], m[kSteps * F::kScales][4] = {};
    f32x4 dv[kSteps * F::kScales], mv[kSteps * F::kScales];
    F::scales(p, dv, mv);
    for (int i = 0; i < kSteps * F::kScales; i++) {
      wasm_v128_store(d[i], dv[i]);
      if (F::kHasMin) wasm_v128_store(m[i], mv[i]);
    }
    for (int step = 0; step < kSteps; step++) {
      i8x16 q[8];
      alignas(16) uint8_t bytes[8][16];
      F::quants(p, step, q);
      for (int i = 0; i < 8; i++) wasm_v128_store(bytes[i], q[i]);
      for (int c = 0; c < 32; c++) {
        const uint8_t byte = bytes[c / 4][4 * lane + c % 4];
        const int value = F::kSigned ? int(int8_t(byte)) : int(byte);
        const int scale = step * F::kScales + (F::kScales == 2 ? c / 16 : 0);
        *out++ = d[scale][lane] * float(value - F::kOffset) + m[scale][lane];
      }
    }
  }
}

}  // namespace

void dequantize_row(uint32_t type, const uint8_t* weights, int cols, int row, float* out) {
  const uint8_t* p = weights + size_t(row) * row_bytes(type, cols);
  if (type == kF32) {
    memcpy(out, p, size_t(cols) * 4);
  } else if (type == kF16 || type == kBF16) {
    for (int c = 0; c < cols; c++) {
      const uint16_t h = load_u16(p + 2 * c);
      if (type == kF16) {
        out[c] = f16_to_f32(h);
      } else {
        const uint32_t bits = uint32_t(h) << 16;
        memcpy(out + c, &bits, 4);
      }
    }
  } else {
    with_format(type, [&]<class F>() { dequantize_packed_row<F>(weights, cols, row, out); });
  }
}
