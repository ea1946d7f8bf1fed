/** Where and with what the benchmarks ran. */

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { ROOT } from "../tools/setup/shell.mjs";

/** "AMD EPYC, 2 cores, 8 GB, Debian GNU/Linux 12": without names that identify the machine. */
export function describeMachine(): string {
  const cpus = os.cpus();
  const memory = `${Math.round(os.totalmem() / 2 ** 30)} GB`;
  const model = cpus[0]?.model.trim() || `${os.arch()} processor`;
  return `${model}, ${cpus.length} cores, ${memory}, ${systemName()}`;
}

function systemName(): string {
  const release = "/etc/os-release";
  const name =
    fs.existsSync(release) && /^PRETTY_NAME="?([^"\n]*)/m.exec(fs.readFileSync(release, "utf8"))?.[1];
  return name || `${os.platform()} ${os.release()}`;
}

function packageVersion(folder: string): string {
  const file = path.join(ROOT, folder, "package.json");
  return (JSON.parse(fs.readFileSync(file, "utf8")) as { version: string }).version;
}

/** The commit, with a plus when the tree differs from it; undefined outside a repository. */
function commit(): string | undefined {
  const git = (...args: string[]) =>
    execFileSync("git", args, { cwd: ROOT, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  try {
    const isChanged =
      git("status", "--porcelain", "--untracked-files=no", "--", "src", "wasm", "workers") !== "";
    return `${git("rev-parse", "--short", "HEAD")}${isChanged ? "+" : ""}`;
  } catch {
    return undefined; // a source archive
  }
}

/** Versions of Inlay, the rivals and Node. Throws when a rival is not the one that the cells are named after. */
export function versions(): Record<string, string> {
  const rivals = {
    "wllama-2": packageVersion("node_modules/wllama-2"),
    "wllama-3": packageVersion("node_modules/@wllama/wllama"),
  };
  if (rivals["wllama-2"] !== "2.3.1" || rivals["wllama-3"] !== "3.8.1")
    throw new Error(`the cells are named after wllama 2.3.1 and 3.8.1, found ${JSON.stringify(rivals)}`);
  const at = commit();
  const inlay = packageVersion(".");
  return { inlay: at ? `${inlay} (${at})` : inlay, ...rivals, node: process.versions.node };
}
