/** Errors as plain data and back: comlink alone would keep only name, message and stack. */

import { type ErrorCode, InlayError } from "../errors.ts";
import type { WireError } from "./engine-api.ts";

/** Anything thrown, as plain data. */
export function toWire(error: unknown): WireError {
  if (!(error instanceof Error)) {
    return {
      code: undefined,
      name: "Error",
      message: String(error),
      details: {},
      stack: undefined,
      cause: undefined,
    };
  }
  return {
    code: error instanceof InlayError ? error.code : undefined,
    name: error.name,
    message: error.message,
    details: error instanceof InlayError ? { ...error.details } : {},
    stack: error.stack,
    cause: error.cause === undefined ? undefined : toWire(error.cause),
  };
}

/** The error again. One that is not ours comes back as `internal`, with the original as cause. */
export function fromWire(wire: WireError): Error {
  const cause = wire.cause ? { cause: fromWire(wire.cause) } : undefined;
  const error =
    wire.code === undefined
      ? Object.assign(new Error(wire.message, cause), { name: wire.name })
      : new InlayError(wire.code as ErrorCode, wire.message, wire.details, cause);
  if (wire.stack !== undefined) error.stack = wire.stack;
  return error;
}

/** An error of the engine as callers see it: everything but an InlayError is a fault of ours. */
export function asInlayError(error: unknown): InlayError {
  if (error instanceof InlayError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new InlayError("internal", `internal: ${message}`, {}, { cause: error });
}
