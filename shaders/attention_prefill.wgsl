// attention_prefill: exact softmax attention of blocks of queries over the pages listed for each block.
// Arguments: attention_pages.wgsl.
// GQA: query head h reads KV head h / group, group = n_heads / n_kv_heads. The rows of a tile are
// (token, head of the group), so that all heads of the group read a page together.
//
// One workgroup: a tile of 4 * row_groups rows of one KV head, one block and one split of its page list.
// Thread (x, y) scores rows 4y..4y+3 against keys 4x..4x+3 of a page, and owns for the same rows the
// output columns 4x..4x+3, 4x+32.., 4x+64...: both products are then 4x4 matrix products in registers.
// K and V come straight from the page, 8 neighbouring threads reading neighbouring words.
//
// f32 throughout. Online softmax in base 2: Milakov & Gimelshein 2018, arXiv:1805.02867; tiling after
// FlashAttention-2, Dao 2023, arXiv:2307.08691. Infinities are never formed: see `masked` and `nothing`.
// Dispatch (tiles * n_blocks * n_kv_heads folded over x and y, n_splits in z).
// Reference: test/reference/paged-attention.ts

override row_groups: u32 = 8;     // the workgroup is (8, row_groups)
override stage_q: bool = false;   // true: the tile's queries are kept in workgroup memory
override columns: u32 = (quads + 7) / 8;  // output quads of one thread
override staged: u32 = select(1u, row_groups * quads, stage_q);

const lanes = vec4u(0u, 1u, 2u, 3u);

// Matrices hold 4 rows (columns of the WGSL type) of 4 neighbouring keys or dims.
var<workgroup> q_tile: array<mat4x4f, staged>;           // (row_groups, quads)
var<workgroup> p_tile: array<mat4x4f, 8 * row_groups>;   // (row_groups, quads of keys)
var<workgroup> per_thread: array<vec4f, 8 * row_groups>; // (row_groups, 8): one number per row

/// The lowest n bits.
fn low_bits(n: vec4u) -> vec4u {
  return select((vec4u(1u) << (n & vec4u(31u))) - 1u, vec4u(0xffffffffu), n >= vec4u(32u));
}

/// For 4 queries, which tokens of the page at position `base` may be read: bit t = token base + t.
fn visible(mask: u32, base: u32, query: vec4u) -> vec4u {
  var bits = vec4u(mask);
  if (params.causal != 0u) {
    let after = query + 1u;  // first position that is not seen
    bits &= low_bits(select(vec4u(0u), after - base, after > vec4u(base)));
    if (params.window != 0u) {
      let start = vec4u(base + params.window);
      bits &= ~low_bits(select(vec4u(0u), after - start, after > start));
    }
  }
  return bits;
}

fn keep(x: vec4f, bits: u32) -> vec4f {
  return select(vec4f(masked), x, (vec4u(bits) & vec4u(1u, 2u, 4u, 8u)) != vec4u(0u));
}

fn max_of(x: vec4f) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum_of(x: vec4f) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

/// A column's accumulator after one more page: acc * fade + p * V, for the rows of thread row y.
fn add_page(acc: mat4x4f, fade: vec4f, at: u32, column: u32, y: u32) -> mat4x4f {
  var sum = mat4x4f(acc[0] * fade.x, acc[1] * fade.y, acc[2] * fade.z, acc[3] * fade.w);
  if (column < quads) {
    for (var j = 0u; j < 8u; j++) {
      sum += value_matrix(at, j, column) * p_tile[y * 8u + j];
    }
  }
  return sum;
}

/// Writes a column of the first n rows.
fn store(acc: mat4x4f, inverse: vec4f, row: vec4u, n: u32, column: u32) {
  if (column >= quads) { return; }
  if (n > 0u) { out[row.x * quads + column] = acc[0] * inverse.x; }
  if (n > 1u) { out[row.y * quads + column] = acc[1] * inverse.y; }
  if (n > 2u) { out[row.z * quads + column] = acc[2] * inverse.z; }
  if (n > 3u) { out[row.w * quads + column] = acc[3] * inverse.w; }
}

