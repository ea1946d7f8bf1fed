// Runs browser tests with web-test-runner and records their results.
//
//   node tools/test/browser.mjs [--isolated] BROWSERS FILE…      BROWSERS: JSON of findBrowsers(), of those to test
//
// tools/test/stages.mjs starts it, once with and once without cross-origin isolation. It uses the runner's core: the
// runner's own command draws on the terminal, and keeps its counts to itself.

import { createRequire } from "node:module";
import { fromRollup, nodeResolve } from "@web/dev-server-rollup";
import { chromeLauncher, puppeteerCore } from "@web/test-runner-chrome";
import { SESSION_STATUS, TestRunner } from "@web/test-runner-core";
import { canInstall, freePort, ROOT } from "../setup/shell.mjs";
import { CHROMIUM_FLAGS } from "./chromium-flags.mjs";
import { fileLine, record, withoutNoise } from "./results.mjs";
import { isolate, jsonPlugin, serveShared, typescriptPlugin, wgslPlugin } from "./server-plugins.mjs";
import { webkitLauncher } from "./webkit-launcher.mjs";

const args = process.argv.slice(2);
const isIsolated = args[0] === "--isolated";
const [browsers, ...files] = isIsolated ? args.slice(1) : args;

const FIREFOX_PREFERENCES = {
  "dom.webgpu.enabled": true,
  // Mesa's software Vulkan is on Firefox's block list.
  "gfx.webgpu.ignore-blocklist": true,
};

/** Pages have the size that they have: setting it is a command that only the newest Firefox knows. */
async function pageAsItIs({ context }) {
  const page = await context.newPage();
  page.setViewport = async () => {};
  return page;
}

const LAUNCHERS = {
  chromium: (executablePath) => chromeLauncher({ launchOptions: { executablePath, args: CHROMIUM_FLAGS } }),
  firefox: (executablePath) =>
    chromeLauncher({
      // The launcher takes any Puppeteer; this one speaks WebDriver BiDi to Firefox.
      puppeteer: puppeteerCore,
      launchOptions: {
        browser: "firefox",
        executablePath,
        extraPrefsFirefox: FIREFOX_PREFERENCES,
        defaultViewport: null,
      },
      createPage: pageAsItIs,
    }),
  webkit: (programs) => webkitLauncher(programs),
};

/**
 * The test page. `inlayTestRun` tells test/browser/harness where it runs. A rejected promise that nobody handles is
 * an error in any of our code; mocha only mentions it.
 */
const page = (testFramework) => `<!DOCTYPE html><html><head><meta charset="utf-8"></head><body><script>
globalThis.inlayTestRun = ${JSON.stringify({ isIsolated, isComplete: canInstall() })};
addEventListener("unhandledrejection", ({ reason }) => console.error("inlay-unhandled", reason));
</script><script type="module" src="${testFramework}"></script></body></html>`;

const fullName = (names) => names.filter(Boolean).join(" ");

/** Why a test was skipped: the harness's skip() says it on the console, for mocha has no room for it. */
function skipReason(session, names) {
  return session.logs.find(
    ([mark, title]) => mark === "inlay-skip" && fullName(names).startsWith(title),
  )?.[2];
}

function errorText({ name, message, stack }) {
  if (!stack) return message ?? "";
  return stack.includes(message) ? stack : `${name ?? "Error"}: ${message}\n${stack}`;
}

function* testsIn(suite, names = []) {
  for (const test of suite?.tests ?? []) yield { names: [...names, test.name], test };
  for (const inner of suite?.suites ?? []) yield* testsIn(inner, [...names, inner.name]);
}

/** The records of one file in one browser. */
function resultsOf(session, suite, file) {
  const results = [];
  for (const { names, test } of testsIn(session.testResults)) {
    const name = names.filter(Boolean).join(" › ");
    const result = { suite, file, name, status: "passed", ms: test.duration };
    if (test.skipped) {
      result.status = "skipped";
      result.detail = skipReason(session, names);
    } else if (!test.passed) {
      result.status = "failed";
      result.detail = test.error ? errorText(test.error) : "was not run, since a hook failed";
    }
    results.push(result);
  }
  // Errors outside tests: a hook failed, the page did not load, the browser died.
  const errors = session.errors.map(errorText);
  for (const [mark, reason] of session.logs)
    if (mark === "inlay-unhandled") errors.push(`unhandled rejection: ${reason?.stack ?? reason}`);
  const hasUntold = !session.passed && results.every(({ status }) => status !== "failed");
  if (errors.length > 0 || hasUntold || results.length === 0) {
    const missing = session.request404s.map((url) => `not found: ${url}`);
    const detail = [...new Set([...errors, ...missing])].join("\n") || "there is no test in it";
    results.push({ suite, file, name: "(the file)", status: "failed", detail });
  }
  return results;
}

function report(session) {
  const suite = `${session.browser.name}${isIsolated ? " isolated" : ""}`;
  const file = session.testFile.slice(ROOT.length + 1);
  const results = resultsOf(session, suite, file);
  for (const result of results) record(result);
  console.log(fileLine(suite, file, results));
  for (const log of session.logs)
    if (!String(log[0]).startsWith("inlay-")) console.log("    console:", ...log);
}

const silent = () => {};
const logger = {
  log: console.log,
  warn: console.warn,
  error: (...messages) =>
    console.log(...messages.map((m) => (m instanceof Error ? withoutNoise(m.stack) : m))),
  debug: silent,
  group: silent,
  groupEnd: silent,
  logSyntaxError: ({ message, filePath, line }) => console.log(`${filePath}:${line}: ${message}`),
};

const launchers = Object.entries(JSON.parse(browsers)).map(([name, where]) =>
  Object.assign(LAUNCHERS[name](where), { name }),
);

const runner = new TestRunner({
  rootDir: ROOT,
  files,
  browsers: launchers,
  // One file at a time in each of two browsers: the machine may have two cores, and the engine uses what it finds.
  concurrency: 1,
  concurrentBrowsers: 2,
  protocol: "http:",
  hostname: "localhost",
  port: await freePort(),
  watch: false,
  browserLogs: true,
  browserStartTimeout: 120_000,
  testsStartTimeout: 120_000,
  testsFinishTimeout: 600_000,
  coverageConfig: {},
  testFramework: {
    path: createRequire(import.meta.url).resolve("@web/test-runner-mocha/dist/autorun.js"),
    config: { timeout: 180_000 },
  },
  testRunnerHtml: page,
  middleware: [...(isIsolated ? [isolate] : []), serveShared],
  plugins: [typescriptPlugin, wgslPlugin, jsonPlugin, fromRollup(nodeResolve)({ browser: true })],
  reporters: [],
  logger,
});

const reported = new Set();
runner.sessions.on("session-status-updated", (session) => {
  // A page that reloads itself is reported finished several times.
  if (session.status !== SESSION_STATUS.FINISHED || reported.has(session.id)) return;
  reported.add(session.id);
  report(session);
});
process.on("SIGTERM", async () => {
  await Promise.allSettled(launchers.map((launcher) => launcher.stop()));
  process.exit(1);
});
runner.on("finished", () => runner.stop());
runner.on("stopped", () => record({ done: true }));
await runner.start();
