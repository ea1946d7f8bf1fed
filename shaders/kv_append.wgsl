// kv_append: writes the keys and values of new tokens into their pages.
//   k, v              (n_tokens, n_kv_heads, head_dim)      f32, row-major; keys after RoPE
//   page_table        (n_pages)                             physical slot of each logical page
//   k_pages           (slots, n_kv_heads, head_dim, 32)     transposed: neighbouring words are neighbouring tokens
//   v_pages           (slots, n_kv_heads, 32, head_dim)     rows
// A word of a page is one f32, or two f16 (low half first): K pairs neighbouring tokens, V neighbouring dims.
// One invocation owns the 2 tokens x 2 dims that share words, so an append that starts or ends inside a pair
// keeps the other half of a K word and no two invocations write the same word.
// f16 rounds to nearest even and saturates at +-65504, so that a page never holds an infinity.
// Dispatch: token pairs x n_kv_heads x head_dim / 2 invocations, folded over x and y.
// Reference: test/reference/paged-attention.ts

override head_dim: u32 = 64;     // multiple of 8, at most 256
override page_f16: bool = true;  // false: f32 pages
override wg_size: u32 = 64;

const page_tokens = 32u;

struct Params {
  n_tokens: u32,
  pos: u32,         // position of the first new token
  n_kv_heads: u32,
  n_pairs: u32,     // pairs of positions (2i, 2i + 1) that hold at least one new token
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<vec2f>;
@group(0) @binding(2) var<storage, read> v: array<vec2f>;
@group(0) @binding(3) var<storage, read> page_table: array<u32>;
@group(0) @binding(4) var<storage, read_write> k_pages: array<u32>;
@group(0) @binding(5) var<storage, read_write> v_pages: array<u32>;

fn pack(low: f32, high: f32) -> u32 {
  return pack2x16float(clamp(vec2f(low, high), vec2f(-65504.0), vec2f(65504.0)));
}

/// Writes tokens 2i and 2i + 1 of one dim of K; `word` counts words of the page's slot and head.
fn write_k(at: u32, dim: u32, slot_token: u32, fresh: vec2<bool>, x: vec2f) {
  if (page_f16) {
    let word = at / 2u + (dim * page_tokens + slot_token) / 2u;
    let old = k_pages[word];
    let new_word = pack(x.x, x.y);
    let low = select(old, new_word, fresh.x) & 0xffffu;
    let high = select(old, new_word, fresh.y) & 0xffff0000u;
    k_pages[word] = low | high;
  } else {
    let word = at + dim * page_tokens + slot_token;
    if (fresh.x) { k_pages[word] = bitcast<u32>(x.x); }
    if (fresh.y) { k_pages[word + 1u] = bitcast<u32>(x.y); }
  }
}

/// Writes dims 2j and 2j + 1 of one token of V.
fn write_v(at: u32, dim: u32, slot_token: u32, x: vec2f) {
  let element = at + slot_token * head_dim + dim;
  if (page_f16) {
    v_pages[element / 2u] = pack(x.x, x.y);
  } else {
    v_pages[element] = bitcast<u32>(x.x);
    v_pages[element + 1u] = bitcast<u32>(x.y);
  }
}

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let dim_pairs = head_dim / 2u;
  let linear = id.y * grid.x * wg_size + id.x;
  let dim_pair = linear % dim_pairs;
  let kv_head = linear / dim_pairs % params.n_kv_heads;
  let pair = linear / dim_pairs / params.n_kv_heads;
  if (pair >= params.n_pairs) { return; }

  let token = (params.pos / 2u + pair) * 2u;  // absolute position of the pair's first token
  let end = params.pos + params.n_tokens;
  let fresh = vec2<bool>(token >= params.pos, token + 1u < end);

  // Rows of the two tokens; a row that is not new is read from its neighbour and then not used.
  let row_0 = select(token + 1u, token, fresh.x) - params.pos;
  let row_1 = select(token, token + 1u, fresh.y) - params.pos;
  let from_0 = (row_0 * params.n_kv_heads + kv_head) * dim_pairs + dim_pair;
  let from_1 = (row_1 * params.n_kv_heads + kv_head) * dim_pairs + dim_pair;

  let slot = page_table[token / page_tokens];
  let slot_token = token % page_tokens;
  let at = (slot * params.n_kv_heads + kv_head) * page_tokens * head_dim;
  let dim = dim_pair * 2u;

  let k_0 = k[from_0];
  let k_1 = k[from_1];
  write_k(at, dim, slot_token, fresh, vec2f(k_0.x, k_1.x));
  write_k(at, dim + 1u, slot_token, fresh, vec2f(k_0.y, k_1.y));
  if (fresh.x) { write_v(at, dim, slot_token, v[from_0]); }
  if (fresh.y) { write_v(at, dim, slot_token + 1u, v[from_1]); }
}
