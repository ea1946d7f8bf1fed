/** The sample model, where the server has one (`npm run demo` does). */

import type { ModelChoice } from "./model-source.ts";

export interface Sample extends ModelChoice {
  readonly address: string;
  /** An honest word about the model. */
  readonly about: string;
  /** A text that it can answer questions about. */
  readonly document: string;
  /** A question about it. */
  readonly opening: string;
  readonly byteLength: number;
}

/** What the server tells about it. */
interface SampleFile {
  readonly name: string;
  readonly about: string;
  readonly document: string;
  readonly opening: string;
  readonly byteLength: number;
  /** Relative to this description. */
  readonly file: string;
}

export async function findSample(): Promise<Sample | undefined> {
  const response = await fetch("/sample/sample.json").catch(() => undefined);
  if (!response?.ok) return undefined;
  const { name, file, ...rest } = (await response.json()) as SampleFile;
  const source = new URL(file, response.url);
  return { source, label: name, address: source.href, ...rest };
}
