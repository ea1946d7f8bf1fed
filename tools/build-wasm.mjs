// Builds the WASM modules into build/wasm when their sources changed.

import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { ensureEmscripten } from "./setup/emscripten.mjs";
import { withLock } from "./setup/lock.mjs";
import { ROOT, run, say } from "./setup/shell.mjs";

function sourceHash() {
  const hash = crypto.createHash("sha256");
  const files = fs
    .readdirSync(path.join(ROOT, "wasm"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name))
    .concat(path.join(ROOT, "tools/make-unicode-tables.mjs"))
    .sort();
  for (const file of files)
    hash
      .update(`${path.relative(ROOT, file)}\0`)
      .update(fs.readFileSync(file))
      .update("\0");
  return hash.digest("hex");
}

async function compile() {
  const out = path.join(ROOT, "build/wasm");
  const stamp = path.join(out, "sources.sha256");
  const hash = sourceHash();
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, "utf8") === hash) return;
  const { emxx, env } = await ensureEmscripten();
  say("building the WASM modules");
  const generated = path.join(ROOT, "build/generated");
  fs.mkdirSync(generated, { recursive: true });
  run(process.execPath, ["tools/make-unicode-tables.mjs", path.join(generated, "unicode_tables.h")]);
  run("sh", ["wasm/build.sh", out, generated], { env: { ...env, EMXX: emxx } });
  fs.writeFileSync(stamp, hash);
}

/** Compiles wasm/ into build/wasm/*.wasm; does nothing when the sources are those of the last build. */
export function buildWasm() {
  return withLock(path.join(ROOT, "build/wasm.lock"), compile);
}

if (process.argv[1] === new URL(import.meta.url).pathname) await buildWasm();
