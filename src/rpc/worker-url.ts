/** Where the scripts of workers are, for pages that may have Inlay from another origin, such as a CDN. */

/** The address of `file` beside `moduleUrl`; beside the page if a bundler put a path on the developer's disk there. */
export function besideModule(file: string, moduleUrl: string): URL {
  return new URL(file, /^https?:/.test(moduleUrl) ? moduleUrl : location.href);
}

/**
 * Workers must come from the page's own origin; modules they import need not. A worker elsewhere is therefore
 * started through a one-line module of our own.
 */
export function startable(url: URL): URL | string {
  if (url.origin === location.origin || url.protocol === "blob:" || url.protocol === "data:") return url;
  const starter = new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" });
  return URL.createObjectURL(starter);
}
