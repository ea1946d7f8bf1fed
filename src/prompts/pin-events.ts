/** What is told of a prompt that is being pinned, opened or imported. */

import type { PinnedInfo } from "../storage/prompt-store.ts";

/** Progress, then the open prompt, once. */
export type PinEvent =
  | {
      readonly kind: "progress";
      /** "prefill" counts tokens, "cluster" layers, the others count bytes. */
      readonly phase: "prefill" | "download" | "cluster" | "store" | "restore";
      readonly loaded: number;
      readonly total: number;
    }
  | { readonly kind: "pinned"; readonly key: string; readonly info: PinnedInfo };

export type PinProgress = Extract<PinEvent, { kind: "progress" }>;

export function progress(phase: PinProgress["phase"], loaded: number, total: number): PinProgress {
  return { kind: "progress", phase, loaded, total };
}
