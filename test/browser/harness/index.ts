// What browser tests need to know about where they run, and how they skip what cannot run there.
//
//   name.test.ts            runs in an ordinary page, in every browser
//   name.isolated.test.ts   runs in a cross-origin isolated page (shared memory, threads), in every browser
//   name.both.test.ts       runs in both
//
// Tests use mocha's globals (`describe`, `it`) and chai. Tests of the product import "/dist/inlay.js", the built
// bundle; tests of one module import its source. A test that needs something says so in its first lines:
//
//   it("attends on the GPU", async function () {
//     const adapter = await requireWebGpu(this);
//
// What a browser is expected to have here is in smoke-environment.both.test.ts: there its absence is a failure.

import { config } from "chai";

// Failures show values whole.
config.truncateThreshold = 0;

/** Set by the test page (tools/test/browser.mjs). */
declare global {
  var inlayTestRun: {
    /** The page is served with COOP and COEP. */
    isIsolated: boolean;
    /** Set-up installed the browsers and their drivers here, so whatever is missing is our fault. */
    isComplete: boolean;
  };
}

export const { isIsolated, isComplete } = globalThis.inlayTestRun;

export type BrowserName = "chromium" | "firefox" | "webkit";

/** Which of the three browsers this is. For tests only: the product looks at features. */
export const browser: BrowserName = navigator.userAgent.includes("Firefox/")
  ? "firefox"
  : navigator.userAgent.includes("Chrome/")
    ? "chromium"
    : "webkit";

/** Skips the running test, or in a `before` hook its suite; the report at the end of the run shows the reason. */
export function skip(context: Mocha.Context, reason: string): never {
  const { test } = context;
  const isHook = test !== undefined && "type" in test && test.type === "hook";
  const skipped = isHook ? test.parent : test;
  // The runner collects console messages, of this kind among others, but not those of console.info.
  console.debug("inlay-skip", skipped?.fullTitle() ?? "", reason);
  context.skip();
}

/** A WebGPU adapter. Skips in WebKit, and elsewhere on machines that set-up did not prepare; else its absence fails. */
export async function requireWebGpu(context: Mocha.Context): Promise<GPUAdapter> {
  const adapter = await navigator.gpu?.requestAdapter();
  if (adapter) return adapter;
  const reason = navigator.gpu ? "no WebGPU adapter" : "no WebGPU in this browser";
  if (browser === "webkit" || !isComplete) skip(context, reason);
  throw new Error(`${reason}, although ${browser} is expected to have one here`);
}

/** The given WebGPU features, or a skip that names the missing ones. */
export async function requireGpuFeatures(
  context: Mocha.Context,
  names: GPUFeatureName[],
): Promise<GPUAdapter> {
  const adapter = await requireWebGpu(context);
  const missing = names.filter((name) => !adapter.features.has(name));
  if (missing.length > 0) skip(context, `the WebGPU adapter has no ${missing.join(", ")}`);
  return adapter;
}

/** Memory shared between threads. Skips in ordinary pages and in WebKit. */
export function requireThreads(context: Mocha.Context): void {
  if (!crossOriginIsolated) skip(context, "needs a cross-origin isolated page (*.isolated.test.ts)");
  if (typeof SharedArrayBuffer === "undefined") skip(context, "no SharedArrayBuffer in this browser");
}

/** The origin private file system. Skips in WebKit. */
export async function requireOpfs(context: Mocha.Context): Promise<FileSystemDirectoryHandle> {
  if (typeof navigator.storage?.getDirectory !== "function") skip(context, "no origin private file system");
  return navigator.storage.getDirectory();
}

/**
 * The URL of a file of the folder `shared` beside the checkout, such as "data/models/stories260K/stories260K-f32.gguf";
 * undefined where there is no such file. Ranges are served.
 */
export async function sharedUrl(path: string): Promise<string | undefined> {
  const url = `/shared/${path}`;
  const response = await fetch(url, { method: "HEAD" });
  return response.ok ? url : undefined;
}

/** The same, with a skip where the file is missing. */
export async function requireShared(context: Mocha.Context, path: string): Promise<string> {
  return (await sharedUrl(path)) ?? skip(context, `../shared/${path} is not on this machine`);
}
