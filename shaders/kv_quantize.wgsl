// kv_quantize: codes pages that have left the window, K and V of every KV head of one layer.
//   jobs        (n_jobs, 2)                             hot slot, cold slot
//   k_pages     (slots, n_kv_heads, head_dim, 32)       f32, or f16 pairs of neighbouring tokens
//   v_pages     (slots, n_kv_heads, 32, head_dim)       f32, or f16 pairs of neighbouring dims
//   cold_pages  (cold slots, n_kv_heads, 2)             halves: of K, of V
// A half, in words (wasm/kv/page_codec.h has the format and where it comes from: SKVQ, arXiv:2405.06219, and for K KIVI,
// arXiv:2402.02750):
//   f32 scale, 3 zeros; lo and step, E4M3 times scale, one byte each: of K (head_dim), a range for each channel; of V
//   (head_dim / range_channels, 32), one for each token and group of channels;
//   codes (head_dim, 32), `cold_bits` words a channel: field f of byte b of word w is token 4 * (f * cold_bits + w) + b
// element = (lo + step * code) * scale. lo and step are rounded outward. Of five parts of a range from all of it down to
// `clip`, cut off evenly at both ends, the one is taken that leaves the least squared error.
// Numerics: a quotient may be 2.5 ulp off, so a step that is a millionth above an E4M3 number counts as that number, and
// a code whose element lies midway may be its neighbour.
// Dispatch (2 * n_kv_heads, n_jobs): a workgroup per half.  Reference: test/reference/page-codec.ts

override head_dim: u32 = 64;       // multiple of 8, at most 256
override page_f16: bool = true;    // false: f32 pages
override cold_bits: u32 = 4;       // 8, 4 or 2
override range_channels: u32 = 64; // channels of V that share a token's range; a multiple of 8
override clip: f32 = 1.0;          // the least part of a range that is kept, above 0
override value_ranges: u32 = head_dim / range_channels * 32;
override most_ranges: u32 = max(head_dim, value_ranges);
override wg_size: u32 = 64;

const clip_steps = 4;
const nearly_one = 0.999999;

struct Params { n_kv_heads: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> jobs: array<vec2u>;
@group(0) @binding(2) var<storage, read> k_pages: array<u32>;
@group(0) @binding(3) var<storage, read> v_pages: array<u32>;
@group(0) @binding(4) var<storage, read_write> cold_pages: array<u32>;

var<workgroup> most: array<f32, wg_size>;
var<workgroup> lows: array<f32, most_ranges>;   // unscaled
var<workgroup> steps: array<f32, most_ranges>;

/// Channel c of a token; `at` counts elements.
fn element(is_k: bool, at: u32, c: u32, token: u32) -> f32 {
  let i = at + select(token * head_dim + c, c * 32u + token, is_k);
  var word = 0u;
  if (page_f16) {
    if (is_k) { word = k_pages[i / 2u]; } else { word = v_pages[i / 2u]; }
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, i % 2u == 1u);
  }
  if (is_k) { word = k_pages[i]; } else { word = v_pages[i]; }
  return bitcast<f32>(word);
}

/// Distance of neighbouring E4M3 numbers at |x|, and 1 / it: both powers of two, so scaling by them is exact.
fn spacing(x: f32) -> vec2f {
  let power = max(bitcast<u32>(x) & 0x7f800000u, 121u << 23u);  // 2^-6 at least
  let distance = power - (3u << 23u);
  return vec2f(bitcast<f32>(distance), bitcast<f32>((254u << 23u) - distance));
}

fn e4m3_floor(x: f32) -> f32 {
  let s = spacing(x);
  return floor(x * s.y) * s.x;
}

fn e4m3_ceil(x: f32) -> f32 {
  let s = spacing(x);
  return ceil(x * s.y) * s.x;
}

/// The 8 bits of an E4M3 number.
fn e4m3_bits(x: f32) -> u32 {
  let magnitude = bitcast<u32>(abs(x));
  let normal = (magnitude >> 20u) - (120u << 3u);
  let bits = select(normal, u32(abs(x) * 512.0), abs(x) < 0.015625);
  return bits | select(0u, 128u, x < 0.0);
}

fn code_of(x: f32, lo: f32, step: f32) -> f32 {
  let top = f32((1u << cold_bits) - 1u);
  return clamp(round((x - lo) / select(step, 1.0, step == 0.0)), 0.0, top);
}

