// The Python environment of tools/recall-model, in the cache folder. Nothing but its recipe and that recipe's test uses it.

import { spawnSync } from "node:child_process";
import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { withLock } from "./lock.mjs";
import { CACHE, ROOT, runQuiet, SetupError, say, which } from "./shell.mjs";

const REQUIREMENTS = path.join(ROOT, "tools/recall-model/requirements.txt");
const VENV = path.join(CACHE, "recall-venv");
const STAMP = path.join(VENV, "requirements-hash");
const PYTHON = path.join(VENV, process.platform === "win32" ? "Scripts/python.exe" : "bin/python");

const NO_PYTHON = "there is no python3 on PATH";

/** True when the environment has exactly what requirements.txt names. */
function isInstalled() {
  return fs.existsSync(STAMP) && fs.readFileSync(STAMP, "utf8") === requirementsHash();
}

function requirementsHash() {
  return crypto.createHash("sha256").update(fs.readFileSync(REQUIREMENTS)).digest("hex");
}

const systemPython = () => which("python3") ?? which("python");

/**
 * { python } that has the recipe's packages already, or { reason } when there is none; nothing is installed.
 * A Python on PATH counts when it can import them, whatever their versions.
 */
export function findPython() {
  if (isInstalled()) return { python: PYTHON };
  const system = systemPython();
  if (!system) return { reason: NO_PYTHON };
  const imports = "import gguf, numpy, tokenizers, torch";
  if (spawnSync(system, ["-c", imports], { stdio: "ignore" }).status === 0) return { python: system };
  return {
    reason: "no Python here has the packages of tools/recall-model; npm run test:recipe installs them",
  };
}

/**
 * { python } with the recipe's packages installed, or { reason } when this machine cannot have them.
 * The first time PyTorch is downloaded, which takes minutes.
 */
export function ensurePython() {
  const system = systemPython();
  if (!system) return { reason: NO_PYTHON };
  return withLock(`${VENV}.lock`, () => {
    if (isInstalled()) return { python: PYTHON };
    try {
      if (!fs.existsSync(PYTHON)) runQuiet(system, ["-m", "venv", VENV]);
      say("installing the Python packages of tools/recall-model (PyTorch is large)");
      runQuiet(PYTHON, ["-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]);
    } catch (error) {
      if (!(error instanceof SetupError)) throw error;
      return { reason: `its packages cannot be installed: ${error.message.trim().split("\n").at(-1)}` };
    }
    fs.writeFileSync(STAMP, requirementsHash());
    return { python: PYTHON };
  });
}
