// The Python environment of tools/recall-model, in the cache folder. Nothing but its recipe and that recipe's test uses it.

import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { withLock } from "./lock.mjs";
import { CACHE, ROOT, runQuiet, SetupError, say, which } from "./shell.mjs";

const REQUIREMENTS = path.join(ROOT, "tools/recall-model/requirements.txt");
const VENV = path.join(CACHE, "recall-venv");
const STAMP = path.join(VENV, "requirements-hash");
const PYTHON = path.join(VENV, process.platform === "win32" ? "Scripts/python.exe" : "bin/python");

/**
 * { python } with the recipe's packages installed, or { reason } when this machine cannot have them.
 * The first time PyTorch is downloaded, which takes minutes.
 */
export function ensurePython() {
  const system = which("python3") ?? which("python");
  if (!system) return { reason: "there is no python3 on PATH" };
  return withLock(`${VENV}.lock`, () => {
    const hash = crypto.createHash("sha256").update(fs.readFileSync(REQUIREMENTS)).digest("hex");
    if (fs.existsSync(STAMP) && fs.readFileSync(STAMP, "utf8") === hash) return { python: PYTHON };
    try {
      if (!fs.existsSync(PYTHON)) runQuiet(system, ["-m", "venv", VENV]);
      say("installing the Python packages of tools/recall-model (PyTorch is large)");
      runQuiet(PYTHON, ["-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]);
    } catch (error) {
      if (!(error instanceof SetupError)) throw error;
      return { reason: `its packages cannot be installed: ${error.message.trim().split("\n").at(-1)}` };
    }
    fs.writeFileSync(STAMP, hash);
    return { python: PYTHON };
  });
}
