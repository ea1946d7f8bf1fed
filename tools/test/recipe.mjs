// Whether the recipes still work. The recall model's: its smallest configuration trains, and what it writes runs in Inlay.
// The boundary predictor's: it learns from that model's attention, and Inlay computes its logits.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { ensurePython, findPython } from "../setup/python.mjs";
import { ROOT } from "../setup/shell.mjs";

const RECIPE = path.join(ROOT, "tools/recall-model");
const OUT = path.join(ROOT, "build/recall-smoke");
const CLI = path.join(ROOT, "dist/cli.mjs");
const VARIANTS = ["f16", "q8_0", "q4_0"];
const FILE = "tools/recall-model";

/** It takes about a minute on two cores. */
const LIMIT_MINUTES = 10;

class Failure extends Error {}

function check(condition, message) {
  if (!condition) throw new Failure(message);
}

/** Runs a program to its end; returns what it printed. */
function output(program, args) {
  const { error, status, stdout, stderr } = spawnSync(program, args, {
    cwd: ROOT,
    encoding: "utf8",
    timeout: LIMIT_MINUTES * 60_000,
    maxBuffer: 1 << 26,
  });
  check(!error, `cannot run ${program}: ${error?.message}`);
  check(status === 0, `${path.basename(program)} ended with status ${status}:\n${stdout}${stderr}`);
  return stdout;
}

const python = (interpreter, script, ...args) =>
  output(interpreter, [path.join(RECIPE, script), "--config", "smoke", "--out", OUT, ...args]);

const modelFile = (variant) => path.join(OUT, `inlay-recall-${variant}.gguf`);

function trains(interpreter) {
  fs.rmSync(OUT, { recursive: true, force: true });
  fs.mkdirSync(OUT, { recursive: true });
  python(interpreter, "recipe.py");
  const log = fs.readFileSync(path.join(OUT, "log.jsonl"), "utf8").trim().split("\n").map(JSON.parse);
  const losses = log.flatMap(({ loss }) => (loss === undefined ? [] : [loss]));
  check(losses.length >= 3, `the log has ${losses.length} losses`);
  const [first, last] = [losses[0], losses.at(-1)];
  check(last < 0.6 * first, `the loss went from ${first} to ${last}; 0.6 of the first was expected`);
}

function hasScores() {
  const { scores, files } = JSON.parse(fs.readFileSync(path.join(OUT, "scores.json"), "utf8"));
  const asked = Object.values(scores["256"]).reduce((sum, [, total]) => sum + total, 0);
  check(asked > 20, `only ${asked} questions were asked`);
  for (const variant of VARIANTS) {
    const { size } = fs.statSync(modelFile(variant));
    check(
      size === files[`inlay-recall-${variant}.gguf`].bytes,
      `${variant} has ${size} bytes, not those it should`,
    );
  }
}

/** Greedy ids of the f16 file in Inlay against PyTorch's with the same weights. */
function inlayAgrees(interpreter) {
  for (const { prompt, ids, smallestGap } of JSON.parse(python(interpreter, "greedy.py", "--count", "3"))) {
    const sampling = ["--temperature", "0", "--max-tokens", String(ids.length), "--json"];
    const device = ["--device", "wasm", "--threads", "1"];
    const args = ["run", modelFile("f16"), "--raw", "--prompt", prompt, ...sampling, ...device];
    const { tokenIds } = JSON.parse(output(process.execPath, [CLI, ...args]));
    const message = `Inlay: ${tokenIds}\nPyTorch: ${ids}\nclosest decision: ${smallestGap}`;
    check(String(tokenIds) === String(ids), message);
  }
}

function quantizedFilesRun() {
  for (const variant of ["q8_0", "q4_0"]) {
    const args = [
      "run",
      modelFile(variant),
      "--prompt",
      "What is the code of Velmora?",
      "--max-tokens",
      "4",
      "--json",
    ];
    const { tokenIds, usage } = JSON.parse(output(process.execPath, [CLI, ...args, "--temperature", "0"]));
    check(tokenIds.length === usage.completion_tokens && tokenIds.length > 0, `${variant}: no answer`);
  }
}

const BOUNDARIES = path.join(ROOT, "tools/boundary-predictor");

function predictorTrains(interpreter) {
  const folder = path.join(OUT, "boundaries");
  const sample = path.join(ROOT, "models/recall/sample-document.txt");
  const flags = ["--import", "tsx", "--import", "./test/fixtures/wgsl-loader.mjs"];
  const size = ["--tokens", "128", "--documents", "9"];
  output(process.execPath, [
    ...flags,
    path.join(BOUNDARIES, "dump.ts"),
    modelFile("f16"),
    sample,
    folder,
    ...size,
  ]);
  const file = path.join(folder, "boundaries.gguf");
  const how = ["--epochs", "8", "--rate", "1e-3", "--hidden", "32"];
  output(interpreter, [path.join(BOUNDARIES, "train.py"), "--dump", folder, "--out", file, ...how]);
  const { losses, precision } = JSON.parse(fs.readFileSync(path.join(folder, "boundaries.json"), "utf8"));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  check(mean(losses.slice(-8)) < 0.95 * mean(losses.slice(0, 8)), `the losses: ${losses.join(", ")}`);
  check(precision > 0 && precision <= 1, `precision ${precision}`);
  const agreement = path.join(BOUNDARIES, "compare.ts");
  const says = output(process.execPath, [...flags, agreement, folder, file]);
  check(/^largest difference \S+ of \d+ logits, all within/m.test(says), says);
}

/**
 * Results of the recipe's tests; one skipped result where Python or its packages are missing.
 * `installs`: fetch them first, where they can be had.
 */
export async function recipeTests({ installs }) {
  const record = (name, status, ms, detail) => ({ suite: "recipe", file: FILE, name, status, ms, detail });
  const { python: interpreter, reason } = await (installs ? ensurePython() : findPython());
  if (reason !== undefined) return [record("all of it", "skipped", 0, reason)];
  const results = [];
  const test = (name, work) => {
    const start = Date.now();
    let error;
    try {
      work(interpreter);
    } catch (thrown) {
      error = thrown;
    }
    const status = error ? "failed" : "passed";
    const detail = error instanceof Failure ? error.message : error?.stack;
    results.push(record(name, status, Date.now() - start, detail));
    console.log(`  ${error ? "✗" : "✓"} recipe  ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
    return !error;
  };
  if (test("the smallest configuration trains: the loss falls below 0.6 of the first", trains)) {
    test("scores and three GGUF files are written", hasScores);
    test("Inlay's greedy answers with the f16 file are PyTorch's", inlayAgrees);
    test("the Q8_0 and Q4_0 files run in Inlay", quantizedFilesRun);
    test("a boundary predictor trains on its attention, and Inlay computes its logits", predictorTrains);
  }
  return results;
}
