/** The needle evaluation: what its cases promise, scoring, the report and its heat map. The model is a real, tiny one. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { heatMap } from "../../src/eval/heat-map.ts";
import { type NeedleReport, needlePrompt } from "../../src/eval/needle.ts";
import { countTokens, makeNeedleCase, NEEDLE_TASKS, type NeedleTask } from "../../src/eval/needle-cases.ts";
import { fill, heldOut } from "../../src/eval/needle-world.ts";
import grammar from "../../src/eval/recall-grammar.json";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";

const TASKS = Object.keys(NEEDLE_TASKS) as NeedleTask[];
const make = (task: NeedleTask, depth: number, index: number, length = 1024) =>
  makeNeedleCase({ task, length, depth, index, seed: 5 });

/** Lower case, so that a fact is found at the beginning of a sentence too. */
const holds = (document: string, fact: string) => document.toLowerCase().includes(fact.toLowerCase());

describe("cases", () => {
  test("are the same for the same numbers, and others for others", () => {
    assert.deepEqual(make("multi-key", 0.5, 1), make("multi-key", 0.5, 1));
    const documents = TASKS.flatMap((task) => [0, 1, 2].map((index) => make(task, 0.5, index).document));
    assert.equal(new Set(documents).size, documents.length);
  });

  for (const length of [512, 1024, 4096])
    test(`of ${length} tokens have about that length`, () => {
      for (const task of TASKS) {
        const tokens = countTokens(needlePrompt(make(task, 0.5, 0, length)));
        assert.ok(tokens <= length - 8 && tokens > length - 100, `${task}: ${tokens} tokens`);
      }
    });

  test("have the fact of a lookup in the text, once, at its depth", () => {
    for (const task of ["single", "multi-key"] as const)
      for (const depth of [0, 0.25, 0.5, 0.75, 1])
        for (let index = 0; index < 5; index++) {
          const { document, answer } = make(task, depth, index);
          const fact = answer.slice(0, -1).toLowerCase();
          const at = document.toLowerCase().indexOf(fact);
          assert.ok(at >= 0, `${answer} is not in the text`);
          assert.equal(document.toLowerCase().indexOf(fact, at + 1), -1);
          const found = document.slice(0, at).split("\n").length / document.split("\n").length;
          assert.ok(Math.abs(found - depth) < 0.05, `${found} instead of ${depth}`);
        }
  });

  test("of several facts have all of them", () => {
    for (let index = 0; index < 10; index++) {
      for (const task of ["multi-query", "two-hop", "variable"] as const) {
        const { document, answer } = make(task, 0.3, index);
        const facts = answer.slice(0, -1).split(". ");
        assert.ok(facts.length >= 2);
        for (const fact of facts) assert.ok(holds(document, fact), `${task}: ${fact}`);
      }
    }
  });

  test("list the values in the text's order", () => {
    for (let index = 0; index < 10; index++) {
      const { document, answer } = make("multi-value", 0.2, index);
      const [, many, key, values] = /^The (\w+) of (\w+) are (.+)\.$/.exec(answer)!;
      const { one } = grammar.lists.find((list) => list.many === many)!;
      const pattern = new RegExp(`one ${one} of ${key} is (\\w+)`, "gi");
      const found = [...document.matchAll(pattern)].map(([, value]) => value);
      assert.deepEqual(found, values!.split(/, | and /));
    }
  });

  test("count what is there", () => {
    for (let index = 0; index < 10; index++) {
      const { document, answer } = make("count", 0.2, index);
      const [, key, numeral] = /^The count of bells at (\w+) is (\w+)\.$/.exec(answer)!;
      const times = document.match(new RegExp(`a bell rang at ${key}`, "gi"))!.length;
      assert.equal(grammar.tasks.count.numerals[times], numeral);
    }
  });

  test("of the task absent have no such fact", () => {
    for (let index = 0; index < 20; index++) {
      const { document, answer } = make("absent", 0.5, index);
      const subject = answer.replace(" not in the text.", "");
      assert.match(answer, /^The \w+ of \w+ is not in the text\.$/);
      assert.ok(!holds(document, subject), `${subject} is in the text`);
    }
  });

  test("use only names and numbers that training never sees", () => {
    const { modulus } = grammar.heldOut;
    for (const kind of ["places", "people"] as const) {
      const { onsets, endings } = grammar[kind];
      const trained = onsets.flatMap((onset, i) =>
        endings.filter((_, j) => (i + j) % modulus !== 0).map((ending) => onset + ending),
      );
      assert.equal(new Set([...trained, ...heldOut(kind)]).size, onsets.length * endings.length);
      const { document } = make("multi-key", 0.5, 0, 4096);
      const words = new Set(document.match(/\w+/g));
      assert.deepEqual(
        trained.filter((name) => words.has(name)),
        [],
      );
    }
  });

  test("need room", () => assert.throws(() => make("single", 0, 0, 100), /100 tokens are too few/));
});

