// Runs the test runners one after the other, each as a process of its own, and adds up what they report.

import { spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { HOW_TO_INSTALL, swiftshaderDriver } from "../setup/browsers.mjs";
import { ROOT, SetupError } from "../setup/shell.mjs";
import { count, countText, printDetails, readRecords } from "./results.mjs";

/** A runner that takes longer than this hangs. */
const LIMIT_MINUTES = 15;

/** Test files in a folder whose path has one of the given texts in it; all when there are none. */
function testFiles(folder, filters) {
  const files = fs
    .readdirSync(path.join(ROOT, folder), { recursive: true })
    .filter((file) => file.endsWith(".test.ts"))
    .map((file) => `${folder}/${file.split(path.sep).join("/")}`)
    .sort();
  return filters.length === 0 ? files : files.filter((file) => filters.some((text) => file.includes(text)));
}

/** Starts Node; returns its exit status, or a text that says how it ended otherwise. */
async function runNode(args, env) {
  // A process group of its own, so that nothing it started outlives it: a display, a browser that hangs.
  const child = spawn(process.execPath, args, {
    cwd: ROOT,
    env,
    stdio: ["ignore", "inherit", "inherit"],
    detached: true,
  });
  const killGroup = () => {
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // Nothing is left of it.
    }
  };
  let cause;
  const end = (why) => {
    cause ??= why;
    // The runner closes its browsers at the first signal.
    child.kill("SIGTERM");
    setTimeout(killGroup, 10_000).unref();
  };
  const interrupt = () => end("was interrupted");
  const limit = setTimeout(end, LIMIT_MINUTES * 60_000, `was stopped after ${LIMIT_MINUTES} minutes`);
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt);
  const [status, signal] = await new Promise((resolve) => child.once("exit", (...how) => resolve(how)));
  clearTimeout(limit);
  process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
  killGroup();
  return cause ?? (signal ? `was ended by ${signal}` : status);
}

/** Runs a test runner that records its results; a runner that did not get to its end counts as a failure. */
async function runRunner(suite, args, env = {}) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "inlay-test-"));
  const file = path.join(folder, "results.jsonl");
  try {
    const status = await runNode(args, { ...process.env, ...env, INLAY_RESULTS: file });
    const { results, isDone } = readRecords(file);
    const hasFailed = results.some((result) => result.status === "failed");
    let trouble;
    if (typeof status === "string") trouble = `the runner ${status}`;
    else if (!isDone) trouble = `the runner broke off with status ${status}; its last words are above`;
    else if (status !== 0 && !hasFailed)
      trouble = `the runner ended with status ${status}, but no test failed`;
    else if (results.length === 0) trouble = "no test was run";
    if (trouble)
      results.push({ suite, file: args.at(-1), name: "(the runner)", status: "failed", detail: trouble });
    return results;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** Without a filter there must be tests; with one, a runner that has none of them is passed over. */
function noFiles(suite, folder, filters) {
  if (filters.length > 0) return [];
  return [
    { suite, file: folder, name: "(the runner)", status: "failed", detail: `there is no test in ${folder}` },
  ];
}

/** Node's own tests: test/unit. */
export async function unitTests(filters) {
  const files = testFiles("test/unit", filters);
  if (files.length === 0) return noFiles("node", "test/unit", filters);
  const wgslLoader = "./test/fixtures/wgsl-loader.mjs";
  const args = [
    // Node 20 keeps relaxed SIMD behind a flag; browsers have it.
    "--experimental-wasm-relaxed-simd",
    ...["--import", "tsx"],
    ...(fs.existsSync(path.join(ROOT, wgslLoader)) ? ["--import", wgslLoader] : []),
    ...[
      "--test",
      `--test-reporter=${path.join(ROOT, "tools/test/node-reporter.mjs")}`,
      "--test-concurrency=2",
      "--test-timeout=600000", // milliseconds, of a file
    ],
  ];
  const env = { XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR ?? os.tmpdir() }; // the Vulkan loader complains without
  const driver = process.env.VK_ICD_FILENAMES ?? swiftshaderDriver();
  if (driver) env.VK_ICD_FILENAMES = driver;
  return runRunner("node", [...args, ...files], env);
}

/** Browser tests, test/browser: those for ordinary pages or those for isolated ones, in the browsers that are there. */
export async function browserTests(browsers, isIsolated, filters) {
  const files = testFiles("test/browser", filters).filter(
    (file) => file.endsWith(".both.test.ts") || file.endsWith(".isolated.test.ts") === isIsolated,
  );
  if (files.length === 0) return noFiles("browsers", "test/browser", filters);
  const present = Object.fromEntries(Object.entries(browsers).filter(([, where]) => where !== undefined));
  if (Object.keys(present).length === 0) return [];
  const args = [
    "tools/test/browser.mjs",
    ...(isIsolated ? ["--isolated"] : []),
    JSON.stringify(present),
    ...files,
  ];
  return runRunner("browsers", args);
}

/** Browsers that are not on this machine, as skipped tests. */
export function absentBrowsers(browsers) {
  return Object.keys(browsers)
    .filter((name) => browsers[name] === undefined)
    .map((name) => {
      const detail = `not found; ${HOW_TO_INSTALL[name]}`;
      return { suite: name, file: "test/browser", name: "all of it", status: "skipped", detail };
    });
}

/** Collects results stage by stage, and prints the account at the end. */
export class TestRun {
  results = [];
  times = [];

  /** Runs a stage; its results, if it has any, count. An error in it is a failure, with which the run goes on. */
  async stage(name, work) {
    const start = Date.now();
    console.log(`\n── ${name}`);
    let isGood = true;
    try {
      const results = await work();
      if (Array.isArray(results)) this.results.push(...results);
    } catch (error) {
      isGood = false;
      const detail = error instanceof SetupError ? error.message : error.stack;
      this.results.push({ suite: name, file: "", name: "(the stage)", status: "failed", detail });
    }
    this.times.push({ name, seconds: (Date.now() - start) / 1000 });
    return isGood;
  }

  /** Prints what failed, what was skipped, the times, and last the counts; returns the exit status. */
  finish() {
    printDetails(this.results);
    console.log("");
    for (const { name, seconds } of this.times)
      console.log(`${name.padEnd(28)}${seconds.toFixed(1).padStart(8)} s`);
    const counts = count(this.results);
    if (counts.passed + counts.failed === 0) console.log("no test was run");
    console.log(countText(counts));
    return counts.failed === 0 && counts.passed > 0 ? 0 : 1;
  }
}
