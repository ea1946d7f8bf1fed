// rope: rotates pairs of dimensions of every head by their position's angle, in place (RoPE, Su et al. 2021,
// arXiv:2104.09864, sec. 3.4.2).
//   angles  (n_tokens, n_rot / 2)            f32 pairs (cos, sin)
//   x       (n_tokens, n_heads, head_dim)    f32; dimensions from n_rot on stay as they are
// Pairs are (2i, 2i + 1), ggml's NORM, or (i, i + n_rot / 2), its NEOX.
// Dispatch: n_tokens * n_heads * n_rot / 2 invocations, folded over x and y.  Reference: test/reference/rope.ts

override wg_size: u32 = 64;

struct Params {
  n_tokens: u32,
  n_heads: u32,
  head_dim: u32,
  n_rot: u32,   // rotated dimensions of a head, even
  halves: u32,  // 1: pairs (i, i + n_rot / 2)
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> angles: array<vec2f>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let linear = id.y * grid.x * wg_size + id.x;
  let pairs = params.n_rot / 2u;
  let pair = linear % pairs;
  let head = linear / pairs;  // of all tokens
  let token = head / params.n_heads;
  if (token >= params.n_tokens) { return; }
  let turn = angles[token * pairs + pair];
  let first = head * params.head_dim + select(2u * pair, pair, params.halves != 0u);
  let second = first + select(1u, pairs, params.halves != 0u);
  let a = x[first];
  let b = x[second];
  x[first] = a * turn.x - b * turn.y;
  x[second] = a * turn.y + b * turn.x;
}
