// What the scripts of package.json call: `node tools/run.mjs VERB …`. It works from a clean clone: what is missing is
// installed and what changed is built first. Until `npm ci` has run it uses nothing but Node.

import path from "node:path";
import { build } from "./build.mjs";
import { buildWasm } from "./build-wasm.mjs";
import { check } from "./check.mjs";
import { ensureBrowsers } from "./setup/browsers.mjs";
import { withLock } from "./setup/lock.mjs";
import { ensureNodeModules } from "./setup/npm.mjs";
import { ROOT, run, SetupError } from "./setup/shell.mjs";
import { recipeTests } from "./test/recipe.mjs";
import { absentBrowsers, browserTests, TestRun, unitTests } from "./test/stages.mjs";

const packages = () => withLock(path.join(ROOT, "build/npm.lock"), ensureNodeModules);

/** Set-up, build, and then those of the suites that are asked for. "recipe" alone fetches the Python packages it needs. */
async function test(suites, words = []) {
  const testRun = new TestRun();
  let browsers;
  const isReady = await testRun.stage("set-up", async () => {
    await packages();
    if (suites.some((suite) => suite !== "recipe")) browsers = await ensureBrowsers();
  });
  if (isReady) {
    // When the build fails, that counts, and the tests still say what they can.
    await testRun.stage("build", build);
    if (suites.includes("check")) await testRun.stage("check", check);
    if (suites.includes("unit")) await testRun.stage("Node", () => unitTests(words));
    if (suites.includes("browser")) {
      const named = Object.keys(browsers).filter((name) => words.includes(name));
      if (named.length > 0) browsers = Object.fromEntries(named.map((name) => [name, browsers[name]]));
      const filters = words.filter((word) => !named.includes(word));
      await testRun.stage("browsers", () => browserTests(browsers, false, filters));
      await testRun.stage("browsers, isolated pages", () => browserTests(browsers, true, filters));
      testRun.results.push(...absentBrowsers(browsers));
    }
    if (suites.includes("recipe"))
      await testRun.stage("recipe of the recall model", () => recipeTests({ installs: suites.length === 1 }));
  }
  process.exitCode = testRun.finish();
}

/** Runs a script of ours that other scripts prepare for. */
function script(file, args, flags = []) {
  run(process.execPath, [...flags, file, ...args]);
}

const VERBS = {
  async demo(args) {
    await packages();
    await build();
    script("tools/demo.mjs", args);
  },
  test: () => test(["check", "unit", "browser", "recipe"]),
  "test:recipe": () => test(["recipe"]),
  /** Words: parts of the paths of the files to run. */
  "test:unit": (words) => test(["unit"], words),
  /** Words: the same, and names of the browsers to run them in. */
  "test:browser": (words) => test(["browser"], words),
  async build() {
    await packages();
    await build();
  },
  "build:wasm": buildWasm,
  async check() {
    await packages();
    const results = await check();
    for (const { name, status, detail } of results) console.log(`${status}: ${name}\n${detail}`);
    if (results.some(({ status }) => status === "failed")) process.exitCode = 1;
  },
  async bench(args) {
    await packages();
    await ensureBrowsers();
    await build();
    script("bench/run.ts", args, [
      ...["--experimental-wasm-relaxed-simd", "--import", "tsx"],
      ...["--import", "./test/fixtures/wgsl-loader.mjs"],
    ]);
  },
};

const [verb, ...args] = process.argv.slice(2);
try {
  if (Number.parseInt(process.versions.node, 10) < 20)
    throw new SetupError(`Node 20 or newer is needed, this is ${process.version}; see https://nodejs.org`);
  if (!VERBS[verb]) throw new SetupError(`usage: node tools/run.mjs ${Object.keys(VERBS).join(" | ")}`);
  await VERBS[verb](args);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`inlay: ${error.message}`);
  process.exitCode = 1;
}
