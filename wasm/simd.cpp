#include "simd.h"

const SimdConstants simd_constants = {
    wasm_i8x16_const_splat(0x0f),
    wasm_i16x8_const_splat(0x00ff),
    wasm_i32x4_const_splat(int32_t(0x8fffe000)),
    wasm_f32x4_const_splat(0x1p112f),
};
