import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isLeftOut, PEER_CELLS } from "../../bench/peer-cells.ts";
import { promptMaker } from "../../bench/prompts.ts";
import { type ReportSection, renderReport } from "../../bench/render.ts";
import {
  type BenchReport,
  type BenchResult,
  mergeReport,
  readReport,
  writeReport,
} from "../../bench/report.ts";
import { isAskedFor } from "../../bench/section.ts";
import { betterBy, limitResult, median, pairedResult } from "../../bench/statistics.ts";

const result = (id: string, value = 2): BenchResult => ({
  ...{ id, value, unit: "tokens/s", baseline: 1, ratio: value, n: 3, min: value - 1, max: value + 1 },
});

const report = (results: BenchResult[], changes: Partial<BenchReport> = {}): BenchReport => ({
  ...{ machine: "a machine", versions: { inlay: "1" }, date: "2026-11-21T12:00:00.000Z", results },
  ...changes,
});

test("the median is the middle value, or the mean of the two", () => {
  assert.equal(median([5]), 5);
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([10, 9, 1, 2]), 5.5);
  assert.throws(() => median([]), RangeError);
});

test("the median leaves its argument as it is", () => {
  const values = [3, 1, 2];
  median(values);
  assert.deepEqual(values, [3, 1, 2]);
});

test("better is more of a rate and less of a time or size", () => {
  assert.equal(betterBy("tokens/s", 30, 10), 3);
  assert.equal(betterBy("GB/s", 5, 20), 0.25);
  assert.equal(betterBy("s", 2, 10), 5);
  assert.equal(betterBy("KB", 100, 50), 0.5);
});

test("ratios are formed within rounds, not between medians", () => {
  // The machine was slow for everyone in the second round; the medians of each alone would give 30 / 10.
  const { value, baseline, ratio, min, max, n } = pairedResult("x", "tokens/s", [40, 4, 30], [10, 2, 20]);
  assert.deepEqual(
    { value, baseline, ratio, min, max, n },
    {
      ...{ value: 30, baseline: 10, ratio: 2, min: 1.5, max: 4, n: 3 },
    },
  );
});

test("pairs must be complete", () => {
  assert.throws(() => pairedResult("x", "s", [1, 2], [1]), /x: 2 values and 1 baselines/);
});

test("beside a limit, the ratio is the share of it", () => {
  assert.deepEqual(limitResult("k", "GMAC/s", [10, 30, 20], 80), {
    ...{ id: "k", value: 20, unit: "GMAC/s", baseline: 80, ratio: 0.25, n: 3, min: 0.125, max: 0.375 },
  });
});

test("a run replaces its ids where they stand, adds new ones, and keeps the rest", () => {
  const before = report([result("a"), result("b"), result("other-bench")]);
  const merged = mergeReport(
    before,
    report([result("b", 7), result("c")], {
      versions: { chromium: "156" },
      date: "2026-11-22T00:00:00.000Z",
    }),
  );
  assert.deepEqual(
    merged.results.map(({ id, value }) => [id, value]),
    [
      ["a", 2],
      ["b", 7],
      ["other-bench", 2],
      ["c", 2],
    ],
  );
  assert.deepEqual(merged.versions, { inlay: "1", chromium: "156" });
  assert.equal(merged.date, "2026-11-22T00:00:00.000Z");
  assert.deepEqual(
    before.results.map(({ value }) => value),
    [2, 2, 2],
  );
});

test("the first run makes the report", () => {
  assert.deepEqual(mergeReport(undefined, report([result("a")])).results, [result("a")]);
});

