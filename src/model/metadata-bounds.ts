/** Metadata values with bounds: every number of a model's configuration comes through here. */

import { InlayError } from "../errors.ts";
import type { Metadata } from "../gguf/metadata.ts";

/** A whole number in [low, high]. */
export function bounded(
  metadata: Metadata,
  key: string,
  low: number,
  high: number,
  fallback?: number,
): number {
  const value = fallback === undefined ? metadata.uint(key) : metadata.uint(key, fallback);
  if (value >= low && value <= high) return value;
  throw invalid(metadata, `${key} is ${value}; it must be from ${low} to ${high}`, { key, value });
}

/** A number in (above, high]. */
export function real(
  metadata: Metadata,
  key: string,
  above: number,
  high: number,
  fallback?: number,
): number {
  const value = fallback === undefined ? metadata.number(key) : metadata.number(key, fallback);
  if (value > above && value <= high) return value;
  throw invalid(metadata, `${key} is ${value}; it must be above ${above} and at most ${high}`, {
    key,
    value,
  });
}

/** An `invalid-model` that names the file. */
export function invalid(
  metadata: Metadata,
  message: string,
  details: Record<string, unknown> = {},
): InlayError {
  return new InlayError("invalid-model", `${metadata.fileName}: ${message}`, details);
}
