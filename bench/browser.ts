/** One Chromium with the benchmarks' page in it. */

import { puppeteerCore } from "@web/test-runner-chrome";
import { findBrowsers, HOW_TO_INSTALL } from "../tools/setup/browsers.mjs";
import { SetupError } from "../tools/setup/shell.mjs";
import { CHROMIUM_FLAGS } from "../tools/test/chromium-flags.mjs";
import type { EngineOptions } from "./page/engine.ts";
import type { KernelRequest, KernelTimes } from "./page/kernel-jobs.ts";
import type { EngineName } from "./page/page.ts";
import type { PinnedRequest, PinnedTimes } from "./page/pinned-job.ts";
import type { BenchPrompt } from "./prompts.ts";
import { rendererPeakBytes } from "./renderer-memory.ts";
import { startServer } from "./server.ts";

/** An engine that runs in the page. Times are seconds. */
export interface PageEngine {
  readonly name: EngineName;
  readonly about: string;
  readonly loadSeconds: number;
  prefill(prompt: BenchPrompt): Promise<number>;
  decode(prompt: BenchPrompt, nTokens: number): Promise<number>;
  dispose(): Promise<void>;
}

export type BenchBrowser = Awaited<ReturnType<typeof startBrowser>>;

/** Starts Chromium and opens the page. Whoever starts it closes it. */
export async function startBrowser() {
  const executablePath = findBrowsers().chromium;
  if (!executablePath) throw new SetupError(`no Chromium: ${HOW_TO_INSTALL.chromium}`);
  const server = await startServer();
  const browser = await puppeteerCore.launch({
    executablePath,
    args: CHROMIUM_FLAGS,
    // A rival's prefill of 2048 tokens takes minutes.
    protocolTimeout: 30 * 60_000,
  });
  const close = async () => {
    await browser.close();
    await server.close();
  };
  try {
    const page = await browser.newPage();
    page.on("error", (error) => console.error(`page: ${error.message}`)); // the tab crashed
    page.on("pageerror", (error) => console.error(`page: ${String(error)}`));
    page.on("console", (message) => {
      if (message.type() === "error") console.error(`page: ${message.text()}`);
    });
    await page.goto(server.url);
    await page.waitForFunction("globalThis.bench !== undefined", { timeout: 30_000 });
    if (!(await page.evaluate(() => globalThis.bench.isIsolated)))
      throw new Error("the page is not cross-origin isolated");
    let nEngines = 0;

    /** Loads a model, named by its path on the server, into an engine of its own. */
    async function load(name: EngineName, modelUrl: string, options: EngineOptions): Promise<PageEngine> {
      const key = `${name} ${++nEngines}`;
      const { seconds, about } = await page.evaluate(
        (k, n, url, o) => globalThis.bench.load(k, n, url, o),
        ...([key, name, modelUrl, options] as const),
      );
      return {
        name,
        about,
        loadSeconds: seconds,
        prefill: (prompt) => page.evaluate((k, p) => globalThis.bench.prefill(k, p), key, prompt),
        decode: (prompt, nTokens) =>
          page.evaluate((k, p, n) => globalThis.bench.decode(k, p, n), key, prompt, nTokens),
        dispose: () => page.evaluate((k) => globalThis.bench.dispose(k), key),
      };
    }

    const runKernel = (request: KernelRequest): Promise<KernelTimes> =>
      page.evaluate((r) => globalThis.bench.runKernel(r), request);

    const runPinned = (request: PinnedRequest): Promise<PinnedTimes> =>
      page.evaluate((r) => globalThis.bench.runPinned(r), request);

    const runListing = (modelUrl: string, n: number, rounds: number): Promise<number[]> =>
      page.evaluate((url, count, r) => globalThis.bench.runListing(url, count, r), modelUrl, n, rounds);

    const rendererPeak = () => rendererPeakBytes(browser.process()!.pid!);

    return {
      version: await browser.version(),
      load,
      runKernel,
      runPinned,
      runListing,
      rendererPeakBytes: rendererPeak,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}
