/** The learned boundary predictor (algorithms.md A.3): its numbers, what it finds, and its file. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { BoundaryDetector, MAX_CHUNK } from "../../src/attention/boundaries.ts";
import { LearnedBoundaries, type PredictorWeights } from "../../src/attention/learned-boundaries.ts";
import { InlayError } from "../../src/errors.ts";
import { openSources } from "../../src/gguf/source.ts";
import { readBoundaryPredictor } from "../../src/model/boundary-file.ts";
import { writeHeader } from "../../tools/gguf/writer.mjs";
import { collect, greedy, loadEngine } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { normals } from "../fixtures/random.ts";

const CHANNELS = 32;
const HIDDEN = 12;

function randomWeights(half: number, heads: number, seed: number, threshold = 0): PredictorWeights {
  const make = (n: number, i: number, size = 0.3) => normals(n, 100 * seed + i, size);
  return {
    ...{ channels: CHANNELS, half, heads, threshold },
    inWeight: make(3 * CHANNELS * CHANNELS, 1),
    inBias: make(3 * CHANNELS, 2),
    outWeight: make(CHANNELS * CHANNELS, 3),
    outBias: make(CHANNELS, 4),
    normWeight: make(CHANNELS, 5).map((x) => 1 + x),
    normBias: make(CHANNELS, 6),
    hiddenWeight: make(HIDDEN * (4 * CHANNELS + 1), 7),
    hiddenBias: make(HIDDEN, 8),
    logitWeight: make(HIDDEN, 9),
    logitBias: make(1, 10),
  };
}

/** Matrix (outputs, inputs) times vector plus bias, f64. */
function affine(w: Float32Array, bias: Float32Array, x: readonly number[]): number[] {
  return [...bias].map((b, o) => x.reduce((sum, xi, i) => sum + w[o * x.length + i]! * xi, b));
}

/** The logit of one window of 2w keys, written down from the formula, f64. */
function referenceLogit(w: PredictorWeights, window: readonly (readonly number[])[]): number {
  const { channels: c, heads, half } = w;
  const width = c / heads;
  const qkv = window.map((x) => affine(w.inWeight, w.inBias, x));
  const e = qkv.map((own) => {
    const mixed: number[] = [];
    for (let h = 0; h < heads; h++) {
      const part = (row: number[], which: number) =>
        row.slice(which * c + h * width, which * c + (h + 1) * width);
      const scores = qkv.map((other) =>
        part(own, 0).reduce((sum, x, i) => sum + (x * part(other, 1)[i]!) / Math.sqrt(width), 0),
      );
      const shares = scores.map((x) => Math.exp(x));
      const total = shares.reduce((a, b) => a + b, 0);
      for (let d = 0; d < width; d++)
        mixed.push(qkv.reduce((sum, other, j) => sum + (shares[j]! / total) * part(other, 2)[d]!, 0));
    }
    const out = affine(w.outWeight, w.outBias, mixed);
    const mean = out.reduce((a, b) => a + b, 0) / c;
    const variance = out.reduce((sum, x) => sum + (x - mean) ** 2, 0) / c;
    return out.map((x, i) => ((x - mean) / Math.sqrt(variance + 1e-5)) * w.normWeight[i]! + w.normBias[i]!);
  });
  const mean = (rows: number[][]) =>
    rows[0]!.map((_, i) => rows.reduce((sum, row) => sum + row[i]! / half, 0));
  const l = mean(e.slice(0, half));
  const r = mean(e.slice(half));
  const dot = (x: number[], y: number[]) => x.reduce((sum, xi, i) => sum + xi * y[i]!, 0);
  const f = [
    ...l,
    ...r,
    ...l.map((x, i) => Math.abs(x - r[i]!)),
    ...l.map((x, i) => x * r[i]!),
    dot(l, r) / Math.sqrt(dot(l, l) * dot(r, r)),
  ];
  const hidden = affine(w.hiddenWeight, w.hiddenBias, f).map((x) => Math.max(0, x));
  return affine(w.logitWeight, w.logitBias, hidden)[0]!;
}