@compute @workgroup_size(8, row_groups)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_id) thread: vec3u,
) {
  let x = thread.x;
  let y = thread.y;

  // Which tile. Late blocks have the longest lists and go first.
  let linear = wg.y * grid.x + wg.x;
  let tile = linear % params.tiles;
  let block_and_head = linear / params.tiles;
  let kv_head = block_and_head / params.n_blocks;
  if (kv_head >= params.n_kv_heads) { return; }
  let block = params.n_blocks - 1u - block_and_head % params.n_blocks;

  // Which rows.
  let group = params.n_heads / params.n_kv_heads;
  let block_token = block * params.block_size;
  let n_rows = min(params.block_size, params.n_tokens - block_token) * group;
  let tile_row = tile * 4u * row_groups;
  if (tile_row >= n_rows) { return; }
  let block_query = params.q_start + block_token;
  let first_query = block_query + tile_row / group;
  let last_query = block_query + (min(tile_row + 4u * row_groups, n_rows) - 1u) / group;
  let my_row = tile_row + 4u * y;
  let row = min(vec4u(my_row) + lanes, vec4u(n_rows - 1u));  // rows past the end repeat the last one
  let token = block_token + row / group;
  let query = params.q_start + token;
  let q_row = token * params.n_heads + kv_head * group + row % group;
  let q_at = q_row * quads;

  if (stage_q) {
    for (var i = x; i < quads; i += 8u) {
      q_tile[y * quads + i] = mat4x4f(q[q_at.x + i], q[q_at.y + i], q[q_at.z + i], q[q_at.w + i]);
    }
    workgroupBarrier();
  }

  // Which pages.
  let list = select(kv_head * params.n_blocks + block, block, params.head_shared != 0u);
  let list_start = selection[2u * list];
  let list_length = selection[2u * list + 1u] - list_start;
  let start = list_start + list_length * wg.z / params.n_splits;
  let end = list_start + list_length * (wg.z + 1u) / params.n_splits;

  var m = vec4f(nothing);   // running maximum of each row
  var l = vec4f(0.0);       // running sum of each row, over this thread's keys
  // Unnormalised output, one variable per column so that all stay in registers; those past `columns` are never used.
  var acc_0 = mat4x4f();
  var acc_1 = mat4x4f();
  var acc_2 = mat4x4f();
  var acc_3 = mat4x4f();
  var acc_4 = mat4x4f();
  var acc_5 = mat4x4f();
  var acc_6 = mat4x4f();
  var acc_7 = mat4x4f();
  for (var i = start; i < end; i++) {
    let page = selection[params.pages_at + i];
    let base = page * page_tokens;
    if (params.causal != 0u) {
      if (base > last_query) { break; }
      if (params.window != 0u && base + page_tokens + params.window <= first_query + 1u) { continue; }
    }
    let at = page_start(page, kv_head);

    var dots = mat4x4f();
    for (var d = 0u; d < quads; d++) {
      let keys = key_matrix(at, d, x);
      if (stage_q) {
        dots += keys * q_tile[y * quads + d];
      } else {
        dots += keys * mat4x4f(q[q_at.x + d], q[q_at.y + d], q[q_at.z + d], q[q_at.w + d]);
      }
    }
    var x_0 = to_logits(dots[0]);
    var x_1 = to_logits(dots[1]);
    var x_2 = to_logits(dots[2]);
    var x_3 = to_logits(dots[3]);

    let cut_by_time = params.causal != 0u && base + page_tokens > first_query + 1u;
    let cut_by_window = params.window != 0u && base + params.window <= last_query;
    if (params.masks_at != 0u || cut_by_time || cut_by_window) {
      var mask = 0xffffffffu;
      if (params.masks_at != 0u) { mask = selection[params.masks_at + i]; }
      let bits = visible(mask, base, query) >> vec4u(4u * x);
      x_0 = keep(x_0, bits.x);
      x_1 = keep(x_1, bits.y);
      x_2 = keep(x_2, bits.z);
      x_3 = keep(x_3, bits.w);
    }

    per_thread[y * 8u + x] = vec4f(max_of(x_0), max_of(x_1), max_of(x_2), max_of(x_3));
    workgroupBarrier();
    var m_new = m;
    for (var j = 0u; j < 8u; j++) { m_new = max(m_new, per_thread[y * 8u + j]); }
    let fade = exp2(m - m_new);
    m = m_new;
    let p = mat4x4f(exp2(x_0 - m.x), exp2(x_1 - m.y), exp2(x_2 - m.z), exp2(x_3 - m.w));
    l = l * fade + vec4f(sum_of(p[0]), sum_of(p[1]), sum_of(p[2]), sum_of(p[3]));
    p_tile[y * 8u + x] = p;
    workgroupBarrier();

    acc_0 = add_page(acc_0, fade, at, x, y);
    if (columns > 1u) { acc_1 = add_page(acc_1, fade, at, x + 8u, y); }
    if (columns > 2u) { acc_2 = add_page(acc_2, fade, at, x + 16u, y); }
    if (columns > 3u) { acc_3 = add_page(acc_3, fade, at, x + 24u, y); }
    if (columns > 4u) { acc_4 = add_page(acc_4, fade, at, x + 32u, y); }
    if (columns > 5u) { acc_5 = add_page(acc_5, fade, at, x + 40u, y); }
    if (columns > 6u) { acc_6 = add_page(acc_6, fade, at, x + 48u, y); }
    if (columns > 7u) { acc_7 = add_page(acc_7, fade, at, x + 56u, y); }
  }

  workgroupBarrier();
  per_thread[y * 8u + x] = l;
  workgroupBarrier();
  var total = vec4f(0.0);
  for (var j = 0u; j < 8u; j++) { total += per_thread[y * 8u + j]; }
  total = max(total, vec4f(tiny));  // at least 1 where a key was read, else 0
  let row_lse = m + log2(total);

  let out_row = vec4u((params.first_partial + wg.z) * params.n_tokens * params.n_heads) + q_row;
  let n_mine = min(4u, n_rows - min(n_rows, my_row));
  let inverse = 1.0 / total;
  store(acc_0, inverse, out_row, n_mine, x);
  if (columns > 1u) { store(acc_1, inverse, out_row, n_mine, x + 8u); }
  if (columns > 2u) { store(acc_2, inverse, out_row, n_mine, x + 16u); }
  if (columns > 3u) { store(acc_3, inverse, out_row, n_mine, x + 24u); }
  if (columns > 4u) { store(acc_4, inverse, out_row, n_mine, x + 32u); }
  if (columns > 5u) { store(acc_5, inverse, out_row, n_mine, x + 40u); }
  if (columns > 6u) { store(acc_6, inverse, out_row, n_mine, x + 48u); }
  if (columns > 7u) { store(acc_7, inverse, out_row, n_mine, x + 56u); }
  if (x < n_mine) { lse[out_row[x]] = row_lse[x]; }
}
