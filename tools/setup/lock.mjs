// Lock files, so that two runs at once do not install or build the same thing twice.

import fs from "node:fs";
import path from "node:path";
import { say } from "./shell.mjs";

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

/** The living process whose id stands in the file, or undefined: a run that was killed leaves its lock behind. */
function owner(file) {
  try {
    const pid = Number(fs.readFileSync(file, "utf8"));
    return pid > 0 && isAlive(pid) ? pid : undefined;
  } catch {
    return undefined;
  }
}

function tryAcquire(file) {
  // Written beside it and linked into place, so that the lock never exists without its owner's id in it.
  const own = `${file}.${process.pid}`;
  fs.writeFileSync(own, String(process.pid));
  try {
    fs.linkSync(own, file);
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
    return false;
  } finally {
    fs.rmSync(own);
  }
}

/** Moves a dead run's lock away; puts it back if a living run took it between our look and our move. */
function removeStale(file) {
  const aside = `${file}.stale.${process.pid}`;
  try {
    fs.renameSync(file, aside);
  } catch {
    return;
  }
  if (owner(aside) !== undefined) fs.linkSync(aside, file);
  fs.rmSync(aside);
}

/** Waits for the lock, runs `work`, which may be asynchronous, and gives the lock back. */
export async function withLock(file, work) {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  for (let announced = false; !tryAcquire(file); ) {
    const pid = owner(file);
    if (pid === undefined) {
      removeStale(file);
      continue;
    }
    if (!announced) say(`waiting for another run of this to finish (process ${pid}, lock ${file})`);
    announced = true;
    await new Promise((wake) => setTimeout(wake, 300));
  }
  try {
    return await work();
  } finally {
    fs.rmSync(file, { force: true });
  }
}
