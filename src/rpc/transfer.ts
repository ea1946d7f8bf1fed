/** What comlink needs to know about our types. */

import { transferHandlers } from "comlink";
import type { WireError } from "./engine-api.ts";
import { fromWire, toWire } from "./wire-error.ts";

let isRegistered = false;

/** Called by both sides of the worker boundary before they use it. */
export function registerTransferHandlers(): void {
  if (isRegistered) return;
  isRegistered = true;
  // comlink's own handler keeps name, message and stack of a thrown error; ours keeps code, details and cause too.
  const { canHandle } = transferHandlers.get("throw")!;
  transferHandlers.set("throw", {
    canHandle,
    serialize: ({ value }: { value: unknown }) => [toWire(value), []],
    deserialize: (wire: WireError) => {
      throw fromWire(wire);
    },
  });
}