/// The least power of two that brings a magnitude to at most 448 = 1.75 * 2^8.
fn scale_for(magnitude: f32) -> f32 {
  let bits = bitcast<u32>(magnitude);
  if (magnitude == 0.0) { return 1.0; }
  let exponent = i32(bits >> 23u) - 127 - 8 + select(0, 1, (bits & 0x7fffffu) >= 0x600000u);
  return bitcast<f32>(u32(max(exponent, -100) + 127) << 23u);
}

/// Element j of a range: of K token j of a channel, of V channel j of a token's group.
fn range_element(is_k: bool, at: u32, range: u32, j: u32) -> f32 {
  if (is_k) { return element(true, at, range, j); }
  return element(false, at, range / 32u * range_channels + j, range % 32u);
}

/// lo and step of a range, the elements times `inverse`.
fn best_range(is_k: bool, at: u32, range: u32, inverse: f32) -> vec2f {
  let n = select(range_channels, 32u, is_k);
  let top = f32((1u << cold_bits) - 1u);
  var least = range_element(is_k, at, range, 0u);
  var largest = least;
  for (var j = 1u; j < n; j++) {
    let x = range_element(is_k, at, range, j);
    least = min(least, x);
    largest = max(largest, x);
  }
  least *= inverse;
  largest *= inverse;
  var best = vec2f();
  var best_error = 3.0e38;
  for (var i = 0; i <= clip_steps; i++) {
    let end = (largest - least) * ((1.0 - clip) * f32(i) / f32(2 * clip_steps));
    let lo = e4m3_floor(least + end);
    let step = e4m3_ceil((largest - end - lo) / top * nearly_one);
    var error = 0.0;
    for (var j = 0u; j < n; j++) {
      let x = range_element(is_k, at, range, j) * inverse;
      let e = lo + step * code_of(x, lo, step) - x;
      error += e * e;
    }
    if (error < best_error) {
      best_error = error;
      best = vec2f(lo, step);
    }
    if (clip == 1.0) { break; }
  }
  return best;
}

@compute @workgroup_size(wg_size)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) t: u32) {
  let job = jobs[wg.y];
  let kv_head = wg.x / 2u;
  let is_k = wg.x % 2u == 0u;
  let at = (job.x * params.n_kv_heads + kv_head) * 32u * head_dim;

  var mine = 0.0;
  for (var i = t; i < 32u * head_dim; i += wg_size) {
    mine = max(mine, abs(element(is_k, at, i / 32u, i % 32u)));
  }
  most[t] = mine;
  workgroupBarrier();
  var magnitude = 0.0;
  for (var i = 0u; i < wg_size; i++) { magnitude = max(magnitude, most[i]); }
  let scale = scale_for(magnitude);
  let inverse = bitcast<f32>((254u << 23u) - bitcast<u32>(scale));

  let n_ranges = select(value_ranges, head_dim, is_k);
  for (var i = t; i < n_ranges; i += wg_size) {
    let range = best_range(is_k, at, i, inverse);
    lows[i] = range.x;
    steps[i] = range.y;
  }
  workgroupBarrier();

  let key_words = 4u + head_dim / 2u + head_dim * cold_bits;
  let value_words = 4u + value_ranges / 2u + head_dim * cold_bits;
  let page = (job.y * params.n_kv_heads + kv_head) * (key_words + value_words);
  let out = page + select(key_words, 0u, is_k);
  if (t < 4u) { cold_pages[out + t] = select(0u, bitcast<u32>(scale), t == 0u); }
  for (var i = t; i < n_ranges / 4u; i += wg_size) {
    var low_word = 0u;
    var step_word = 0u;
    for (var b = 0u; b < 4u; b++) {
      low_word |= e4m3_bits(lows[4u * i + b]) << (8u * b);
      step_word |= e4m3_bits(steps[4u * i + b]) << (8u * b);
    }
    cold_pages[out + 4u + i] = low_word;
    cold_pages[out + 4u + n_ranges / 4u + i] = step_word;
  }
  for (var i = t; i < head_dim * cold_bits; i += wg_size) {
    let c = i / cold_bits;
    var word = 0u;
    for (var f = 0u; f < 8u / cold_bits; f++) {
      for (var b = 0u; b < 4u; b++) {
        let token = 4u * (f * cold_bits + i % cold_bits) + b;
        let range = select(c / range_channels * 32u + token, c, is_k);
        let x = element(is_k, at, c, token) * inverse;
        word |= u32(code_of(x, lows[range], steps[range])) << (8u * b + cold_bits * f);
      }
    }
    cold_pages[out + 4u + n_ranges / 2u + i] = word;
  }
}
