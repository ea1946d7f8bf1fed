// How Chromium is started, for tests and for benchmarks.

export const CHROMIUM_FLAGS = [
  // SwiftShader on every machine: the same adapter everywhere, and no graphics card is needed.
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  // Root and most containers cannot have the sandbox, and the pages are our own.
  "--no-sandbox",
  // Docker gives /dev/shm 64 MB.
  "--disable-dev-shm-usage",
];
