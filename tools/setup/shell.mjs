// Small helpers that every set-up step uses: run a command, say what is being done, where caches live.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

/** The repository's root folder. */
export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");

/** Where set-up keeps what it fetched or unpacked, outside the tree. */
export const CACHE = process.env.INLAY_CACHE ?? path.join(os.homedir(), ".cache", "inlay");

/** A problem whose message tells the user what to do; printed without a stack. */
export class SetupError extends Error {}

export function say(message) {
  process.stderr.write(`inlay: ${message}\n`);
}

/** Runs a command, its output shown; throws when it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { stdio: "inherit", cwd: ROOT, ...options });
  if (result.error) throw new SetupError(`cannot run ${command}: ${result.error.message}`);
  if (result.status !== 0)
    throw new SetupError(`${command} ${args.slice(0, 4).join(" ")} … ended with status ${result.status}`);
}

/** Runs a command quietly; its output is shown only when it fails. */
export function runQuiet(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: "utf8", cwd: ROOT, maxBuffer: 1 << 28, ...options });
  if (result.error) throw new SetupError(`cannot run ${command}: ${result.error.message}`);
  if (result.status !== 0)
    throw new SetupError(
      `${command} ${args.slice(0, 4).join(" ")} … ended with status ${result.status}:\n${result.stdout}${result.stderr}`,
    );
  return result.stdout;
}

/** The full path of a program on PATH, or undefined. */
export function which(program) {
  for (const folder of (process.env.PATH ?? "").split(path.delimiter)) {
    const file = path.join(folder, program);
    try {
      fs.accessSync(file, fs.constants.X_OK);
      return file;
    } catch {}
  }
  return undefined;
}

/** { id, version } of the Linux distribution, empty strings elsewhere. */
export function distribution() {
  let text = "";
  try {
    text = fs.readFileSync("/etc/os-release", "utf8");
  } catch {}
  const field = (name) => text.match(new RegExp(`^${name}="?([^"\n]*)`, "m"))?.[1] ?? "";
  return { id: field("ID"), version: field("VERSION_ID"), name: field("PRETTY_NAME") || os.platform() };
}

/** True when packages can be installed without asking: Debian 12 as root. */
export function canInstall() {
  const { id, version } = distribution();
  return id === "debian" && version === "12" && process.getuid?.() === 0;
}

/** A TCP port that nobody listens on at the moment. */
export async function freePort() {
  const server = net.createServer().listen(0, "localhost");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}
