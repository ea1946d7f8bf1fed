// Shaders are plain .wgsl files; modules import them as strings.

/** WGSL without its comments, indentation and blank lines. WGSL has no string literals that could hold a comment. */
export function stripWgsl(source) {
  let blockDepth = 0; // block comments nest
  let isLineComment = false;
  let kept = "";
  for (const [token] of source.matchAll(/\/\*|\*\/|\/\/|\n|[^/*\n]+|[/*]/g)) {
    if (token === "\n") {
      isLineComment = false;
      kept += token;
    } else if (isLineComment) continue;
    else if (token === "/*") blockDepth += 1;
    else if (blockDepth > 0) blockDepth -= token === "*/" ? 1 : 0;
    else if (token === "//") isLineComment = true;
    else kept += token;
  }
  const lines = kept.split("\n").map((line) => line.trim());
  return lines.filter((line) => line !== "").join("\n");
}

/** A JavaScript module whose default export is the text. */
export function textModule(text) {
  return `export default ${JSON.stringify(text)};\n`;
}
