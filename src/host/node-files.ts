/** Model files by path, in Node. */

import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import { basename, resolve } from "node:path";
import { InlayError } from "../errors.ts";
import { rangeSource } from "../gguf/local-sources.ts";
import type { ByteSource } from "../gguf/source.ts";

/** `name-00001-of-00003.gguf` */
const SHARD = /-(\d{5})-of-(\d{5})\.gguf$/i;

/** The paths of all files of a split model, given any one of them; just the path itself otherwise. */
export function shardPaths(path: string): string[] {
  const match = SHARD.exec(path);
  if (!match) return [path];
  const stem = path.slice(0, match.index);
  const total = Number(match[2]);
  return Array.from(
    { length: total },
    (_, i) => `${stem}-${String(i + 1).padStart(5, "0")}-of-${match[2]}.gguf`,
  );
}

/** One source a file. Throws `source-failed` for a file that is not there or is a folder. */
export function openPaths(paths: readonly string[]): ByteSource[] {
  return paths.map((path) => {
    const full = resolve(path);
    if (!existsSync(full)) throw new InlayError("source-failed", `there is no file ${full}`, { path: full });
    const stats = statSync(full);
    if (!stats.isFile()) throw new InlayError("source-failed", `${full} is not a file`, { path: full });
    return rangeSource({
      name: basename(full),
      size: stats.size,
      // Opened for each of the few large reads: nothing is left open when loading stops early.
      async read(offset, length) {
        const bytes = new Uint8Array(length);
        const file = openSync(full, "r");
        try {
          return bytes.subarray(0, readSync(file, bytes, 0, length, offset));
        } finally {
          closeSync(file);
        }
      },
    });
  });
}
