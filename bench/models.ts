/** The generated models that the benchmarks run: shapes of real models, random weights, made once per machine. */

import fs from "node:fs";
import path from "node:path";
import { type FileType, PRESETS, type PresetName, planGguf } from "../tools/gguf/model.mjs";
import { CACHE, say } from "../tools/setup/shell.mjs";

/** Part of the files' names: raised when the generator changes what it writes. */
const GENERATION = 1;

/** The folder of the files, outside the tree. */
export const MODELS = path.join(CACHE, "bench");

/** Makes a model file if it is not there yet; returns its path. `contextLength`: if not the preset's. */
export function ensureModel(preset: PresetName, type: string, contextLength?: number): string {
  const length = contextLength === undefined ? "" : `-${contextLength / 1024}k`;
  const file = path.join(MODELS, `${preset}${length}-${type}-${GENERATION}.gguf`);
  if (fs.existsSync(file)) return file;
  say(`making ${file}`);
  fs.mkdirSync(MODELS, { recursive: true });
  const unfinished = `${file}.${process.pid}`;
  const fd = fs.openSync(unfinished, "w");
  const spec = contextLength === undefined ? preset : { ...PRESETS[preset], contextLength };
  try {
    for (const piece of planGguf(spec, { type: type.toUpperCase() as FileType }).pieces())
      for (let at = 0; at < piece.byteLength; ) at += fs.writeSync(fd, piece, at);
  } finally {
    fs.closeSync(fd);
  }
  fs.renameSync(unfinished, file);
  return file;
}
