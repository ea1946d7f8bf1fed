/** From what attention_sample.wgsl leaves to what policies see. */

import type { QueryBlocks, SampledMasses } from "../../attention/policy.ts";
import { PAGE_TOKENS, pageCount } from "../../kv/page.ts";

/**
 * Attention of sampled rows per page and per distance in pages, summed over the rows and the heads of each KV head.
 * `lse`: (rows, nHeads, nPages), log2 of each page's sum of 2^x.
 */
export function pageMasses(
  lse: Float32Array,
  rows: Uint32Array,
  { qStart, qLen }: QueryBlocks,
  { nHeads, nKvHeads }: { readonly nHeads: number; readonly nKvHeads: number },
): SampledMasses {
  const nPages = pageCount(qStart + qLen);
  const columns = new Float32Array(nKvHeads * nPages);
  const diagonals = new Float32Array(nKvHeads * nPages);
  for (const [i, row] of rows.entries()) {
    const own = Math.floor((qStart + row) / PAGE_TOKENS);
    for (let head = 0; head < nHeads; head++) {
      const pages = lse.subarray((i * nHeads + head) * nPages, (i * nHeads + head) * nPages + own + 1);
      const top = pages.reduce((a, x) => Math.max(a, x), -Infinity);
      const shares = pages.map((x) => 2 ** (x - top));
      const total = shares.reduce((a, x) => a + x, 0);
      const at = Math.floor((head * nKvHeads) / nHeads) * nPages;
      for (const [page, share] of shares.entries()) {
        columns[at + page]! += share / total;
        diagonals[at + own - page]! += share / total;
      }
    }
  }
  return { nPages, columns, diagonals };
}
