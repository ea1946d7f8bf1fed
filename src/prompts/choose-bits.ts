/**
 * Which KV heads of a prompt 2 bits would cost too much: those are stored at 4 (the acceptance rule of algorithms.md C.4).
 *
 * Tried on the prompt itself: queries of its last tokens attend to its pages, and to what 2 bits would leave of them. A head
 * is accepted if the outputs differ by little. What C.4 looks at, the energy of the keys' errors, is much the same in all
 * heads, and the error of attention scores does not tell how much is lost: see docs/decisions.md.
 */

import type { AttentionShape } from "../attention/policy.ts";
import type { WasmModule } from "../backend/wasm/module.ts";
import { outputErrors } from "../backend/wasm/output-error.ts";
import type { PageConverter } from "../backend/wasm/page-converter.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { headFormats, NARROW } from "../kv/mixed-format.ts";
import { clearPastTokens, PAGE_TOKENS, pageCount } from "../kv/page.ts";
import type { PagedCache } from "../kv/paged-cache.ts";
import { SINK_PAGES, settledPages } from "../kv/quantize.ts";
import { LayerPages } from "./layer-pages.ts";
import type { WindowQueries } from "./window-queries.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Most of the outputs' energy that the difference may have. */
export const MOST_ERROR = 0.1;
/** Tokens whose queries are tried. */
const TRIED_TOKENS = 8;
/** Of the pages, the part that is coded for it, evenly spaced ones that stand for the others; and how many at least. */
const TRIED_SHARE = 1 / 4;
const LEAST_TRIED_PAGES = 64;

/** The pages of a layer that are tried. */
interface TriedPages {
  readonly pages: readonly number[];
  readonly isCoded: readonly boolean[];
  /** How many pages each stands for. */
  readonly weights: readonly number[];
}

export class BitsChooser {
  constructor(
    private readonly shape: AttentionShape,
    /** Of attention scores. */
    private readonly scale: number,
    private readonly wasm: WasmModule,
    private readonly pages: PageConverter,
  ) {}

  /**
   * The heads that are to have 4 bits, `layer * nKvHeads + kvHead`, ascending. `cache` has the prompt, nothing of it coded.
   * Throws `invalid-model` for keys and values that are not finite, `out-of-memory`.
   */
  async wideHeads(cache: PagedCache, queries: WindowQueries, checkpoint: Checkpoint): Promise<number[]> {
    const wide: number[] = [];
    const { nLayers, nKvHeads } = this.shape;
    for (let layer = 0; layer < nLayers; layer++) {
      const errors = await this.errors(cache, layer, queries, checkpoint);
      for (const [head, error] of errors.entries())
        if (!(error <= MOST_ERROR)) wide.push(layer * nKvHeads + head);
    }
    return wide;
  }

  /** Of each KV head of a layer, the outputs' difference at 2 bits, as a share of their energy. */
  async errors(
    cache: PagedCache,
    layer: number,
    queries: WindowQueries,
    checkpoint: Checkpoint,
  ): Promise<number[]> {
    const { nKvHeads } = this.shape;
    const tried = triedPages(cache.nTokens, this.shape.window[layer]);
    if (!tried.isCoded.includes(true)) return new Array<number>(nKvHeads).fill(0);
    const last = pageCount(cache.nTokens);
    const formats = headFormats(cache.formatOf(0), layer, nKvHeads);
    const all = new LayerPages(await cache.readPages(layer, 0, last), formats, this.shape.headDim);
    const errors: number[] = [];
    for (let head = 0; head < nKvHeads; head++) {
      await checkpoint.pass();
      const exact = this.pages.convert(all.gather(head, tried.pages), formats[head]!, "f32").slice();
      const { difference, energy } = this.#compare(cache.nTokens, layer, head, tried, exact, queries);
      errors.push(energy > 0 ? difference / energy : difference);
    }
    return errors;
  }

  #compare(
    nTokens: number,
    layer: number,
    head: number,
    { pages, isCoded, weights }: TriedPages,
    exact: Bytes,
    queries: WindowQueries,
  ) {
    const { headDim } = this.shape;
    const size = exact.byteLength / pages.length;
    const past = nTokens - pages.at(-1)! * PAGE_TOKENS;
    if (past < PAGE_TOKENS)
      clearPastTokens(exact.subarray(-size), { nKvHeads: 1, headDim, format: "f32" }, past);
    const coded = exact.slice();
    const [from, to] = [isCoded.indexOf(true) * size, (isCoded.lastIndexOf(true) + 1) * size];
    const narrow = this.pages.convert(exact.slice(from, to), "f32", NARROW);
    coded.set(this.pages.convert(narrow, NARROW, "f32"), from);
    const bias = Float32Array.from(weights, Math.log);
    const first = Int32Array.from(pages, (page) => page * PAGE_TOKENS);
    const rows = this.#rows(layer, head, queries);
    return outputErrors(this.wasm, { exact, coded, bias, first, ...rows }, headDim, this.scale);
  }

  /** Queries of tokens from the last one back, evenly spaced, of the query heads that read one KV head. */
  #rows(layer: number, head: number, { layers, from, count }: WindowQueries) {
    const { nHeads, nKvHeads, headDim } = this.shape;
    const group = nHeads / nKvHeads;
    const nTried = Math.min(TRIED_TOKENS, count);
    const q = new Float32Array(nTried * group * headDim);
    const positions = new Int32Array(nTried * group);
    for (let i = 0; i < nTried; i++) {
      const token = count - 1 - Math.floor((i * count) / nTried);
      const at = (token * nHeads + head * group) * headDim;
      q.set(layers[layer]!.subarray(at, at + group * headDim), i * group * headDim);
      positions.fill(from + token, i * group, (i + 1) * group);
    }
    return { q, positions };
  }
}

/** Sinks, some of the pages that will be coded, and the window's; a sliding window sees the latest only. */
function triedPages(nTokens: number, window: number | undefined): TriedPages {
  const oldest = window === undefined ? 0 : Math.max(0, Math.floor((nTokens - window) / PAGE_TOKENS));
  const settled = settledPages(nTokens);
  const range = (from: number, to: number) =>
    Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);
  const sinks = range(oldest, SINK_PAGES);
  const first = Math.max(SINK_PAGES, oldest);
  const nCoded = Math.max(0, settled - first);
  const nTried = Math.min(nCoded, Math.max(LEAST_TRIED_PAGES, Math.ceil(nCoded * TRIED_SHARE)));
  const coded = range(0, nTried).map((i) => first + Math.floor(((i + 0.5) * nCoded) / nTried));
  const recent = range(Math.max(settled, oldest), pageCount(nTokens));
  return {
    pages: [...sinks, ...coded, ...recent],
    isCoded: [...sinks.map(() => false), ...coded.map(() => true), ...recent.map(() => false)],
    weights: [...sinks.map(() => 1), ...coded.map(() => nCoded / nTried), ...recent.map(() => 1)],
  };
}
