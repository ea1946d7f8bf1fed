// Builds dist/: bundles, declarations, WASM modules. Does nothing when its inputs are those of the last build.

import { spawn } from "node:child_process";
import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
import { licenseTexts } from "./build-licenses.mjs";
import { buildWasm } from "./build-wasm.mjs";
import { withLock } from "./setup/lock.mjs";
import { ROOT, SetupError, say } from "./setup/shell.mjs";

const DIST = path.join(ROOT, "dist");
const STAGING = path.join(ROOT, "build/staging");
const WASM = path.join(ROOT, "build/wasm");
const STAMP = path.join(ROOT, "build/dist.json");

const INPUTS = [
  ...["src", "workers", "shaders", "build/wasm"],
  ...["package-lock.json", "rollup.config.mjs", "tsconfig.json", "tsconfig.types.json"],
  ...["build.mjs", "build-licenses.mjs", "build-ts.mjs", "build-wgsl.mjs"].map((file) => `tools/${file}`),
];

/** What a page loads: all browser bundles and one of the WASM modules. */
const SIZE_LIMIT = 1_000_000;

/** Paths of the files in a folder, at any depth, relative to it. */
function filesIn(folder) {
  if (!fs.existsSync(folder)) return [];
  return fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(folder, path.join(entry.parentPath ?? entry.path, entry.name)))
    .sort();
}

function inputHash() {
  const hash = crypto.createHash("sha256");
  for (const input of INPUTS) {
    const full = path.join(ROOT, input);
    const isFolder = fs.existsSync(full) && fs.statSync(full).isDirectory();
    const files = isFolder ? filesIn(full).map((file) => path.join(full, file)) : [full];
    for (const file of files)
      if (fs.existsSync(file))
        hash
          .update(`${path.relative(ROOT, file)}\0`)
          .update(fs.readFileSync(file))
          .update("\0");
  }
  return hash.digest("hex");
}

function isUpToDate(hash) {
  if (!fs.existsSync(STAMP)) return false;
  const last = JSON.parse(fs.readFileSync(STAMP, "utf8"));
  return last.hash === hash && last.files.every((file) => fs.existsSync(path.join(DIST, file)));
}

async function bundle() {
  const { rollup } = await import("rollup");
  const { default: configs } = await import("../rollup.config.mjs");
  const bundled = [];
  // All at once: one is minified in a thread while the next is put together.
  const write = async ({ output, ...input }) => {
    const result = await rollup(input);
    await result.write({ ...output, dir: STAGING });
    bundled.push(...result.watchFiles);
    await result.close();
  };
  await Promise.all(configs.map(write));
  fs.writeFileSync(path.join(STAGING, "THIRD-PARTY-LICENSES.txt"), licenseTexts(bundled));
}

/** TypeScript's declarations of src/index.ts and what it reaches. */
async function declarations() {
  const tsc = path.join(ROOT, "node_modules/typescript/bin/tsc");
  const child = spawn(process.execPath, [tsc, "-p", "tsconfig.types.json"], { cwd: ROOT, stdio: "inherit" });
  const status = await new Promise((resolve) => child.once("exit", resolve));
  if (status !== 0) throw new SetupError("the type declarations could not be written; see the errors above");
}

/** Puts the staged files into dist/ one by one, each whole, and removes what no longer belongs there. */
function publish() {
  const files = filesIn(STAGING);
  for (const file of files) {
    fs.mkdirSync(path.dirname(path.join(DIST, file)), { recursive: true });
    fs.renameSync(path.join(STAGING, file), path.join(DIST, file));
  }
  for (const file of filesIn(DIST)) if (!files.includes(file)) fs.rmSync(path.join(DIST, file));
  return files;
}

function reportSizes(files) {
  const rows = [];
  for (const file of files) {
    if (!/\.(js|mjs|wasm)$/.test(file)) continue;
    const bytes = fs.readFileSync(path.join(DIST, file));
    rows.push({ file, raw: bytes.length, gzipped: zlib.gzipSync(bytes, { level: 9 }).length });
  }
  const number = (n) => n.toLocaleString("en").padStart(11);
  console.log(`${"dist/".padEnd(34)}${"bytes".padStart(11)}${"gzipped".padStart(11)}`);
  for (const { file, raw, gzipped } of rows)
    console.log(`  ${file.padEnd(32)}${number(raw)}${number(gzipped)}`);
  const gzippedOf = (test) => rows.filter(({ file }) => test(file)).map(({ gzipped }) => gzipped);
  const js = gzippedOf((file) => file.endsWith(".js") && !file.startsWith("lazy")).reduce((a, b) => a + b, 0);
  const total = js + Math.max(0, ...gzippedOf((file) => file.endsWith(".wasm")));
  console.log(
    `  ${"JavaScript + one WASM build".padEnd(43)}${number(total)}  (limit ${SIZE_LIMIT.toLocaleString("en")})`,
  );
  if (total > SIZE_LIMIT)
    throw new SetupError("the bundles and one WASM build are over the size limit; see the table");
}

async function buildDist() {
  const hash = inputHash();
  if (isUpToDate(hash)) return;
  say("building dist/");
  fs.rmSync(STAGING, { recursive: true, force: true });
  fs.mkdirSync(STAGING, { recursive: true });
  await Promise.all([bundle(), declarations()]);
  // inlay-reference.wasm is for tests.
  const isProduct = (file) => file.endsWith(".wasm") && file !== "inlay-reference.wasm";
  for (const file of filesIn(WASM).filter(isProduct))
    fs.copyFileSync(path.join(WASM, file), path.join(STAGING, file));
  const cli = path.join(STAGING, "cli.mjs");
  if (fs.existsSync(cli)) fs.chmodSync(cli, 0o755);
  const files = publish();
  reportSizes(files);
  fs.writeFileSync(`${STAMP}.new`, JSON.stringify({ hash, files }));
  fs.renameSync(`${STAMP}.new`, STAMP);
}

/** Builds the WASM modules and dist/, whatever of it changed. */
export async function build() {
  await buildWasm();
  await withLock(path.join(ROOT, "build/dist.lock"), buildDist);
}
