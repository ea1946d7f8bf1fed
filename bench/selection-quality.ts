/**
 * `node --experimental-wasm-relaxed-simd --import tsx --import ./test/fixtures/wgsl-loader.mjs bench/selection-quality.ts
 *   [--models stories260K,tinystories-656k] [--text alice.txt] [--tokens 512] [--budget 0.25] [--sinks 32] [--local 32]
 *   [--variants] [--json]`
 *
 * How much of a trained model's attention a selection keeps (algorithms.md F.6-4): its own queries and keys over real text,
 * exact probabilities in f64, summed over the keys that each policy lists. Recall is the mean over layers, heads and
 * sampled queries; CRA is the minimum. Only queries that must choose count: those with more keys than the budget.
 */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { DhsaPolicy } from "../src/attention/dhsa.ts";
import { PREFILL_POLICIES } from "../src/attention/names.ts";
import { PageRows, rowBounds } from "../src/attention/page-rows.ts";
import { createPolicy } from "../src/attention/policies.ts";
import {
  type AttentionShape,
  type Budget,
  blockCount,
  type QueryBlocks,
  type Selection,
  type SelectionPolicy,
} from "../src/attention/policy.ts";
import { Ranking } from "../src/attention/ranking.ts";
import type { Ops, Tensor } from "../src/backend/backend.ts";
import { Checkpoint } from "../src/engine/yielding.ts";
import { attentionShape, forward, type Transformer } from "../src/model/forward.ts";
import { loadEngine } from "../test/fixtures/engine.ts";
import { type PolicyRows, selectInParts } from "../test/fixtures/policy-case.ts";
import { sharedPath } from "../test/fixtures/shared.ts";
import { densePlan, openTransformer } from "../test/fixtures/transformer.ts";
import { instantiate } from "../test/fixtures/wasm.ts";
import { attentionProbabilities } from "../test/reference/attention-probabilities.ts";

/** Kept attention probability. */
export interface Recall {
  readonly policy: string;
  readonly mean: number;
  readonly min: number;
  /** The value that 5 % of the queries are below. */
  readonly p5: number;
  /** Share of the pages before the queries that were listed. */
  readonly pagesRead: number;
}

/** A policy under test. */
export interface Candidate {
  readonly name: string;
  make(shape: AttentionShape, scale: number): SelectionPolicy;
}

/** The policies as options name them. */
export const POLICIES: readonly Candidate[] = PREFILL_POLICIES.filter((name) => name !== "dense").map(
  (name) => ({
    name,
    make: (shape, scale) => createPolicy(name, shape, scale),
  }),
);

/** The best that whole pages could do; needs the probabilities, which only `measureRecall` has. */
export const ORACLE: Candidate = {
  name: "oracle",
  make: () => {
    throw new Error("the oracle is made by measureRecall");
  },
};

/** Set-ups of DHSA that were compared for its defaults. */
export const DHSA_VARIANTS: readonly Candidate[] = [8, 16, 32].flatMap((granule) =>
  (["layer", "kvGroup"] as const).flatMap((headMode) =>
    ([undefined, 0, 1] as const).map((boundaryLayer) => ({
      name: `dhsa granule ${granule}, lists per ${headMode}, ${boundaryLayer === undefined ? "chunks of 32" : `boundaries of layer ${boundaryLayer}`}`,
      make: (shape: AttentionShape) => new DhsaPolicy(shape, { granule, headMode, boundaryLayer }),
    })),
  ),
);

/**
 * Knows every probability: lists the pages with most of each block's and KV head's attention. What no choice of whole
 * pages at the same budget can exceed.
 */
class OraclePolicy implements SelectionPolicy {
  readonly name = "oracle";
  readonly phases = ["prefill"] as const;
  readonly lookahead = false;
  readonly #ranking = new Ranking();

  /** `mass` (nKvHeads, nBlocks, nPages): attention of each block's queries on each page. */
  constructor(
    private readonly shape: AttentionShape,
    private readonly mass: Float64Array,
  ) {}

