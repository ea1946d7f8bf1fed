// TypeScript to JavaScript, one file at a time and without types: the bundler and the browser tests both use this.
// Types are checked by `npm run check`.

import path from "node:path";
import ts from "typescript";
import { ROOT } from "./setup/shell.mjs";

const CONFIG = path.join(ROOT, "tsconfig.json");
const { config } = ts.readConfigFile(CONFIG, ts.sys.readFile);
const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, ROOT, CONFIG);

const FORMAT = {
  getCurrentDirectory: () => ROOT,
  getCanonicalFileName: (name) => name,
  getNewLine: () => "\n",
};

/** Returns { code, map }. With `inlineMap` the source map is in the code, as the test browsers want it. */
export function transpile(source, fileName, { inlineMap = false } = {}) {
  const { outputText, sourceMapText, diagnostics } = ts.transpileModule(source, {
    fileName,
    reportDiagnostics: true,
    compilerOptions: {
      ...options,
      noEmit: false,
      allowImportingTsExtensions: false,
      sourceMap: !inlineMap,
      inlineSourceMap: inlineMap,
      inlineSources: inlineMap,
    },
  });
  if (diagnostics.length > 0) throw new SyntaxError(ts.formatDiagnostics(diagnostics, FORMAT));
  return { code: outputText, map: sourceMapText };
}

/** JSON as a module, as `resolveJsonModule` promises it. */
export function jsonModule(source) {
  return `export default ${JSON.stringify(JSON.parse(source))};`;
}