test("a slot that nothing fills is an internal error", () =>
  assert.throws(() => fill("the {attr} of {key}", { attr: "code" }), /nothing fills \{key\}/));

describe("inlay eval --needle", () => {
  const folder = mkdtempSync(join(tmpdir(), "inlay-needle-"));
  after(() => rmSync(folder, { recursive: true }));
  const model = join(folder, "tiny.gguf");
  // Its vocabulary needs about three tokens for one of the recall model's, so it gets room for them.
  const spec = { ...PRESETS["tiny-llama"], contextLength: 2048 };
  writeFileSync(model, tinyGguf(spec, { type: "Q8_0", seed: 3, name: "tiny" }));
  const CLI = fileURLToPath(new URL("../../dist/cli.mjs", import.meta.url));
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [CLI, "eval", model, ...args, "--device", "wasm", "--threads", "1"], {
      encoding: "utf8",
    });

  test("asks every task, length and depth, and draws the scores", () => {
    const svg = join(folder, "needles.svg");
    const args = ["--needle", "--tasks", "single,count", "--lengths", "256", "--depths", "0,100"];
    const { status, stdout, stderr } = run(...args, "--count", "1", "--svg", svg, "--json");
    assert.equal(status, 0, stderr);
    const report: NeedleReport = JSON.parse(stdout);
    assert.equal(report.answers.length, 4);
    assert.deepEqual(Object.keys(report.byDepth.single!["256"]!), ["0", "1"]);
    for (const { answer, expected, isRight, promptTokens } of report.answers) {
      assert.equal(isRight, answer === expected);
      assert.ok(promptTokens > 200);
    }
    const drawn = readFileSync(svg, "utf8");
    assert.equal(drawn, heatMap(report, "tiny Q8_0"));
    assert.equal(drawn.match(/<rect x=/g)?.length, 4);
  });

  test("pins each document and asks its question of that", () => {
    const args = ["--needle", "--tasks", "single", "--lengths", "256", "--depths", "0,100", "--count", "1"];
    const answers = (...more: string[]): NeedleReport["answers"] => {
      const { status, stdout, stderr } = run(...args, "--kv", "f32", ...more, "--json");
      assert.equal(status, 0, stderr);
      return JSON.parse(stdout).answers;
    };
    const whole = answers();
    const pinned = answers("--pinned", "--bits", "16");
    assert.deepEqual(
      pinned.map(({ expected }) => expected),
      whole.map(({ expected }) => expected),
    );
    // The document is the system message then: a few tokens more.
    for (const [i, { promptTokens }] of pinned.entries()) {
      assert.ok(
        promptTokens > whole[i]!.promptTokens,
        `${promptTokens} pinned, ${whole[i]!.promptTokens} whole`,
      );
      assert.ok(promptTokens < whole[i]!.promptTokens + 32, `${promptTokens}, ${whole[i]!.promptTokens}`);
    }
    assert.deepEqual(
      answers("--pinned").map(({ promptTokens }) => promptTokens),
      pinned.map(({ promptTokens }) => promptTokens),
    );
  });

  const mistakes: [string, string[], number, RegExp][] = [
    ["no kind of evaluation", [], 2, /--needle or --perplexity FILE is missing/],
    ["an unknown task", ["--needle", "--tasks", "single,sing"], 2, /--tasks has sing; there are single/],
    ["a length over the context", ["--needle", "--lengths", "4096"], 1, /length is 4096.*from 256 to/],
    ["a depth over 100 %", ["--needle", "--depths", "101"], 1, /depth is 1.01/],
    ["bits of what is not pinned", ["--needle", "--bits", "4"], 2, /--bits goes with --pinned/],
    [
      "a sparsity of what is not pinned",
      ["--needle", "--sparsity", "0.9"],
      2,
      /--sparsity goes with --pinned/,
    ],
    ["a sparsity of 1", ["--needle", "--pinned", "--sparsity", "1"], 1, /sparsity is 1/],
    ["bits that there are not", ["--needle", "--pinned", "--bits", "3"], 1, /bits is 3/],
    ["no case at all", ["--needle", "--count", "0"], 1, /count is 0/],
  ];
  for (const [name, args, status, message] of mistakes)
    test(`refuses ${name}`, () => {
      const result = run(...args);
      assert.match(result.stderr, message);
      assert.equal(result.status, status);
    });
});
