/**
 * What keys would lose if they were quantized before they are rotated, as SKVQ and KVQuant have it: a cache of f32 whose
 * pages, as they leave the window, are turned back, coded, decoded and turned again. Values are coded as always.
 */

import type { PageConverter } from "../src/backend/wasm/page-converter.ts";
import { PAGE_TOKENS } from "../src/kv/page.ts";
import type { PagedCache } from "../src/kv/paged-cache.ts";
import type { QuantizedFormat } from "../src/kv/quantize.ts";
import type { Transformer } from "../src/model/forward.ts";
import { ropeTable } from "../src/model/rope.ts";

/** Replaces one page of an f32 cache, all layers, by what would be read of it. */
export async function codeBeforeRope(
  { config, rope }: Transformer,
  cache: PagedCache,
  page: number,
  format: QuantizedFormat,
  converter: PageConverter,
): Promise<void> {
  const { nLayers, nKvHeads, headDim } = config;
  const table = ropeTable(rope, page * PAGE_TOKENS, PAGE_TOKENS);
  const half = headDim * PAGE_TOKENS;
  const turn = (pages: Float32Array, sign: 1 | -1) => {
    for (let head = 0; head < nKvHeads; head++)
      turnKeys(pages.subarray(2 * half * head, 2 * half * head + half), table, sign);
  };
  for (let layer = 0; layer < nLayers; layer++) {
    const pages = new Float32Array((await cache.readPages(layer, page, page + 1)).buffer);
    turn(pages, -1);
    const coded = converter.convert(new Uint8Array(pages.buffer), "f32", format);
    const decoded = new Float32Array(converter.convert(coded, format, "f32").buffer);
    turn(decoded, 1);
    await cache.writePages(layer, page, page + 1, new Uint8Array(decoded.buffer));
  }
}

/** Turns K of a page, (headDim, 32), by its positions' angles, or back. */
function turnKeys(
  k: Float32Array,
  { angles, nRot, pairs }: ReturnType<typeof ropeTable>,
  sign: 1 | -1,
): void {
  const nPairs = nRot / 2;
  for (let t = 0; t < PAGE_TOKENS; t++)
    for (let i = 0; i < nPairs; i++) {
      const [a, b] = pairs === "adjacent" ? [2 * i, 2 * i + 1] : [i, i + nPairs];
      const cos = angles[2 * (t * nPairs + i)]!;
      const sin = sign * angles[2 * (t * nPairs + i) + 1]!;
      const [x, y] = [k[a * PAGE_TOKENS + t]!, k[b * PAGE_TOKENS + t]!];
      k[a * PAGE_TOKENS + t] = x * cos - y * sin;
      k[b * PAGE_TOKENS + t] = x * sin + y * cos;
    }
}
