/** A boundary predictor (tools/boundary-predictor) trained for a measurement, on a text that is not the measured one. */

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { ensurePython } from "../tools/setup/python.mjs";
import { ROOT } from "../tools/setup/shell.mjs";

const RECIPE = path.join(ROOT, "tools/boundary-predictor");
const DOCUMENTS = 24;
const DOCUMENT_TOKENS = 512;
const EPOCHS = 4;
const RATE = 1e-3;

/** The bytes of a predictor for `model`; undefined where Python and PyTorch cannot be had. Takes a minute or two. */
export async function trainPredictor(
  model: string,
  text: string,
  log: (line: string) => void,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const { python, reason } = await ensurePython();
  if (python === undefined) {
    log(`  no boundary predictor is trained: ${reason}`);
    return undefined;
  }
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "inlay-boundaries-"));
  const run = (program: string, args: readonly string[]) => {
    const { status, stderr, error } = spawnSync(program, args, { cwd: ROOT, encoding: "utf8" });
    if (status !== 0) throw new Error(`${path.basename(program)} ended with ${status}: ${error ?? stderr}`);
  };
  try {
    const dump = [
      "--import",
      "tsx",
      "--import",
      "./test/fixtures/wgsl-loader.mjs",
      path.join(RECIPE, "dump.ts"),
    ];
    const size = ["--tokens", String(DOCUMENT_TOKENS), "--documents", String(DOCUMENTS)];
    run(process.execPath, [...dump, model, text, folder, ...size]);
    const out = path.join(folder, "boundaries.gguf");
    const how = ["--epochs", String(EPOCHS), "--rate", String(RATE)];
    run(python, [path.join(RECIPE, "train.py"), "--dump", folder, "--out", out, ...how]);
    return Uint8Array.from(fs.readFileSync(out));
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}
