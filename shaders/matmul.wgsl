// matmul: the kernels that read weights, quantized as they are in the model file. Three entry points share the decoding
// of blocks, since WGSL has no includes:
//   embed         rows of a matrix by id
//   matmul_gemv   1 to 4 tokens: every weight is read from memory once and used from registers
//   matmul_gemm   more: tiles of decoded weights and of activations in workgroup memory
//
//   x       (n_tokens, 32 * blocks)   f32, row-major
//   quants, highs, scales             a matrix of n_rows x blocks, in planes: see "Blocks of weights"
//   bias    (width)                   f32; read if has_bias
//   ids     (n_tokens)                rows to embed
//   out     (n_tokens, width)         f32; columns row_at .. row_at + n_rows belong to this matrix
// A matrix that is too large for one buffer comes in parts, with a dispatch each.
//
// Numerics: f32 throughout, activations are not rounded. Sums run over blocks in another order than the reference's.
// Reference: test/reference/dequantize.ts, test/reference/math.ts (matVec)

struct Params {
  blocks: u32,    // of 32 columns, in a row
  n_rows: u32,    // of this part of the matrix
  row_at: u32,    // rows before this part
  width: u32,     // columns of out
  n_tokens: u32,
  finish: u32,    // a sum is 0: stored; 1: added to out; 2: stored, times silu(out); 3: stored, times gelu(out)
  has_bias: u32,
  lanes: u32,     // gemv: threads that share 4 rows; a power of two from 4 to gemv_threads
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> quants: array<vec4u>;
@group(0) @binding(3) var<storage, read> highs: array<u32>;
@group(0) @binding(4) var<storage, read> scales: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> ids: array<u32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

// ---- Blocks of weights ----
// A weight is scale * level + offset. Block b of the planes, as src/backend/webgpu/planes.ts packs them; a "quad" is 4
// neighbouring columns, of which a block has 8; a "group" is the 8 blocks that share scales in K types:
//   quants  the levels' low bits: words of 2 (Q2_K, Q3_K), 4 (Q8_0: 8) per block. Byte i of each field of a word
//           belongs to column i of its quad. Floats: the columns in order, 16 words (f16, bf16) or 32 (f32)
//   highs   the levels' further bits: 1 word (Q3_K, Q5_0, Q5_1, Q5_K) or 2 (Q6_K) per block
//   scales  half floats and small integers, see block_scales

override quant_type: u32 = 2u;  // ggml's number of the type

const f32_type = 0u;
const f16_type = 1u;
const q4_0 = 2u;
const q4_1 = 3u;
const q5_0 = 6u;
const q5_1 = 7u;
const q8_0 = 8u;
const q2_k = 10u;
const q3_k = 11u;
const q4_k = 12u;
const q5_k = 13u;
const q6_k = 14u;
const iq4_nl = 20u;
const bf16_type = 30u;

override is_float: bool = quant_type == f32_type || quant_type == f16_type || quant_type == bf16_type;
// The two halves of a block, 16 columns each, have scales of their own.
override has_half_scales: bool = quant_type == q2_k || quant_type == q3_k || quant_type == q6_k;
override has_fifth_bits: bool = quant_type == q5_0 || quant_type == q5_1 || quant_type == q5_k;

const quad_bits = vec4u(0u, 1u, 2u, 3u);
const quad_pairs = vec4u(0u, 2u, 4u, 6u);
const byte_shifts = vec4u(0u, 8u, 16u, 24u);

/// Levels of a block as bytes: word k holds quad k (low) and quad 4 + k (high).
struct Levels { low: vec4u, high: vec4u }

fn block_levels(b: u32) -> Levels {
  if (quant_type == q8_0) { return Levels(quants[2u * b], quants[2u * b + 1u]); }
  if (quant_type == q2_k || quant_type == q3_k) {
    let two = quants[b / 2u];
    let words = select(two.xy, two.zw, (b & 1u) == 1u);
    var pairs = Levels(
      (vec4u(words.x) >> quad_pairs) & vec4u(0x03030303u), (vec4u(words.y) >> quad_pairs) & vec4u(0x03030303u));
    if (quant_type == q3_k) {
      let bits = vec4u(highs[b]);
      pairs.low |= ((bits >> quad_bits) & vec4u(0x01010101u)) << vec4u(2u);
      pairs.high |= ((bits >> (quad_bits + 4u)) & vec4u(0x01010101u)) << vec4u(2u);
    }
    return pairs;
  }
  let words = quants[b];
  var nibbles = Levels(words & vec4u(0x0f0f0f0fu), (words >> vec4u(4u)) & vec4u(0x0f0f0f0fu));
  if (has_fifth_bits) {
    let bits = vec4u(highs[b]);
    nibbles.low |= ((bits >> quad_bits) & vec4u(0x01010101u)) << vec4u(4u);
    nibbles.high |= ((bits >> (quad_bits + 4u)) & vec4u(0x01010101u)) << vec4u(4u);
  }
  if (quant_type == q6_k) {
    nibbles.low |= ((vec4u(highs[2u * b]) >> quad_pairs) & vec4u(0x03030303u)) << vec4u(4u);
    nibbles.high |= ((vec4u(highs[2u * b + 1u]) >> quad_pairs) & vec4u(0x03030303u)) << vec4u(4u);
  }
  return nibbles;
}

/// The four levels of a word.
fn to_floats(word: u32) -> vec4f {
  let levels = (vec4u(word) >> byte_shifts) & vec4u(255u);
  if (quant_type != iq4_nl) { return vec4f(vec4i(levels)); }
  // IQ4_NL's 16 levels plus 127, four to a word.
  let is_odd_word = (levels & vec4u(4u)) != vec4u(0u);
  let low_half = select(vec4u(0x3e2c1700u), vec4u(0x75695c4eu), is_odd_word);
  let high_half = select(vec4u(0xa5988c80u), vec4u(0xf0d8c4b4u), is_odd_word);
  let words = select(low_half, high_half, (levels & vec4u(8u)) != vec4u(0u));
  return vec4f((words >> ((levels & vec4u(3u)) * 8u)) & vec4u(255u));
}

/// The half float in the low 16 bits, which is finite. Not unpack2x16float: WGSL lets it flush subnormals, and the
/// scales of K types often are subnormal.
fn half_to_f32(word: u32) -> f32 {
  let exponent = (word >> 10u) & 31u;
  let fraction = f32(select(word & 1023u, (word & 1023u) | 1024u, exponent != 0u));
  let magnitude = fraction * bitcast<f32>((max(exponent, 1u) + 102u) << 23u);  // fraction * 2^(exponent - 25)
  return select(magnitude, -magnitude, (word & 0x8000u) != 0u);
}

/// Half i of `scales`.
fn half_at(i: u32) -> f32 {
  return half_to_f32(scales[i / 2u] >> (16u * (i & 1u)));
}

/// The signed byte in the low 8 bits.
fn signed_byte(word: u32) -> f32 {
  return f32(bitcast<i32>(word << 24u) >> 24u);
}

/// Scale and offset of a block's low half (x, y) and high half (z, w).
fn block_scales(b: u32) -> vec4f {
  if (quant_type == q4_1 || quant_type == q5_1) {
    // (scale, offset)
    let word = scales[b];
    return vec2f(half_to_f32(word), half_to_f32(word >> 16u)).xyxy;
  }
  let group = b / 8u;
  let i = b & 7u;
  if (quant_type == q4_k || quant_type == q5_k) {
    // Per group: (d, dmin), low nibbles of 8 scales, of 8 minima, upper pairs of both.
    let halves = scales[4u * group];
    let upper = scales[4u * group + 3u];
    let scale = ((scales[4u * group + 1u] >> (4u * i)) & 15u) | (((upper >> (2u * i)) & 3u) << 4u);
    let least = ((scales[4u * group + 2u] >> (4u * i)) & 15u) | (((upper >> (16u + 2u * i)) & 3u) << 4u);
    return vec2f(half_to_f32(halves) * f32(scale), -half_to_f32(halves >> 16u) * f32(least)).xyxy;
  }
  if (quant_type == q2_k) {
    // Per group: (d, dmin), 16 bytes of scale and minimum nibbles.
    let halves = scales[5u * group];
    let bytes = scales[5u * group + 1u + i / 2u] >> (16u * (i & 1u));
    let nibbles = vec4f((vec4u(bytes) >> vec4u(0u, 4u, 8u, 12u)) & vec4u(15u));
    return nibbles * vec2f(half_to_f32(halves), -half_to_f32(halves >> 16u)).xyxy;
  }
  if (quant_type == q3_k) {
    // Per two groups: twice low nibbles of 16 scales (2 words) and upper pairs (1 word), then both d.
    let at = 7u * (group / 2u);
    let part = at + 3u * (group & 1u);
    let d = half_to_f32(scales[at + 6u] >> (16u * (group & 1u)));
    let low = (vec2u(scales[part + i / 4u] >> (8u * (i & 3u))) >> vec2u(0u, 4u)) & vec2u(15u);
    let upper = (vec2u(scales[part + 2u] >> (4u * i)) >> vec2u(0u, 2u)) & vec2u(3u);
    let scale = d * (vec2f(low + 16u * upper) - 32.0);
    return vec4f(scale.x, -4.0 * scale.x, scale.y, -4.0 * scale.y);
  }
  if (quant_type == q6_k) {
    // Per two groups: twice 16 signed bytes, then both d.
    let at = 9u * (group / 2u);
    let d = half_to_f32(scales[at + 8u] >> (16u * (group & 1u)));
    let bytes = scales[at + 4u * (group & 1u) + i / 2u] >> (16u * (i & 1u));
    let scale = d * vec2f(signed_byte(bytes), signed_byte(bytes >> 8u));
    return vec4f(scale.x, -32.0 * scale.x, scale.y, -32.0 * scale.y);
  }
  let d = half_at(b);
  var zero = 8.0;  // the level of weight 0
  if (quant_type == q5_0) { zero = 16.0; }
  if (quant_type == q8_0) { zero = 128.0; }
  if (quant_type == iq4_nl) { zero = 127.0; }
  return vec2f(d, -zero * d).xyxy;
}

/// Quad k of a block of floats. Subnormal f16 weights may be flushed to zero: they are below 6.2e-5.
fn float_quad(b: u32, k: u32) -> vec4f {
  if (quant_type == f32_type) { return bitcast<vec4f>(quants[8u * b + k]); }
  let two = quants[4u * b + k / 2u];
  let words = select(two.xy, two.zw, (k & 1u) == 1u);
  if (quant_type == f16_type) { return vec4f(unpack2x16float(words.x), unpack2x16float(words.y)); }
  return bitcast<vec4f>(vec4u(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u));
}

// ---- What happens to a sum ----

fn silu(v: f32) -> f32 {
  return v / (1.0 + exp(-max(v, -80.0)));  // e^80 is finite
}

/// The tanh form, as ggml computes it. tanh(y) = 1 - 2 / (e^2y + 1), whose error is absolute, as WGSL's tanh is not.
fn gelu(v: f32) -> f32 {
  let y = min(0.7978845608 * (v + 0.044715 * v * v * v), 20.0);
  return v * (1.0 - 1.0 / (exp(2.0 * y) + 1.0));
}

fn store(token: u32, row: u32, product: f32) {
  if (token >= params.n_tokens || row >= params.n_rows) { return; }
  let column = params.row_at + row;
  let at = token * params.width + column;
  var sum = product;
  if (params.has_bias != 0u) { sum += bias[column]; }
  switch (params.finish) {
    case 1u: { sum += out[at]; }
    case 2u: { sum *= silu(out[at]); }
    case 3u: { sum *= gelu(out[at]); }
    default: {}
  }
  out[at] = sum;
}

fn sum_of(v: vec4f) -> f32 {
  return (v.x + v.y) + (v.z + v.w);
}

// ---- embed ----
// out[token] = row ids[token], if this part has it. One invocation per quad.
// Dispatch: n_tokens * blocks * 8 invocations, folded over x and y.

@compute @workgroup_size(64)
fn embed(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let linear = id.y * grid.x * 64u + id.x;
  let quads = params.blocks * 8u;
  let token = linear / quads;
  if (token >= params.n_tokens) { return; }
  let row = ids[token] - params.row_at;  // wraps below row_at
  if (row >= params.n_rows) { return; }
  let quad = linear % quads;
  let b = row * params.blocks + quad / 8u;
  let k = quad % 8u;
  var weights: vec4f;
  if (is_float) {
    weights = float_quad(b, k);
  } else {
    let levels = block_levels(b);
    let scale = block_scales(b);
    weights = to_floats(select(levels.low[k % 4u], levels.high[k % 4u], k >= 4u));
    weights = weights * select(scale.x, scale.z, k >= 4u) + select(scale.y, scale.w, k >= 4u);
  }
  for (var i = 0u; i < min(4u, params.width - min(params.width, quad * 4u)); i++) {
    out[token * params.width + quad * 4u + i] = weights[i];
  }
}

// ---- matmul_gemv ----
// A workgroup has gemv_threads / lanes slots; a slot takes 4 rows and up to 4 tokens, its lanes every lanes-th block. So
// neighbouring threads read neighbouring blocks, and inputs serve 4 rows from registers. No barrier until the end.
// Limit: memory. Of q4_0, 18 bytes for 32 weights; per weight and token about 3 operations to decode and 1 to multiply.
// Dispatch: ceil(n_rows * lanes / (4 * gemv_threads)) * ceil(n_tokens / 4) workgroups, folded over x and y.

override gemv_threads: u32 = 64u;

var<workgroup> partials: array<vec4f, 4u * gemv_threads>;  // (4 tokens, threads): sums of a thread's 4 rows

/// 32 inputs of one token in quads, and their sums by halves.
struct Inputs { low: mat4x4f, high: mat4x4f, sums: vec2f }

fn load_inputs(token: u32, i: u32) -> Inputs {
  let at = (token * params.blocks + i) * 8u;
  let low = mat4x4f(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
  let high = mat4x4f(x[at + 4u], x[at + 5u], x[at + 6u], x[at + 7u]);
  let low_sum = sum_of((low[0] + low[1]) + (low[2] + low[3]));
  return Inputs(low, high, vec2f(low_sum, sum_of((high[0] + high[1]) + (high[2] + high[3]))));
}

/// Block b times 32 inputs.
fn block_dot(b: u32, v: Inputs) -> f32 {
  if (is_float) {
    return sum_of(
      float_quad(b, 0u) * v.low[0] + float_quad(b, 1u) * v.low[1]
      + float_quad(b, 2u) * v.low[2] + float_quad(b, 3u) * v.low[3]
      + float_quad(b, 4u) * v.high[0] + float_quad(b, 5u) * v.high[1]
      + float_quad(b, 6u) * v.high[2] + float_quad(b, 7u) * v.high[3]);
  }
  let levels = block_levels(b);
  let scale = block_scales(b);
  let low = to_floats(levels.low.x) * v.low[0] + to_floats(levels.low.y) * v.low[1]
    + to_floats(levels.low.z) * v.low[2] + to_floats(levels.low.w) * v.low[3];
  let high = to_floats(levels.high.x) * v.high[0] + to_floats(levels.high.y) * v.high[1]
    + to_floats(levels.high.z) * v.high[2] + to_floats(levels.high.w) * v.high[3];
  if (has_half_scales) {
    return scale.x * sum_of(low) + scale.y * v.sums.x + scale.z * sum_of(high) + scale.w * v.sums.y;
  }
  return scale.x * sum_of(low + high) + scale.y * (v.sums.x + v.sums.y);
}

/// Block i of 4 rows, whose first blocks are `at`, times a token's inputs.
fn four_dots(at: vec4u, token: u32, i: u32) -> vec4f {
  let v = load_inputs(token, i);
  return vec4f(block_dot(at.x + i, v), block_dot(at.y + i, v), block_dot(at.z + i, v), block_dot(at.w + i, v));
}

@compute @workgroup_size(gemv_threads)
fn matmul_gemv(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let slot_rows = 4u * gemv_threads / params.lanes;
  let row_groups = (params.n_rows + slot_rows - 1u) / slot_rows;
  let linear = wg.y * grid.x + wg.x;
  let token = linear / row_groups * 4u;
  if (token >= params.n_tokens) { return; }
  let n_here = min(4u, params.n_tokens - token);
  let lane = t % params.lanes;
  let row = linear % row_groups * slot_rows + t / params.lanes * 4u;
  let at = min(vec4u(row) + quad_bits, vec4u(params.n_rows - 1u)) * params.blocks;  // rows past the end repeat the last

  // The first token's sums stay in registers: usually there is no other.
  var sums = vec4f();
  for (var j = 1u; j < n_here; j++) { partials[j * gemv_threads + t] = vec4f(); }
  for (var i = lane; i < params.blocks; i += params.lanes) {
    for (var j = 0u; j < n_here; j++) {
      let dots = four_dots(at, token + j, i);
      if (j == 0u) {
        sums += dots;
      } else {
        partials[j * gemv_threads + t] += dots;
      }
    }
  }
  partials[t] = sums;

  workgroupBarrier();
  for (var half = params.lanes / 2u; half > 0u; half /= 2u) {
    if (lane < half) {
      for (var j = 0u; j < n_here; j++) { partials[j * gemv_threads + t] += partials[j * gemv_threads + t + half]; }
    }
    workgroupBarrier();
  }
  if (lane < 4u) {
    for (var j = 0u; j < n_here; j++) { store(token + j, row + lane, partials[j * gemv_threads + t - lane][lane]); }
  }
}

// ---- matmul_gemm ----
// A workgroup of (8, 8) threads makes a tile of 64 rows and gemm_tokens tokens, block by block: it decodes 64 blocks,
// stages as many inputs, and multiplies them. Thread (x, y) has row quads y and y + 8 and every 8th token from x, so
// that it reads 4x4 matrices whose neighbours its neighbours read.
// Limit: arithmetic. Per weight 1 / gemm_tokens decodings (about 5 operations) per multiplication, and per 128
// multiplications 12 reads of 16 bytes from workgroup memory (gemm_tokens = 32), or 256 per 16 (64).
// Dispatch: ceil(n_rows / 64) * ceil(n_tokens / gemm_tokens) workgroups, folded over x and y; token tiles of the same rows
// follow each other.

override gemm_tokens: u32 = 32u;  // 32 or 64

var<workgroup> w_tile: array<vec4f, 512>;              // (32 columns, 16 row quads): 4 rows of a column
var<workgroup> x_tile: array<vec4f, 8 * gemm_tokens>;  // (8 quads, tokens): 4 columns of a token, see x_place

/// Spreads what 8 threads write, and what 8 threads read, over all banks.
fn x_place(quad: u32, token: u32) -> u32 {
  return quad * gemm_tokens + (token ^ quad);
}

/// Decodes quads p and 4 + p of block i of 4 rows.
fn stage_weights(row_quad: u32, p: u32, at: vec4u) {
  var low: mat4x4f;
  var high: mat4x4f;
  if (is_float) {
    low = mat4x4f(float_quad(at.x, p), float_quad(at.y, p), float_quad(at.z, p), float_quad(at.w, p));
    high = mat4x4f(
      float_quad(at.x, p + 4u), float_quad(at.y, p + 4u), float_quad(at.z, p + 4u), float_quad(at.w, p + 4u));
  } else {
    let levels_0 = block_levels(at.x);
    let levels_1 = block_levels(at.y);
    let levels_2 = block_levels(at.z);
    let levels_3 = block_levels(at.w);
    let scale_0 = block_scales(at.x);
    let scale_1 = block_scales(at.y);
    let scale_2 = block_scales(at.z);
    let scale_3 = block_scales(at.w);
    low = mat4x4f(
      to_floats(levels_0.low[p]) * scale_0.x + scale_0.y, to_floats(levels_1.low[p]) * scale_1.x + scale_1.y,
      to_floats(levels_2.low[p]) * scale_2.x + scale_2.y, to_floats(levels_3.low[p]) * scale_3.x + scale_3.y);
    high = mat4x4f(
      to_floats(levels_0.high[p]) * scale_0.z + scale_0.w, to_floats(levels_1.high[p]) * scale_1.z + scale_1.w,
      to_floats(levels_2.high[p]) * scale_2.z + scale_2.w, to_floats(levels_3.high[p]) * scale_3.z + scale_3.w);
  }
  low = transpose(low);
  high = transpose(high);
  let to = 4u * p * 16u + row_quad;
  w_tile[to] = low[0];
  w_tile[to + 16u] = low[1];
  w_tile[to + 32u] = low[2];
  w_tile[to + 48u] = low[3];
  w_tile[to + 256u] = high[0];
  w_tile[to + 272u] = high[1];
  w_tile[to + 288u] = high[2];
  w_tile[to + 304u] = high[3];
}

/// Columns 4 quad .. of a row quad, a matrix of (4 columns, 4 rows).
fn w_matrix(quad: u32, row_quad: u32) -> mat4x4f {
  let at = 64u * quad + row_quad;
  return mat4x4f(w_tile[at], w_tile[at + 16u], w_tile[at + 32u], w_tile[at + 48u]);
}

/// The same columns of every 8th token, (4 tokens, 4 columns).
fn x_matrix(quad: u32, token: u32) -> mat4x4f {
  return mat4x4f(
    x_tile[x_place(quad, token)], x_tile[x_place(quad, token + 8u)],
    x_tile[x_place(quad, token + 16u)], x_tile[x_place(quad, token + 24u)]);
}

fn store_matrix(token: u32, row: u32, sums: mat4x4f) {
  for (var i = 0u; i < 4u; i++) {
    store(token, row + i, sums[0][i]);
    store(token + 8u, row + i, sums[1][i]);
    store(token + 16u, row + i, sums[2][i]);
    store(token + 24u, row + i, sums[3][i]);
  }
}

@compute @workgroup_size(8, 8)
fn matmul_gemm(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_id) thread: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let token_tiles = (params.n_tokens + gemm_tokens - 1u) / gemm_tokens;
  let linear = wg.y * grid.x + wg.x;
  let first_row = linear / token_tiles * 64u;
  let first_token = linear % token_tiles * gemm_tokens;
  if (first_row >= params.n_rows) { return; }

  // What this thread stages: quads t / 16 and t / 16 + 4 of 4 rows; quad t % 8 of every 8th token from t / 8.
  let row_quad = t % 16u;
  let rows = min(vec4u(first_row + 4u * row_quad) + quad_bits, vec4u(params.n_rows - 1u)) * params.blocks;

  var sums_00 = mat4x4f();  // row quad y, tokens x, x + 8, x + 16, x + 24
  var sums_10 = mat4x4f();  // row quad y + 8
  var sums_01 = mat4x4f();  // tokens x + 32 ..
  var sums_11 = mat4x4f();
  for (var i = 0u; i < params.blocks; i++) {
    workgroupBarrier();
    stage_weights(row_quad, t / 16u, rows + i);
    for (var token = t / 8u; token < gemm_tokens; token += 8u) {
      let row = min(first_token + token, params.n_tokens - 1u);
      x_tile[x_place(t % 8u, token)] = x[(row * params.blocks + i) * 8u + t % 8u];
    }
    workgroupBarrier();
    for (var quad = 0u; quad < 8u; quad++) {
      let w_0 = w_matrix(quad, thread.y);
      let w_1 = w_matrix(quad, thread.y + 8u);
      let x_0 = x_matrix(quad, thread.x);
      sums_00 += w_0 * x_0;
      sums_10 += w_1 * x_0;
      if (gemm_tokens > 32u) {
        let x_1 = x_matrix(quad, thread.x + 32u);
        sums_01 += w_0 * x_1;
        sums_11 += w_1 * x_1;
      }
    }
  }

  let token = first_token + thread.x;
  let row = first_row + 4u * thread.y;
  store_matrix(token, row, sums_00);
  store_matrix(token, row + 32u, sums_10);
  if (gemm_tokens > 32u) {
    store_matrix(token + 32u, row, sums_01);
    store_matrix(token + 32u, row + 32u, sums_11);
  }
}
