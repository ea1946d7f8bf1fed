// attention_sample: how much attention sampled queries pay to each page, for policies that look before they choose.
// Arguments: attention_pages.wgsl, of which this reads q, k_pages, page_table and cold_pages. Beside them
//   selection   (n_blocks)                      the sampled rows: tokens of the call
//   lse         (n_blocks, n_heads, tiles)      log2 of the sum of 2^x over the keys of a page that the query sees,
//                                               -1e30 where it sees none; tiles = pages up to the call's last token
// GQA: query head h reads KV head h / group, group = n_heads / n_kv_heads.
//
// One workgroup: 8 pages, one sampled row, one KV head. Thread (x, y) scores keys 4x..4x+3 of the y-th page.
// Dispatch ceil(tiles / 8) * n_blocks * n_kv_heads workgroups, folded over x and y.
// Reference: test/reference/attention-probabilities.ts

var<workgroup> parts: array<vec2f, 64>;  // per thread: maximum, and sum of 2^(x - maximum)

fn is_visible(key: u32, query: u32) -> bool {
  return key <= query && (params.window == 0u || query - key < params.window);
}

@compute @workgroup_size(8, 8)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_id) thread: vec3u,
) {
  let x = thread.x;
  let y = thread.y;
  let page_groups = (params.tiles + 7u) / 8u;
  let linear = wg.y * grid.x + wg.x;
  let row_and_head = linear / page_groups;
  let row = row_and_head / params.n_kv_heads;
  let kv_head = row_and_head % params.n_kv_heads;
  if (row >= params.n_blocks) { return; }
  let page = (linear % page_groups) * 8u + y;
  let token = selection[row];
  let query = params.q_start + token;
  let first = page * page_tokens + 4u * x;
  let is_there = page < params.tiles;
  let at = page_start(min(page, params.tiles - 1u), kv_head);
  let group = params.n_heads / params.n_kv_heads;
  for (var g = 0u; g < group; g++) {
    let head = kv_head * group + g;
    var m = nothing;
    var l = 0.0;
    if (is_there && first <= query) {
      var dots = vec4f(0.0);
      for (var d = 0u; d < quads; d++) {
        dots += key_matrix(at, d, x) * q[(token * params.n_heads + head) * quads + d];
      }
      let logits = to_logits(dots);
      for (var i = 0u; i < 4u; i++) {
        if (is_visible(first + i, query)) {
          let top = max(m, logits[i]);
          l = l * exp2(m - top) + exp2(logits[i] - top);
          m = top;
        }
      }
    }
    parts[8u * y + x] = vec2f(m, l);
    workgroupBarrier();
    if (x == 0u && is_there) {
      var top = nothing;
      for (var i = 0u; i < 8u; i++) { top = max(top, parts[8u * y + i].x); }
      var sum = 0.0;
      for (var i = 0u; i < 8u; i++) { sum += parts[8u * y + i].y * exp2(parts[8u * y + i].x - top); }
      lse[(row * params.n_heads + head) * params.tiles + page] = select(top + log2(max(sum, tiny)), nothing, sum == 0.0);
    }
    workgroupBarrier();
  }
}
