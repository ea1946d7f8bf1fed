// How test runners hand over what happened: one JSON record a line, in the file that INLAY_RESULTS names.
//
//   { suite, file, name, status: "passed" | "failed" | "skipped", ms?, detail? }
//                                                             detail: the error, or why it was skipped
//   { done: true }                                                            the runner came to its own end
//
// A file, since standard output belongs to the tests, and since what a crashing runner wrote before is still there.

import fs from "node:fs";

/** Appends a record. */
export function record(entry) {
  fs.appendFileSync(process.env.INLAY_RESULTS, `${JSON.stringify(entry)}\n`);
}

/** The records that a runner left. */
export function readRecords(file) {
  if (!fs.existsSync(file)) return { results: [], isDone: false };
  const entries = fs
    .readFileSync(file, "utf8")
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  return { results: entries.filter((entry) => !entry.done), isDone: entries.some((entry) => entry.done) };
}

/** { passed, failed, skipped } of records. */
export function count(results) {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const { status } of results) counts[status] += 1;
  return counts;
}

/** "12 passed, 0 failed, 1 skipped"; what was skipped is left out when nothing was. */
export function countText({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

/** One line for a file whose tests have ended; with its time when that is worth knowing. */
export function fileLine(suite, file, results) {
  const counts = count(results);
  const seconds = results.reduce((sum, { ms = 0 }) => sum + ms, 0) / 1000;
  const time = seconds >= 1 ? ` (${seconds.toFixed(1)} s)` : "";
  return `  ${counts.failed > 0 ? "✗" : "✓"} ${suite.padEnd(19)} ${file}: ${countText(counts)}${time}`;
}

/** A stack trace without the test frameworks' own frames. */
export function withoutNoise(text) {
  const isNoise = (line) =>
    /^\s+at .*(node:internal|node_modules\/(@web|chai|puppeteer-core|koa))/.test(line);
  return text
    .split("\n")
    .filter((line) => !isNoise(line))
    .join("\n");
}

const indent = (text) => text.replace(/^/gm, "      ");

/** What failed, with its error, and what was skipped, with the reason. */
export function printDetails(results) {
  const failed = results.filter(({ status }) => status === "failed");
  const skipped = results.filter(({ status }) => status === "skipped");
  if (skipped.length > 0) console.log(`\nSkipped (${skipped.length}):`);
  for (const { suite, file, name, detail } of skipped)
    console.log(`  ${suite}  ${file} › ${name}: ${detail || "no reason given"}`);
  if (failed.length > 0) console.log(`\nFailed (${failed.length}):`);
  for (const { suite, file, name, detail } of failed)
    console.log(
      `\n  ✗ ${suite}  ${file} › ${name}\n${indent(withoutNoise(detail || "no error was reported"))}`,
    );
}
