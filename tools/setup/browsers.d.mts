/** Types of browsers.mjs, for tests and benchmarks that drive a browser themselves. */

export function findBrowsers(): {
  chromium: string | undefined;
  firefox: string | undefined;
  webkit: { driver: string; xvfb: string } | undefined;
};

export const HOW_TO_INSTALL: { chromium: string; firefox: string; webkit: string };
