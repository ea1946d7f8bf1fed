// cluster_logits: scores of queries against the centroids of a pinned prompt's keys (Squeezed Attention, Hooper et al. 2024,
// arXiv:2411.09688, eq. 2; algorithms.md B.3).
//   q          (n_tokens, n_heads, head_dim)                   f32, row-major, after RoPE
//   centroids  (n_tiles, head_dim, 32)                         f32; 32 entries a tile, n_tiles = n_entries / 32
//   index      tiles (n_kv_heads + 1): KV head h has tiles [tiles[h], tiles[h + 1]); counts (n_entries): keys of an entry,
//              0 = it is not there; spreads (n_entries): bits of an f32, variance of an entry's keys; ...; see gpu-clusters.ts
//   gate       (all blocks, gate_entries)                      cluster_scores of the coarse entries
//   logits     (blocks, row_quads, n_entries)                  scale q·centroid + spread_weight scale² |q|² spread of 4 query rows of an entry; -3e38 where the entry is not there
// GQA: query head h reads KV head h / group, group = n_heads / n_kv_heads. The rows of a block are (token, head of the
// group), in fours; those past its end repeat the last.
//
// An invocation scores 4 neighbouring entries for 4 rows: a 4x4 matrix product in registers, 8 neighbouring threads reading
// neighbouring words. Where none of its entries is there it reads no centroid: with a gate, whole coarse clusters are skipped.
// f32 throughout.
// Dispatch: n_blocks * row_quads * n_entries / 4 invocations, folded over x and y.
// Reference: test/reference/clustering.ts

override head_dim: u32 = 64;  // multiple of 8
override wg_size: u32 = 64;
override quads: u32 = head_dim / 4;

const spread_weight = 0.25;  // kSpreadWeight of wasm/cluster/score.h
const masked = -3.0e38;  // exp(masked - m) is 0 for every m

struct Params {
  n_tokens: u32,
  block_size: u32,      // queries per block; the last of all blocks may be shorter
  n_heads: u32,
  n_kv_heads: u32,
  n_entries: u32,       // of all KV heads, each filled up to whole tiles
  row_quads: u32,       // ceil(block_size * group / 4)
  first_block: u32,     // of this dispatch
  n_blocks: u32,        // of this dispatch
  gate_entries: u32,    // 0 = no gate
  gate_threshold: f32,  // an entry is there if its coarse entry's estimate is above it
  scale: f32,
  softcap: f32,         // x <- softcap * tanh(x / softcap); 0 = none
  counts_at: u32,       // index of the first count in `index`
  spreads_at: u32,      // of the first spread
  parents_at: u32,      // and of the first parent (n_entries): coarse entry of each entry, none for those that always are there
}

const no_parent = 0xffffffffu;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4f>;
@group(0) @binding(2) var<storage, read> centroids: array<vec4f>;
@group(0) @binding(3) var<storage, read> index: array<u32>;
@group(0) @binding(4) var<storage, read> gate: array<f32>;  // any buffer where gate_entries is 0
@group(0) @binding(5) var<storage, read_write> logits: array<vec4f>;

fn is_there(entry: u32, block: u32) -> bool {
  if (index[params.counts_at + entry] == 0u) { return false; }
  if (params.gate_entries == 0u) { return true; }
  let parent = index[params.parents_at + entry];
  return parent == no_parent || gate[block * params.gate_entries + parent] > params.gate_threshold;
}

/// tanh(y) = 1 - 2 / (e^2y + 1), whose error is absolute, as WGSL's tanh is not.
fn to_logits(x: vec4f) -> vec4f {
  if (params.softcap == 0.0) { return x; }
  let y = min(x / params.softcap, vec4f(20.0));
  return params.softcap * (1.0 - 2.0 / (exp(2.0 * y) + 1.0));
}

/// Keeps the columns whose entry is there.
fn keep(rows: vec4f, there: bool) -> vec4f {
  return select(vec4f(masked), rows, there);
}

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let i = id.y * grid.x * wg_size + id.x;
  let entry_quads = params.n_entries / 4u;
  let entry = 4u * (i % entry_quads);
  let block_and_quad = i / entry_quads;
  if (block_and_quad >= params.n_blocks * params.row_quads) { return; }
  let row_quad = block_and_quad % params.row_quads;
  let block = params.first_block + block_and_quad / params.row_quads;

  let there = vec4<bool>(
    is_there(entry, block), is_there(entry + 1u, block), is_there(entry + 2u, block), is_there(entry + 3u, block));
  let tile = entry / 32u;
  var kv_head = 0u;
  while (index[kv_head + 1u] <= tile) { kv_head++; }
  let group = params.n_heads / params.n_kv_heads;
  let block_token = block * params.block_size;
  let n_rows = min(params.block_size, params.n_tokens - block_token) * group;
  let row = min(vec4u(4u * row_quad) + vec4u(0u, 1u, 2u, 3u), vec4u(n_rows - 1u));
  let q_at = ((block_token + row / group) * params.n_heads + kv_head * group + row % group) * quads;
  var dots = mat4x4f();  // columns: rows; of each, 4 entries
  var squares = vec4f(0.0);
  let n_dims = select(0u, quads, any(there));
  for (var d = 0u; d < n_dims; d++) {
    let at = (tile * quads + d) * 32u + entry % 32u / 4u;
    let keys = mat4x4f(centroids[at], centroids[at + 8u], centroids[at + 16u], centroids[at + 24u]);
    let rows = mat4x4f(q[q_at.x + d], q[q_at.y + d], q[q_at.z + d], q[q_at.w + d]);
    dots += keys * rows;
    squares += vec4f(dot(rows[0], rows[0]), dot(rows[1], rows[1]), dot(rows[2], rows[2]), dot(rows[3], rows[3]));
  }
  let at = params.spreads_at + entry;
  let spreads = bitcast<vec4f>(vec4u(index[at], index[at + 1u], index[at + 2u], index[at + 3u]));
  let widths = spread_weight * params.scale * params.scale * squares;
  let by_entry = transpose(mat4x4f(
    to_logits(dots[0] * params.scale + widths.x * spreads),
    to_logits(dots[1] * params.scale + widths.y * spreads),
    to_logits(dots[2] * params.scale + widths.z * spreads),
    to_logits(dots[3] * params.scale + widths.w * spreads)));
  let out = block_and_quad * params.n_entries + entry;
  logits[out] = keep(by_entry[0], there.x);
  logits[out + 1u] = keep(by_entry[1], there.y);
  logits[out + 2u] = keep(by_entry[2], there.z);
  logits[out + 3u] = keep(by_entry[3], there.w);
}
