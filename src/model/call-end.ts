/** How a prompt is cut into forward calls. */

import type { AttentionOps } from "../backend/backend.ts";

/** Where the forward call ends that begins at token `from` of `total` and may have `chunk` tokens. */
export function callEnd(
  { boundary }: Pick<AttentionOps, "boundary">,
  from: number,
  chunk: number,
  total: number,
): number {
  const end = Math.min(from + chunk, total);
  return boundary !== undefined && from < boundary ? Math.min(end, boundary) : end;
}
