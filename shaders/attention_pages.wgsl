// attention_pages: what attention_prefill and attention_decode share, which it precedes (kernels.ts joins the files), after
// page_codes: arguments, and reading K and V from pages of any format.
//   q           (n_tokens, n_heads, head_dim)           f32, row-major, after RoPE
//   k_pages     (slots, n_kv_heads, head_dim, 32)       f32, or f16 pairs of neighbouring tokens
//   v_pages     (slots, n_kv_heads, 32, head_dim)       f32, or f16 pairs of neighbouring dims
//   cold_pages  (cold slots, n_kv_heads, 2)             quantized K and V halves; see kv_quantize.wgsl
//   page_table  (n_pages)                               physical slot of each logical page; high bit: among the cold ones
//   selection   (start, end) of each row, then pages, then optional masks; row = kv_head * n_blocks + block, or block
//   out         (partials, n_tokens, n_heads, head_dim) f32, normalised
//   lse         (partials, n_tokens, n_heads)           log2 of the sum of 2^x; -1e30 where nothing was read
// GQA: query head h reads KV head h / group, group = n_heads / n_kv_heads.

override quads: u32 = head_dim / 4;

const page_tokens = 32u;
const cold = 0x80000000u;  // set in the slot, and in the start, of a quantized page
const masked = -3.0e38;   // score of a key that is not read: 2^(masked - m) is 0 for every m
const nothing = -1.0e30;  // maximum over no keys: above `masked`, below every real score
const tiny = 1.0e-30;     // below every non-empty sum
const log2_e = 1.4426950408889634;

struct Params {
  n_tokens: u32,
  q_start: u32,      // position of query 0
  block_size: u32,   // queries per block; 1 in decode
  n_blocks: u32,
  n_heads: u32,
  n_kv_heads: u32,
  tiles: u32,        // workgroups of one block, KV head and split
  head_shared: u32,  // 1: the selection has one row per block, for all KV heads
  pages_at: u32,     // index of the first page id in `selection`
  masks_at: u32,     // index of the first mask; 0 = no masks
  n_splits: u32,
  first_partial: u32,
  scale: f32,
  softcap: f32,      // x <- softcap * tanh(x / softcap); 0 = none
  window: u32,       // a key is read while query - key < window; 0 = no window
  causal: u32,       // 1: page p holds positions 32p.., and later keys than the query are not read
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4f>;
@group(0) @binding(2) var<storage, read> k_pages: array<vec2u>;
@group(0) @binding(3) var<storage, read> v_pages: array<vec2u>;
@group(0) @binding(4) var<storage, read> page_table: array<u32>;
@group(0) @binding(5) var<storage, read> selection: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;
@group(0) @binding(8) var<storage, read> cold_pages: array<u32>;  // any buffer where cold_bits is 0

/// Quad `i` of the K or V buffer, in units of 4 elements.
fn k_quad(i: u32) -> vec4f {
  if (page_f16) {
    let w = k_pages[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(k_pages[2u * i], k_pages[2u * i + 1u]));
}

fn v_quad(i: u32) -> vec4f {
  if (page_f16) {
    let w = v_pages[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(v_pages[2u * i], v_pages[2u * i + 1u]));
}

/// Where a logical page starts: its first quad in K and in V, or, with the high bit set, its first word among cold pages.
fn page_start(page: u32, kv_head: u32) -> u32 {
  let slot = page_table[page];
  if (cold_bits != 0u && slot >= cold) {
    return cold | (((slot & ~cold) * params.n_kv_heads + kv_head) * cold_words);
  }
  return (slot * params.n_kv_heads + kv_head) * quads * page_tokens;
}

/// Dims 4d..4d+3 (columns) of keys 4x..4x+3.
fn key_matrix(start: u32, d: u32, x: u32) -> mat4x4f {
  if (cold_bits != 0u && start >= cold) { return cold_keys(start & ~cold, 4u * d, x); }
  let at = start + d * page_tokens + x;
  return mat4x4f(k_quad(at), k_quad(at + 8u), k_quad(at + 16u), k_quad(at + 24u));
}

/// Values of keys 4j..4j+3 (columns), dims 4 * column...
fn value_matrix(start: u32, j: u32, column: u32) -> mat4x4f {
  if (cold_bits != 0u && start >= cold) {
    return transpose(cold_values(start & ~cold, 4u * column, j));
  }
  let at = start + j * 4u * quads + column;
  return mat4x4f(v_quad(at), v_quad(at + quads), v_quad(at + 2u * quads), v_quad(at + 3u * quads));
}

/// Dot products to base-2 logits. tanh(y) = 1 - 2 / (e^2y + 1), whose error is absolute, as WGSL's tanh is not.
fn to_logits(dots: vec4f) -> vec4f {
  var x = dots * params.scale;
  if (params.softcap > 0.0) {
    let y = min(x / params.softcap, vec4f(20.0));
    x = params.softcap * (1.0 - 2.0 / (exp(2.0 * y) + 1.0));
  }
  return x * log2_e;
}
