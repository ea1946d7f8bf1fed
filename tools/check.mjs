// `npm run check`: formatting, lint and types. Anything found is a failure.

import { spawn } from "node:child_process";
import path from "node:path";
import { ROOT } from "./setup/shell.mjs";

const BIOME = "node_modules/@biomejs/biome/bin/biome";
const TSC = "node_modules/typescript/bin/tsc";
const types = (config) => [
  TSC,
  "-p",
  config,
  "--incremental",
  "--tsBuildInfoFile",
  `build/check/${config}.tsbuildinfo`,
];

const CHECKS = [
  { name: "format and lint", args: [BIOME, "check", "--error-on-warnings", "--no-errors-on-unmatched"] },
  { name: "types of what runs in browsers", args: types("tsconfig.json") },
  { name: "types of everything, Node's and the tests' included", args: types("tsconfig.node.json") },
];

async function runCheck({ name, args }) {
  const [program, ...rest] = args;
  const child = spawn(process.execPath, [path.join(ROOT, program), ...rest], { cwd: ROOT });
  let output = "";
  child.stdout.on("data", (text) => (output += text));
  child.stderr.on("data", (text) => (output += text));
  const status = await new Promise((resolve) => child.once("close", resolve));
  return {
    suite: "check",
    file: "npm run check",
    name,
    status: status === 0 ? "passed" : "failed",
    detail: output,
  };
}

/** Runs all checks; returns a test result for each (tools/test/results.mjs). */
export function check() {
  return Promise.all(CHECKS.map(runCheck));
}