test("a report that is written and read is the same, to four digits", () => {
  const folder = mkdtempSync(join(tmpdir(), "inlay-bench-"));
  try {
    const file = join(folder, "report.json");
    assert.equal(readReport(file), undefined);
    writeReport(report([result("a", 123.456789), result('q"uote')]), file);
    const back = readReport(file)!;
    assert.deepEqual(Object.keys(back), ["machine", "versions", "date", "results"]);
    assert.deepEqual(Object.keys(back.results[0]!), [
      ...["id", "value", "unit", "baseline", "ratio", "n", "min", "max"],
    ]);
    assert.equal(back.results[0]!.value, 123.5);
    assert.equal(back.results[1]!.id, 'q"uote');
    // One result a line: changes can be read in a diff.
    assert.match(readFileSync(file, "utf8"), /\n {4}\{"id":"a",.*\},\n/);
    writeReport(report([]), file);
    assert.deepEqual(readReport(file)!.results, []);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const SECTION: ReportSection = {
  title: "Apples",
  about: "About apples.",
  baseline: "pears",
  owns: (id) => id.startsWith("apple/"),
  ids: ["apple/1", "apple/2", "apple/3"],
  leftOut: [{ what: "quinces", reason: "nobody has any" }],
};

test("the report shows sections in order, and in them the ids in order", () => {
  const markdown = renderReport(report([result("zebra"), result("apple/2"), result("apple/1", 0.5)]), [
    SECTION,
  ]);
  assert.match(markdown, /machine: a machine\n- date of the last run: 2026-11-21\n- versions: inlay 1\n/);
  assert.match(markdown, /## Apples\n\nAbout apples.\n\n\| id \| Inlay \| pears \|/);
  assert.match(
    markdown,
    /\| `apple\/1` \| 0\.5000 tokens\/s \| 1\.000 \| \*\*0\.50\*\* \| -0\.50–1\.50 \| 3 \|/,
  );
  const places = ["`apple/1`", "`apple/2`", "## Other results", "`zebra`", "## Not measured"].map((text) =>
    markdown.indexOf(text),
  );
  assert.ok(!places.includes(-1), String(places));
  assert.deepEqual(
    places,
    [...places].sort((a, b) => a - b),
  );
});

test("the report says what was not measured, and why", () => {
  const markdown = renderReport(report([result("apple/1")]), [SECTION]);
  assert.match(markdown, /- quinces: nobody has any\n- not run yet: `apple\/2`, `apple\/3`\n$/);
  assert.doesNotMatch(markdown, /Other results/);
});

test("a section without results has no heading", () => {
  assert.doesNotMatch(renderReport(report([]), [SECTION]), /## Apples/);
});

test("cells are chosen by parts of their ids", () => {
  const id = "wllama-2.3.1/decode/short/q4_0/1t/relaxed";
  for (const filter of [
    ...[undefined, "decode", "decode/short/q4_0/1t", "2.3.1", "wllama-2.3.1", "q8_0,q4_0", "decode/*/1t", id],
  ])
    assert.ok(isAskedFor(id, filter), filter);
  for (const filter of ["prefill", "q4_0/2t", "ecode", "dec", "q4", "2x3x1", "short/1t", ""])
    assert.ok(!isAskedFor(id, filter), filter);
});

test("the cells are the design's: two rivals, five works, two types, two thread counts, two builds", () => {
  assert.equal(PEER_CELLS.length, 2 * 5 * 2 * 2 * 2);
  assert.equal(new Set(PEER_CELLS.map(({ id }) => id)).size, PEER_CELLS.length);
  const of231 = PEER_CELLS.filter(({ peer }) => peer === "wllama-2.3.1");
  assert.ok(of231.every((cell) => !isLeftOut(cell)));
  for (const id of [
    "prefill/128/q8_0/2t/plain",
    "prefill/512/q4_0/1t/relaxed",
    "decode/2048/q4_0/1t/relaxed",
  ])
    assert.ok(
      of231.some((cell) => cell.id === `wllama-2.3.1/${id}`),
      id,
    );
});

test("prompts have the length asked for, differ from their first token on, and say the same as text", () => {
  const makePrompt = promptMaker("smollm2-135m");
  const first = makePrompt(512, 0);
  assert.equal(first.ids.length, 512);
  assert.equal(first.text.split(" ").length, 513);
  assert.deepEqual(makePrompt(16, 0).ids, first.ids.slice(0, 16));
  const openings = Array.from({ length: 20 }, (_, seed) => makePrompt(1, seed).ids[0]);
  assert.equal(new Set(openings).size, 20);
});
