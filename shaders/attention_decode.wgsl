// attention_decode: exact softmax attention of single queries over the pages listed for each.
// Arguments: attention_pages.wgsl.
// Blocks have one query each: n_blocks = n_tokens, block_size = 1. GQA: query head h reads KV head h / group.
//
// One workgroup: `heads` query heads of one KV head, one query and one split of its page list. A round takes
// wg_size / 8 pages: first thread t scores keys 4 (t % 8).. of page t / 8 for all heads; then the threads
// change places, wg_size / quads of them sharing an output column, each adding every so-manieth quad of keys.
// Every byte of K and V is read once per workgroup, neighbouring threads reading neighbouring words.
//
// f32 throughout. Online softmax in base 2 as in attention_prefill; split over the page list after
// Flash-Decoding (Dao et al. 2023), merged by attention_merge.
// Dispatch (tiles * n_blocks * n_kv_heads folded over x and y, n_splits in z), tiles = ceil(group / heads).
// Reference: test/reference/paged-attention.ts

override heads: u32 = 4;          // query heads together: 1, 4 or 8
override wg_size: u32 = 64;       // multiple of 64, at most 256
override slices: u32 = wg_size / quads;      // threads that share an output column
override head_quads: u32 = (heads + 3) / 4;  // 1 or 2
override pages_per_round: u32 = wg_size / 8;

// Matrices hold 4 heads (columns of the WGSL type) of 4 neighbouring keys or dims; heads 4..7 follow as a second
// set. Vectors of 8 heads are two columns of a mat2x4.
var<workgroup> q_tile: array<mat4x4f, head_quads * quads>;
var<workgroup> p_tile: array<mat4x4f, head_quads * wg_size>;     // one quad of keys per thread; sums at the end
var<workgroup> per_thread: array<mat2x4f, wg_size + wg_size / 8>;
var<workgroup> page_at: array<u32, pages_per_round>;             // `page_start` of each page of the round
var<workgroup> quad_bits: array<u32, wg_size>;                   // which keys of each quad are read, where there are masks

/// The lowest n bits.
fn low_bits(n: u32) -> u32 {
  return select((1u << (n & 31u)) - 1u, 0xffffffffu, n >= 32u);
}

/// Which tokens of the page at position `base` may be read: bit t = token base + t.
fn visible(mask: u32, base: u32, query: u32) -> u32 {
  var bits = mask;
  if (params.causal != 0u) {
    let after = query + 1u;  // first position that is not seen
    bits &= low_bits(select(0u, after - base, after > base));
    if (params.window != 0u) {
      let start = base + params.window;
      bits &= ~low_bits(select(0u, after - start, after > start));
    }
  }
  return bits;
}

fn max_of(x: vec4f) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum_of(x: vec4f) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

/// One matrix of queries: dims 4i.. of heads 4 head_quad.. of this workgroup. Heads past the group repeat its last.
fn load_queries(head_quad: u32, i: u32, first_row: u32, n_here: u32) -> mat4x4f {
  let head = min(vec4u(4u * head_quad) + vec4u(0u, 1u, 2u, 3u), vec4u(n_here - 1u));
  let at = (first_row + head) * quads + i;
  return mat4x4f(q[at.x], q[at.y], q[at.z], q[at.w]);
}

/// Maxima of the rows of a score matrix.
fn row_max(s: mat4x4f) -> vec4f {
  return vec4f(max_of(s[0]), max_of(s[1]), max_of(s[2]), max_of(s[3]));
}

fn row_sum(s: mat4x4f) -> vec4f {
  return vec4f(sum_of(s[0]), sum_of(s[1]), sum_of(s[2]), sum_of(s[3]));
}

fn logits_of(dots: mat4x4f, bits: u32) -> mat4x4f {
  let is_kept = (vec4u(bits) & vec4u(1u, 2u, 4u, 8u)) != vec4u(0u);
  let none = vec4f(masked);
  return mat4x4f(
    select(none, to_logits(dots[0]), is_kept), select(none, to_logits(dots[1]), is_kept),
    select(none, to_logits(dots[2]), is_kept), select(none, to_logits(dots[3]), is_kept));
}

fn exp2_of(s: mat4x4f, m: vec4f) -> mat4x4f {
  return mat4x4f(exp2(s[0] - m.x), exp2(s[1] - m.y), exp2(s[2] - m.z), exp2(s[3] - m.w));
}

fn scale_rows(a: mat4x4f, f: vec4f) -> mat4x4f {
  return mat4x4f(a[0] * f.x, a[1] * f.y, a[2] * f.z, a[3] * f.w);
}

/// The first of the quads j, j + slices, ... below n that has a key to be read: the weights of the others are 0. Loops, here and
/// over dims, rather than branches: SwiftShader runs through what it branches around.
fn next_quad(j: u32, n: u32) -> u32 {
  var next = j;
  while (params.masks_at != 0u && next < n && quad_bits[next] == 0u) { next += slices; }
  return next;
}

