/** Types of browsers.mjs, for the tests that drive a browser themselves. */

export function findBrowsers(): {
  chromium: string | undefined;
  firefox: string | undefined;
  webkit: { driver: string; xvfb: string } | undefined;
};
