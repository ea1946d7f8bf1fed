// Installs missing Debian packages. Only for where canInstall() says that we may.

import { spawnSync } from "node:child_process";
import { runQuiet, say } from "./shell.mjs";

const ENV = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
/** Another apt at work (unattended upgrades) is waited for; a hiccup of the network is tried again. */
const PATIENT = ["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"];
let updated = false;

/** Refreshes the package lists, once per run. */
export function aptUpdate() {
  if (updated) return;
  say("apt-get update");
  try {
    runQuiet("apt-get", [...PATIENT, "update"], { env: ENV });
  } catch (error) {
    // One broken third-party source makes the whole update fail, and is no reason to stop: the packages that we
    // want come from Debian, and if they cannot be had the installation says so.
    say(error.message);
  }
  updated = true;
}

/** Installs or upgrades packages; finishes first what an interrupted run left half configured. */
export function aptInstall(names) {
  runQuiet("dpkg", ["--configure", "-a"], { env: ENV });
  runQuiet("apt-get", [...PATIENT, "install", "-y", "--no-install-recommends", ...names], { env: ENV });
}

/** Those that are not installed, or are older than the version given after a "=". */
function missingOf(packages) {
  const wanted = packages.map((text) => text.split("="));
  const names = wanted.map(([name]) => name);
  // Unknown names make dpkg-query complain, but the others are still listed.
  const format = `-f=\${Package} \${Version} \${Status}\\n`;
  const { stdout } = spawnSync("dpkg-query", ["-W", format, ...names], { encoding: "utf8" });
  const versions = new Map();
  for (const line of stdout.split("\n")) {
    const [name, version] = line.split(" ");
    if (line.endsWith(" install ok installed")) versions.set(name, version);
  }
  const isOld = (version, atLeast) =>
    atLeast !== undefined && spawnSync("dpkg", ["--compare-versions", version, "lt", atLeast]).status === 0;
  return wanted
    .filter(([name, atLeast]) => !versions.has(name) || isOld(versions.get(name), atLeast))
    .map(([name]) => name);
}

/** Makes sure that Debian packages are there, "name" or "name=oldest version that will do"; `purpose` says what for. */
export function ensurePackages(packages, purpose) {
  const missing = missingOf(packages);
  if (missing.length === 0) return;
  aptUpdate();
  say(`installing ${missing.join(" ")} (for ${purpose})`);
  aptInstall(missing);
}
