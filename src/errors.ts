/**
 * The one error class of the public API.
 *
 * Callers branch on `code`, people read `message`, tools read `details`. A message says what was asked,
 * what was found, and what to do, with the numbers. Aborting is not an error of ours: an aborted call
 * rejects with `signal.reason`.
 */

/** Every code an {@link InlayError} can carry. The list is closed: a new code is an API change. */
export type ErrorCode =
  /** The bytes are not a usable GGUF file: wrong magic, truncated, a count or offset out of range, a non-finite scale. */
  | "invalid-model"
  /** A sound GGUF file that this version cannot run: architecture, tensor type, tokenizer, GGUF version. */
  | "unsupported-model"
  /** The bytes could not be had: network, HTTP status, a file that cannot be read. */
  | "source-failed"
  /** An option, argument or request field outside its documented range. */
  | "invalid-option"
  /** The prompt, or prompt and answer, need more positions than the context has. */
  | "context-full"
  /** The WASM heap or the GPU refused an allocation. */
  | "out-of-memory"
  /** The browser lacks something Inlay cannot do without (WebAssembly SIMD). */
  | "unsupported-environment"
  /** The device asked for does not exist here, or its self-test gave wrong numbers. */
  | "device-unavailable"
  /** The GPU device was lost and could not be re-created. */
  | "device-lost"
  /** The engine's worker died or could not be started. */
  | "worker-died"
  /** The model, session or stream was used after `dispose()`. */
  | "disposed"
  /** The model's chat template is missing, or failed on these messages. */
  | "template-failed"
  /** IndexedDB or OPFS refused for want of space. */
  | "storage-quota"
  /** Stored bytes are missing, damaged, or cannot be read or written. */
  | "storage-failed"
  /** A stored prompt was made for another model or another format version. */
  | "cache-mismatch"
  /** An impossible state inside Inlay: please report it. */
  | "internal";

/** Values that belong to an error: plain data that survives `structuredClone`. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/**
 * What every failing call of this library rejects with, aborts excepted.
 * It crosses the worker boundary whole: `code`, `message`, `details`, `stack` and `cause` are kept.
 */
export class InlayError extends Error {
  override readonly name = "InlayError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly details: ErrorDetails = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Throws for a state that our own code should have made impossible. */
export function internalError(message: string, details: ErrorDetails = {}): InlayError {
  return new InlayError("internal", `internal: ${message}`, details);
}