  select(layer: number, blocks: QueryBlocks, budget: Budget): Selection[] {
    const nPages = Math.ceil((blocks.qStart + blocks.qLen) / 32);
    const rows = new PageRows(blocks.qStart + blocks.qLen);
    for (let h = 0; h < this.shape.nKvHeads; h++)
      for (let b = 0; b < blockCount(blocks); b++) {
        const row = rowBounds(blocks, b, budget, this.shape.window[layer]);
        let rest = row.keys - rows.force(row);
        this.#ranking.clear();
        for (let p = 0; p * 32 < row.end; p++)
          this.#ranking.add(p, this.mass[(h * blockCount(blocks) + b) * nPages + p]!);
        if (!row.isDense)
          for (const p of this.#ranking.descending())
            if (rest >= 32) rest -= rows.add(p * 32, Math.min(row.end, (p + 1) * 32));
        rows.close(row.end);
      }
    return [rows.finish(layer, this.shape, blocks, false)];
  }
}

/** What each candidate keeps of a model's attention over `ids`, read in one call. */
export async function measureRecall(
  model: Transformer,
  ids: Uint32Array,
  budget: Budget,
  candidates: readonly Candidate[],
  queryStride = 7,
): Promise<Recall[]> {
  const layers = await recordRows(model, ids);
  const shape = attentionShape(model.config);
  const { nHeads, nKvHeads, headDim, nLayers, attentionScale, windows } = model.config;
  const pages: number[] = [];
  const kept = new Map(candidates.map(({ name }) => [name, [] as number[]]));
  const least = Math.ceil(Math.max(budget.tokens, budget.sinks + budget.local + 32) / (budget.fraction || 1));
  for (let layer = 0; layer < nLayers; layer++) {
    const { q, k } = layers[layer]!;
    const input = { q, k, nHeads, nKvHeads, headDim, scale: attentionScale, window: windows[layer] };
    const nPages = Math.ceil(ids.length / 32);
    const mass = new Float64Array(nKvHeads * nPages * nPages);
    const group = nHeads / nKvHeads;
    for (let t = 0; t < ids.length; t++)
      for (let h = 0; h < nHeads; h++) {
        const at = (Math.floor(h / group) * nPages + Math.floor(t / 32)) * nPages;
        for (const [key, p] of attentionProbabilities(input, t, h).entries())
          mass[at + Math.floor(key / 32)]! += p;
      }
    // The boundary layer's keys cut the text; layers before it do not use them.
    const selections = candidates.map(({ name, make }) => {
      const policy: SelectionPolicy =
        name === ORACLE.name ? new OraclePolicy(shape, mass) : make(shape, attentionScale);
      const cutBy = layers[policy.needs?.pooled?.boundaryLayer ?? 0]!;
      const rows = { q, k, unrotatedK: cutBy.unrotatedK };
      return { name, s: selectInParts(policy, shape, rows, [ids.length], budget, { layer })[0]!.selection };
    });
    pages.push(...selections.map(({ s }) => s.page.length / (s.headShared ? 1 : nKvHeads)));
    for (let t = Math.min(least, ids.length - 1); t < ids.length; t += queryStride)
      for (let h = 0; h < nHeads; h++) {
        const probabilities = attentionProbabilities(input, t, h);
        for (const { name, s } of selections) {
          const row =
            (s.headShared ? 0 : Math.floor(h / (nHeads / nKvHeads)) * s.nBlocks) + Math.floor(t / 32);
          let sum = 0;
          for (let i = s.rowPtr[row]!; i < s.rowPtr[row + 1]!; i++) {
            const mask = s.mask ? s.mask[i]! : 0xffffffff;
            const base = s.page[i]! * 32;
            for (let r = 0; r < 32 && base + r <= t; r++)
              if ((mask >>> r) & 1) sum += probabilities[base + r]!;
          }
          kept.get(name)!.push(sum);
        }
      }
  }
  return candidates.map(({ name }, i) => {
    const sorted = kept.get(name)!.sort((a, b) => a - b);
    const nPages = Math.ceil(ids.length / 32);
    const listed = pages.filter((_, j) => j % candidates.length === i).reduce((a, b) => a + b);
    return {
      policy: name,
      mean: sorted.reduce((a, b) => a + b, 0) / sorted.length,
      min: sorted[0]!,
      p5: sorted[Math.floor(sorted.length / 20)]!,
      pagesRead: listed / (nLayers * ((nPages * (nPages + 1)) / 2)),
    };
  });
}

/** Runs the model densely and keeps each layer's queries and keys. */
export async function recordRows(model: Transformer, ids: Uint32Array): Promise<PolicyRows[]> {
  const { ops, config } = model;
  const read = (tensor: Tensor) => Float32Array.from(ops.read(tensor) as Float32Array);
  const before: Float32Array[] = [];
  const after: Float32Array[] = [];
  // The forward pass rotates q and then k of every layer.
  const rotate: Ops["ropeInPlace"] = (x, angles, headDim) => {
    before.push(read(x));
    ops.ropeInPlace(x, angles, headDim);
    after.push(read(x));
  };
  const spied = new Proxy(ops, {
    get(target, name) {
      if (name === "ropeInPlace") return rotate;
      const member: unknown = Reflect.get(target, name, target);
      return typeof member === "function" ? member.bind(target) : member;
    },
  });
  const cache = model.attention.createCache();
  await forward({ ...model, ops: spied }, cache, ids, densePlan(model), "none", new Checkpoint(undefined));
  cache.dispose();
  return Array.from({ length: config.nLayers }, (_, layer) => ({
    q: after[2 * layer]!,
    k: after[2 * layer + 1]!,
    unrotatedK: before[2 * layer + 1]!,
  }));
}

/** A file of the shared data. Throws where it is not there. */
function shared(...parts: string[]): string {
  const file = sharedPath("data", ...parts);
  if (file === undefined) throw new Error(`there is no shared/data/${parts.join("/")} beside the repository`);
  return file;
}

/** The first `n` ids of a text of the shared data, after `skip` characters, in a model's own tokens. */
export async function sharedIds(
  bytes: Uint8Array<ArrayBuffer>,
  text: string,
  n: number,
  skip = 2000,
): Promise<Uint32Array> {
  const engine = await loadEngine(bytes);
  try {
    const content = readFileSync(shared("text", text), "utf8").slice(skip, skip + 8 * n);
    const ids = engine.tokenizer.encode(content);
    if (ids.length < n)
      throw new Error(`${text} has ${ids.length} tokens from character ${skip} on, ${n} are needed`);
    return ids.slice(0, n);
  } finally {
    await engine.dispose();
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      models: { type: "string", default: "stories260K,tinystories-656k" },
      text: { type: "string", default: "alice.txt" },
      tokens: { type: "string", default: "512" },
      budget: { type: "string", default: "0.25" },
      sinks: { type: "string", default: "32" },
      local: { type: "string", default: "32" },
      variants: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
    },
  });
  const budget: Budget = {
    tokens: 0,
    fraction: Number(values.budget),
    sinks: Number(values.sinks),
    local: Number(values.local),
    denseBelow: 0,
  };
  for (const name of values.models.split(",")) {
    const bytes = new Uint8Array(readFileSync(shared("models", name, `${name}-f32.gguf`)));
    const ids = await sharedIds(bytes, values.text, Number(values.tokens));
    const model = await openTransformer(bytes, await instantiate("simd"));
    const candidates = [ORACLE, ...POLICIES, ...(values.variants ? DHSA_VARIANTS : [])];
    const results = await measureRecall(model, ids, budget, candidates);
    if (values.json) console.log(JSON.stringify({ model: name, tokens: ids.length, budget, results }));
    else
      for (const { policy, mean, min, p5, pagesRead } of results)
        console.log(
          `${name}  ${policy.padEnd(60)} kept ${(100 * mean).toFixed(2)} %  5th percentile ${(100 * p5).toFixed(1)} %  ` +
            `least ${(100 * min).toFixed(1)} %  pages ${(100 * pagesRead).toFixed(1)} %`,
        );
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