@compute @workgroup_size(wg_size)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let linear = wg.y * grid.x + wg.x;
  let tile = linear % params.tiles;
  let block_and_head = linear / params.tiles;
  let kv_head = block_and_head / params.n_blocks;
  if (kv_head >= params.n_kv_heads) { return; }
  let token = block_and_head % params.n_blocks;
  let query = params.q_start + token;
  let group = params.n_heads / params.n_kv_heads;
  let n_here = min(heads, group - tile * heads);
  let first_row = token * params.n_heads + kv_head * group + tile * heads;

  for (var i = t; i < head_quads * quads; i += wg_size) {
    q_tile[i] = load_queries(i / quads, i % quads, first_row, n_here);
  }

  let list = select(kv_head * params.n_blocks + token, token, params.head_shared != 0u);
  let list_start = selection[2u * list];
  let list_length = selection[2u * list + 1u] - list_start;
  let start = list_start + list_length * wg.z / params.n_splits;
  let end = list_start + list_length * (wg.z + 1u) / params.n_splits;

  let column = t % quads;
  let slice = t / quads;  // >= slices: idle in the second half of a round
  var m = mat2x4f(vec4f(nothing), vec4f(nothing));  // running maxima
  var l = mat2x4f();                                // running sums over this thread's keys
  var acc_0 = mat4x4f();                            // heads 0..3, 4 dims from 4 * column
  var acc_1 = mat4x4f();                            // heads 4..7
  workgroupBarrier();  // the queries are there
  for (var round = start; round < end; round += pages_per_round) {
    // Scores: one page per 8 threads.
    let i = round + t / 8u;
    var bits = 0u;
    var dots_0 = mat4x4f();
    var dots_1 = mat4x4f();
    if (i < end) {
      let page = selection[params.pages_at + i];
      var mask = 0xffffffffu;
      if (params.masks_at != 0u) { mask = selection[params.masks_at + i]; }
      bits = (visible(mask, page * page_tokens, query) >> (4u * (t % 8u))) & 15u;
      let k_page = page_start(page, kv_head);
      let n_dims = select(0u, quads, bits != 0u);
      for (var d = 0u; d < n_dims; d++) {
        let keys = key_matrix(k_page, d, t % 8u);
        if (heads == 1u) {
          dots_0[0] += keys * q_tile[d][0];
        } else {
          dots_0 += keys * q_tile[d];
        }
        if (heads > 4u) { dots_1 += keys * q_tile[quads + d]; }
      }
    }
    let s_0 = logits_of(dots_0, bits);
    let s_1 = logits_of(dots_1, bits);

    // Maxima, in steps of 8 and pages_per_round. Every thread passes the first barrier after its last read of
    // page_at in the round before.
    per_thread[t] = mat2x4f(row_max(s_0), row_max(s_1));
    workgroupBarrier();
    if (t < pages_per_round) {
      var most = per_thread[t * 8u];
      for (var j = 1u; j < 8u; j++) {
        let other = per_thread[t * 8u + j];
        most = mat2x4f(max(most[0], other[0]), max(most[1], other[1]));
      }
      per_thread[wg_size + t] = most;
      if (round + t < end) { page_at[t] = page_start(selection[params.pages_at + round + t], kv_head); }
    }
    workgroupBarrier();
    var m_new = m;
    for (var j = 0u; j < pages_per_round; j++) {
      let other = per_thread[wg_size + j];
      m_new = mat2x4f(max(m_new[0], other[0]), max(m_new[1], other[1]));
    }
    let fade_0 = exp2(m[0] - m_new[0]);
    let fade_1 = exp2(m[1] - m_new[1]);
    m = m_new;
    let p_0 = exp2_of(s_0, m[0]);
    p_tile[t] = p_0;
    quad_bits[t] = bits;
    l[0] = l[0] * fade_0 + row_sum(p_0);
    if (heads > 4u) {
      let p_1 = exp2_of(s_1, m[1]);
      p_tile[wg_size + t] = p_1;
      l[1] = l[1] * fade_1 + row_sum(p_1);
    }
    workgroupBarrier();

    // Values: one column per thread, the keys dealt out in quads.
    if (slice < slices) {
      acc_0 = scale_rows(acc_0, fade_0);
      if (heads > 4u) { acc_1 = scale_rows(acc_1, fade_1); }
      let n_quads = min(pages_per_round, end - round) * 8u;
      for (var j = next_quad(slice, n_quads); j < n_quads; j = next_quad(j + slices, n_quads)) {
        let values = value_matrix(page_at[j / 8u], j % 8u, column);
        if (heads == 1u) {
          acc_0[0] += values * p_tile[j][0];
        } else {
          acc_0 += values * p_tile[j];
        }
        if (heads > 4u) { acc_1 += values * p_tile[wg_size + j]; }
      }
    }
  }

  // Sums over threads: l over all, acc over the slices of a column.
  workgroupBarrier();
  p_tile[t] = acc_0;
  if (heads > 4u) { p_tile[wg_size + t] = acc_1; }
  per_thread[t] = l;
  workgroupBarrier();
  if (t < pages_per_round) {
    var sum = per_thread[t * 8u];
    for (var j = 1u; j < 8u; j++) { sum += per_thread[t * 8u + j]; }
    per_thread[wg_size + t] = sum;
  }
  workgroupBarrier();
  // At least 1 where a key was read, else 0.
  var total = mat2x4f();
  for (var j = 0u; j < pages_per_round; j++) { total += per_thread[wg_size + j]; }

  let out_row = (params.first_partial + wg.z) * params.n_tokens * params.n_heads + first_row;
  for (var i = t; i < n_here * quads; i += wg_size) {
    let head = i / quads;
    var sum = vec4f(0.0);
    for (var j = 0u; j < slices; j++) { sum += p_tile[head / 4u * wg_size + j * quads + i % quads][head % 4u]; }
    out[(out_row + head) * quads + i % quads] = sum / max(total[head / 4u][head % 4u], tiny);
  }
  if (t < n_here) {
    lse[out_row + t] = m[t / 4u][t % 4u] + log2(max(total[t / 4u][t % 4u], tiny));
  }
}
