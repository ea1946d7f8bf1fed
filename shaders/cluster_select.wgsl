// cluster_select: from estimated probabilities to page lists, as src/attention/squeezed.ts makes them: entries above the
// threshold, the best that have `least_keys` keys together, and always the sink page, the observation window and all that follows it. A block whose estimate of what is left out
// is above `max_missing` reads everything.
//   index      tiles (n_kv_heads + 1), counts (n_entries), spreads, ends (n_entries), parents, firsts (n_kv_heads, clustered_pages): entry e is
//              slots [ends[e - 1], ends[e]), page p begins in entry firsts[p]; see gpu-clusters.ts
//   sigma      (n_blocks, n_entries)             see cluster_scores
//   selection  (start, end) of each row (n_kv_heads, n_blocks), then pages, then masks, `capacity` of each a row: pages
//              ascending, bit t of a mask = token 32 * page + t is read. Read by attention_decode and attention_prefill.
//   counters   (n_kv_heads, n_blocks, 2)         added to: keys read (the last query's page counts whole), and the estimated
//              probability of those that are left out
// Sinks are the first 32 entries, one key each: page 0. The observation window begins at page `clustered_pages`.
//
// One workgroup: one row. A thread makes the masks of neighbouring pages, once to count them and once to write them: nothing is
// appended atomically, so the same bits every time.
// Dispatch n_kv_heads * n_blocks workgroups, folded over x and y.
// Reference: src/attention/squeezed.ts

override wg_size: u32 = 64;

const sink_entries = 32u;

struct Params {
  q_start: u32,          // position of query 0
  n_tokens: u32,
  block_size: u32,
  n_blocks: u32,
  n_kv_heads: u32,
  n_entries: u32,
  clustered_pages: u32,  // pages before this one are sinks or clustered
  capacity: u32,         // pages of the longest possible row
  counts_at: u32,        // where the parts of `index` begin
  ends_at: u32,
  firsts_at: u32,
  threshold: f32,
  max_missing: f32,
  least_keys: u32,       // 0 = none
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read> sigma: array<f32>;
@group(0) @binding(3) var<storage, read_write> selection: array<u32>;
@group(0) @binding(4) var<storage, read_write> counters: array<vec2f>;

var<workgroup> shares: array<f32, wg_size>;  // of the estimated probability
var<workgroup> pages: array<u32, wg_size>;   // listed by each thread
var<workgroup> keys: array<u32, wg_size>;    // in them
var<workgroup> first_shift: i32;
var<workgroup> bins: array<atomic<u32>, 64>;  // keys by six bits of their estimate

/// The bits of what the best clusters with `least_keys` keys have at least: those of an f32 that is not negative are in its
/// order. Never 0; more than any estimate has where those above the threshold have enough. Found six bits at a time, from the highest.
fn least_bits(first: u32, end: u32, sigma_at: u32, t: u32) -> u32 {
  if (t == 0u) { atomicStore(&bins[0], 0u); }
  workgroupBarrier();
  var n_above = 0u;
  for (var e = first + t; e < end; e += wg_size) {
    if (sigma[sigma_at + e] > params.threshold) { n_above += index[params.counts_at + e]; }
  }
  atomicAdd(&bins[0], n_above);  // whole numbers: the same sum in every order
  workgroupBarrier();
  if (t == 0u) { first_shift = select(24, -1, atomicLoad(&bins[0]) >= params.least_keys); }
  let start = workgroupUniformLoad(&first_shift);
  var prefix = 0u;  // the bits that are found
  var above = 0u;   // keys of larger ones
  for (var shift = start; shift >= 0; shift -= 6) {
    for (var i = t; i < 64u; i += wg_size) { atomicStore(&bins[i], 0u); }
    workgroupBarrier();
    for (var e = first + t; e < end; e += wg_size) {
      let bits = bitcast<u32>(sigma[sigma_at + e]) >> u32(shift);
      if ((bits >> 6u) == prefix) { atomicAdd(&bins[bits & 63u], index[params.counts_at + e]); }
    }
    workgroupBarrier();
    var digit = 63u;
    for (; digit > 0u; digit--) {
      let n = atomicLoad(&bins[digit]);
      if (above + n >= params.least_keys) { break; }
      above += n;
    }
    prefix = (prefix << 6u) | digit;
    workgroupBarrier();
  }
  return select(max(prefix, 1u), 0xffffffffu, start < 0);
}

/// The lowest n bits.
fn low_bits(n: u32) -> u32 {
  return select((1u << (n & 31u)) - 1u, 0xffffffffu, n >= 32u);
}

fn is_read(estimate: f32, least: u32) -> bool {
  return estimate > params.threshold || bitcast<u32>(estimate) >= least;
}

/// Tokens of a clustered page whose entries are read.
fn selected(page: u32, kv_head: u32, sigma_at: u32, least: u32) -> u32 {
  let base = 32u * page;
  var e = index[params.firsts_at + kv_head * params.clustered_pages + page];
  var bits = 0u;
  for (var token = 0u; token < 32u; e++) {
    let end = min(index[params.ends_at + e] - base, 32u);
    if (is_read(sigma[sigma_at + e], least)) { bits |= low_bits(end) & ~low_bits(token); }
    token = end;
  }
  return bits;
}

@compute @workgroup_size(wg_size)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let row = wg.y * grid.x + wg.x;
  if (row >= params.n_kv_heads * params.n_blocks) { return; }
  let kv_head = row / params.n_blocks;
  let block = row % params.n_blocks;
  let sigma_at = block * params.n_entries;

