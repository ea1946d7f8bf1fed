/** Memory of Chromium's renderer processes, as Linux counts it. */

import fs from "node:fs";

/** The most resident memory, in bytes, that any one renderer of the browser with process id `browser` has had. */
export function rendererPeakBytes(browser: number): number {
  let most = 0;
  for (const entry of fs.readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const commandLine = fs.readFileSync(`/proc/${entry}/cmdline`, "utf8");
      if (!commandLine.includes("--type=renderer") || !descendsFrom(Number(entry), browser)) continue;
      most = Math.max(most, 1024 * field(Number(entry), "VmHWM"));
    } catch {
      // The process has ended in the meantime.
    }
  }
  if (most === 0) throw new Error(`the browser ${browser} has no renderer`);
  return most;
}

function descendsFrom(child: number, ancestor: number): boolean {
  for (let id = child; id > 1; id = field(id, "PPid")) if (id === ancestor) return true;
  return false;
}

function field(id: number, name: string): number {
  const status = fs.readFileSync(`/proc/${id}/status`, "utf8");
  return Number(new RegExp(`^${name}:\\s*(\\d+)`, "m").exec(status)?.[1]);
}