describe("the predictor", () => {
  for (const [half, heads] of [
    [4, 8],
    [4, 1],
    [2, 4],
  ] as const)
    test(`has the formula's logits, half ${half}, ${heads} heads`, () => {
      const weights = randomWeights(half, heads, 1);
      const keys = normals(60 * CHANNELS, 2);
      const score = new LearnedBoundaries(weights);
      for (let t = 0; t < 60; t++) {
        const { score: logit, isCandidate } = score.step(keys, t);
        if (t < 2 * half - 1) {
          assert.equal(logit, -Infinity);
          continue;
        }
        const window = Array.from({ length: 2 * half }, (_, i) => {
          const at = (t + 1 - 2 * half + i) * CHANNELS;
          return [...keys.subarray(at, at + CHANNELS)];
        });
        const expected = referenceLogit(weights, window);
        assert.ok(
          Math.abs(logit - expected) <= 1e-4 * (1 + Math.abs(expected)),
          `${logit} is not ${expected}`,
        );
        assert.equal(isCandidate, logit > weights.threshold);
      }
    });

  for (const granule of [1, 32])
    test(`its boundaries are apart, cover the text, and do not depend on parts; granule ${granule}`, () => {
      const n = 1500;
      const keys = normals(n * CHANNELS, 3);
      const start = new LearnedBoundaries(randomWeights(4, 8, 4, -0.2));
      const detect = (parts: readonly number[]) => {
        const detector = new BoundaryDetector(CHANNELS, granule, start);
        let at = 0;
        for (const part of parts) {
          detector.append(keys.subarray(at * CHANNELS, (at + part) * CHANNELS));
          at += part;
        }
        return detector;
      };
      const whole = detect([n]);
      const { ends, knownAt, lookahead } = whole;
      assert.ok(ends.length > 20, `${ends.length} chunks`);
      for (const [c, end] of ends.entries()) {
        const length = end - (ends[c - 1] ?? 0);
        assert.ok(end % granule === 0 && length <= MAX_CHUNK);
        assert.ok(c === 0 || length >= (granule === 1 ? 9 : granule), `a chunk of ${length}`);
        assert.ok(knownAt[c]! >= end && knownAt[c]! <= end + MAX_CHUNK + 2 * lookahead);
      }
      const parts = detect([512, 1, 487, 500]);
      assert.deepEqual([parts.ends, parts.knownAt], [ends, knownAt]);
      const fork = whole.fork();
      whole.truncate(700);
      assert.deepEqual(whole.ends, detect([700]).ends);
      whole.append(keys.subarray(700 * CHANNELS));
      assert.deepEqual(whole.ends, fork.ends);
    });
});

interface Damage {
  architecture?: string;
  channels?: number;
  heads?: number;
  hidden?: number;
  without?: string;
  nanIn?: string;
}

