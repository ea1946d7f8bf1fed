// Finds the browsers that the tests drive; on Debian 12 as root, installs them first.

import fs from "node:fs";
import path from "node:path";
import { ensurePackages } from "./apt.mjs";
import { withLock } from "./lock.mjs";
import { CACHE, canInstall, SetupError, which } from "./shell.mjs";

const DEBIAN_PACKAGES = [
  "chromium",
  // Earlier releases have no WebGPU on Linux.
  "firefox-esr=153",
  "webkit2gtk-driver",
  "xvfb",
  // Firefox's WebGPU needs a Vulkan driver: Mesa's llvmpipe runs on any processor.
  "mesa-vulkan-drivers",
  "libvulkan1",
];

const PROGRAMS = {
  chromium: [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
  ],
  firefox: ["firefox-esr", "firefox", "/Applications/Firefox.app/Contents/MacOS/firefox"],
};

/** What to tell a user who lacks a browser that we may not install. */
export const HOW_TO_INSTALL = {
  chromium: "install Chromium or Chrome and put it on PATH (Debian: apt-get install chromium)",
  firefox: "install Firefox and put it on PATH (Debian: apt-get install firefox-esr mesa-vulkan-drivers)",
  webkit: "Linux only: needs WebKitWebDriver and Xvfb (Debian: apt-get install webkit2gtk-driver xvfb)",
};

function find(programs) {
  for (const program of programs) {
    const file = path.isAbsolute(program) ? fs.existsSync(program) && program : which(program);
    if (file) return file;
  }
  return undefined;
}

/** Where the browsers are; one that is absent is undefined. */
export function findBrowsers() {
  const driver = which("WebKitWebDriver");
  const xvfb = which("Xvfb");
  return {
    chromium: find(PROGRAMS.chromium),
    firefox: find(PROGRAMS.firefox),
    webkit: driver && xvfb ? { driver, xvfb } : undefined,
  };
}

/** Installs the browsers where that is possible, and finds them. Where it is possible, one that is missing is an error. */
export async function ensureBrowsers() {
  if (!canInstall()) return findBrowsers();
  await withLock(path.join(CACHE, "lock"), () => ensurePackages(DEBIAN_PACKAGES, "the browser tests"));
  const browsers = findBrowsers();
  for (const [name, found] of Object.entries(browsers))
    if (!found) throw new SetupError(`the Debian packages are installed, but ${name} is not on PATH`);
  return browsers;
}

/** The software Vulkan driver of Debian's Chromium, through which the npm package `webgpu` finds an adapter in Node. */
export function swiftshaderDriver() {
  const file = "/usr/lib/chromium/vk_swiftshader_icd.json";
  return fs.existsSync(file) ? file : undefined;
}
