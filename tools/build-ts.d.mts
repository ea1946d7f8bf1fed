/** Types of build-ts.mjs. */

export function transpile(
  source: string,
  fileName: string,
  options?: { inlineMap?: boolean },
): { code: string; map: string };