/** A predictor as a file, as tools/boundary-predictor/predictor.py writes it. */
function fileOf(w: PredictorWeights, damage: Damage = {}): Uint8Array<ArrayBuffer> {
  const { architecture = "inlay-boundaries", channels = w.channels, heads = w.heads } = damage;
  const c = w.channels;
  const all: [string, number[], Float32Array][] = [
    ["attention.in.weight", [c, 3 * c], w.inWeight],
    ["attention.in.bias", [3 * c], w.inBias],
    ["attention.out.weight", [c, c], w.outWeight],
    ["attention.out.bias", [c], w.outBias],
    ["norm.weight", [c], w.normWeight],
    ["norm.bias", [c], w.normBias],
    ["hidden.weight", [4 * c + 1, w.hiddenBias.length], w.hiddenWeight],
    ["hidden.bias", [w.hiddenBias.length], w.hiddenBias],
    ["logit.weight", [w.hiddenBias.length], w.logitWeight],
    ["logit.bias", [1], w.logitBias],
  ];
  const tensors = all.filter(([name]) => name !== damage.without);
  const header = writeHeader(
    [
      ["general.architecture", "string", architecture],
      ["inlay-boundaries.channels", "u32", channels],
      ["inlay-boundaries.half_width", "u32", w.half],
      ["inlay-boundaries.heads", "u32", heads],
      ["inlay-boundaries.hidden", "u32", damage.hidden ?? w.hiddenBias.length],
      ["inlay-boundaries.threshold", "f32", w.threshold],
    ],
    tensors.map(([name, dims, values]) => ({ name, dims, typeId: 0, byteLength: values.byteLength })),
  );
  const bytes = new Uint8Array(header.bytes.length + header.dataBytes);
  bytes.set(header.bytes);
  for (const [i, [name, , values]] of tensors.entries()) {
    const copy = values.slice();
    if (name === damage.nanIn) copy[1] = Number.NaN;
    bytes.set(new Uint8Array(copy.buffer), header.bytes.length + header.offsets[i]!);
  }
  return bytes;
}

describe("the predictor's file", () => {
  const weights = randomWeights(4, 8, 5, 0.25);
  const config = { nKvHeads: 2, headDim: 16 };
  const read = (bytes: Uint8Array<ArrayBuffer>, shape = config) =>
    readBoundaryPredictor(openSources(bytes), shape);

  test("gives the same logits", async () => {
    const keys = normals(40 * CHANNELS, 6);
    const [expected, actual] = [new LearnedBoundaries(weights), await read(fileOf(weights))];
    for (let t = 0; t < 40; t++) assert.deepEqual(actual.step(keys, t), expected.step(keys, t));
  });

  const refused: [string, () => Promise<unknown>, RegExp][] = [
    [
      "another model's",
      () => read(fileOf(weights), { nKvHeads: 3, headDim: 64 }),
      /keys of 32 channels; this model has 3 KV heads of 64, 192 in all/,
    ],
    [
      "a language model",
      () => read(tinyGguf("tiny-llama")),
      /has architecture "llama"; "inlay-boundaries" is expected/,
    ],
    ["heads that do not divide", () => read(fileOf(weights, { heads: 5 })), /inlay-boundaries\.heads = 5/],
    ["a tensor less", () => read(fileOf(weights, { without: "norm.bias" })), /has no tensor norm\.bias/],
    [
      "a NaN",
      () => read(fileOf(weights, { nanIn: "hidden.weight" })),
      /has NaN in hidden\.weight, element 1/,
    ],
    [
      "another size",
      () => read(fileOf(weights, { hidden: 11 })),
      /has hidden\.weight as F32 \[129, 12\]; F32 \[129, 11\] is expected/,
    ],
    ["no GGUF", () => read(new Uint8Array(100)), /./],
  ];
  for (const [what, reading, says] of refused)
    test(`is refused: ${what}`, () =>
      assert.rejects(reading, (error) => {
        assert.ok(error instanceof InlayError && error.code === "invalid-model", `${error}`);
        assert.match(error.message, says);
        return true;
      }));

  test("an engine reads with it, and refuses one of another shape", async () => {
    const model = tinyGguf("tiny-llama", { seed: 4 });
    const ids = Uint32Array.from({ length: 460 }, (_, i) => 20 + ((i * i * 7 + i * 31) % 300));
    const open = (boundaries: Uint8Array<ArrayBuffer>) =>
      loadEngine(model, { attention: { prefill: "dhsa", budget: 0.2, boundaries: boundaries.buffer } });
    const engine = await open(fileOf(weights));
    const { ids: answer, end } = await collect(engine.generate(greedy(ids, 4)));
    assert.equal(answer.length, 4);
    assert.equal(end.usage.attention.prefill.policy, "dhsa");
    await engine.dispose();
    await assert.rejects(open(fileOf(weights, { channels: 48 })), /keys of 48 channels; this model has/);
  });
});
