// Installs the npm packages of package-lock.json, when node_modules is not already exactly that.

import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { ROOT, runQuiet, say } from "./shell.mjs";

const STAMP = path.join(ROOT, "node_modules/.inlay-lock-hash");

/** Packages with native parts differ by system, hence the platform in the hash. */
function wantedHash() {
  const lock = fs.readFileSync(path.join(ROOT, "package-lock.json"));
  return crypto.createHash("sha256").update(lock).update(`${process.platform} ${process.arch}`).digest("hex");
}

/** Runs `npm ci` unless an earlier run already did for this lock file. The stamp comes last: half an install is redone. */
export function ensureNodeModules() {
  const hash = wantedHash();
  if (fs.existsSync(STAMP) && fs.readFileSync(STAMP, "utf8") === hash) return;
  say("installing npm packages (npm ci)");
  const args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  const env = { ...process.env, PUPPETEER_SKIP_DOWNLOAD: "1" };
  // Under `npm run`, npm names its own program; that also spares us npm.cmd on Windows.
  const npm = process.env.npm_execpath;
  if (npm?.endsWith("npm-cli.js")) runQuiet(process.execPath, [npm, ...args], { env });
  else runQuiet("npm", args, { env });
  fs.writeFileSync(STAMP, hash);
}