  let first = 32u * index[kv_head];
  let least = least_bits(first + sink_entries, 32u * index[kv_head + 1u], sigma_at, t);
  // How much probability is kept.
  var share = 0.0;
  for (var e = first + t; e < 32u * index[kv_head + 1u]; e += wg_size) {
    let one = sigma[sigma_at + e];
    if (e < first + sink_entries || is_read(one, least)) { share += one * f32(index[params.counts_at + e]); }
  }
  shares[t] = share;
  workgroupBarrier();
  var kept = 0.0;
  for (var i = 0u; i < wg_size; i++) { kept += shares[i]; }
  let is_dense = 1.0 - kept > params.max_missing;

  // Which pages.
  let end = params.q_start + min((block + 1u) * params.block_size, params.n_tokens);  // past the last query
  let n_pages = (end + 31u) / 32u;
  let per_thread = (n_pages + wg_size - 1u) / wg_size;
  let first_page = min(t * per_thread, n_pages);
  let end_page = min(first_page + per_thread, n_pages);
  var n_listed = 0u;
  var n_keys = 0u;
  for (var page = first_page; page < end_page; page++) {
    var mask = low_bits(end - 32u * page);
    if (page > 0u && page < params.clustered_pages && !is_dense) { mask = selected(page, kv_head, sigma_at, least); }
    n_listed += select(0u, 1u, mask != 0u);
    n_keys += select(countOneBits(mask), 32u, page == n_pages - 1u);
  }
  pages[t] = n_listed;
  keys[t] = n_keys;
  workgroupBarrier();
  let start = row * params.capacity;
  var at = start;
  for (var i = 0u; i < t; i++) { at += pages[i]; }
  let pages_at = 2u * params.n_kv_heads * params.n_blocks;
  let masks_at = pages_at + params.n_kv_heads * params.n_blocks * params.capacity;
  for (var page = first_page; page < end_page; page++) {
    var mask = low_bits(end - 32u * page);
    if (page > 0u && page < params.clustered_pages && !is_dense) { mask = selected(page, kv_head, sigma_at, least); }
    if (mask == 0u) { continue; }
    selection[pages_at + at] = page;
    selection[masks_at + at] = mask;
    at++;
  }
  if (t == wg_size - 1u) {
    selection[2u * row] = start;
    selection[2u * row + 1u] = at;
  }
  if (t == 0u) {
    var read = 0u;
    for (var i = 0u; i < wg_size; i++) { read += keys[i]; }
    counters[row] += vec2f(f32(read), select(max(0.0, 1.0 - kept), 0.0, is_dense));
  }
}
