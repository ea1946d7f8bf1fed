// Bundles the SDK: one self-contained ES module per entry, for browsers and for Node.
// tools/build.mjs runs this; `npx rollup -c` works too, once build/wasm exists.

import { nodeResolve } from "@rollup/plugin-node-resolve";
import terser from "@rollup/plugin-terser";
import { jsonModule, transpile } from "./tools/build-ts.mjs";
import { stripWgsl, textModule } from "./tools/build-wgsl.mjs";

const BROWSER = {
  "inlay.js": "src/index.ts",
  "engine-worker.js": "workers/engine-worker.ts",
  "compute-worker.js": "workers/compute-worker.ts",
};
const NODE = {
  "node.mjs": "src/index.node.ts",
  "engine-worker.node.mjs": "workers/engine-worker.node.ts",
  "compute-worker.node.mjs": "workers/compute-worker.node.ts",
  "cli.mjs": "src/cli/main.ts",
};

/** The bundles have most files in common: each is transpiled once. */
const transpiled = new Map();
const typescript = {
  name: "typescript",
  transform(source, id) {
    if (!id.endsWith(".ts")) return null;
    if (!transpiled.has(id)) transpiled.set(id, transpile(source, id));
    return transpiled.get(id);
  },
};

const wgsl = {
  name: "wgsl",
  transform: (source, id) =>
    id.endsWith(".wgsl") ? { code: textModule(stripWgsl(source)), map: null } : null,
};

const json = {
  name: "json",
  transform: (source, id) => (id.endsWith(".json") ? { code: jsonModule(source), map: null } : null),
};

const shared = {
  plugins: [typescript, wgsl, json],
  // A cycle or an unresolved import is a mistake in the sources.
  onwarn(warning) {
    throw new Error(warning.message);
  },
};

/** Code that is imported on demand goes to dist/lazy; everything else into the entry's own file. */
const output = (file) => ({
  dir: "dist",
  format: "es",
  sourcemap: true,
  entryFileNames: file,
  chunkFileNames: "lazy/[name].js",
});

const browserBundles = Object.entries(BROWSER).map(([file, input]) => ({
  ...shared,
  input,
  plugins: [...shared.plugins, nodeResolve({ browser: true })],
  output: { ...output(file), plugins: [terser({ module: true })] },
}));

const nodeBundles = Object.entries(NODE).map(([file, input]) => ({
  ...shared,
  input,
  // The optional package `webgpu` is native code.
  external: [/^node:/, "webgpu"],
  plugins: [...shared.plugins, nodeResolve({ exportConditions: ["node"] })],
  output: { ...output(file), banner: file === "cli.mjs" ? "#!/usr/bin/env node" : "" },
}));

export default [...browserBundles, ...nodeBundles];
