/** Types of server.mjs, for the tests. */

/** The model that is served as /sample/model.gguf, and what /sample/sample.json tells about it. */
export interface Sample {
  path: string;
  name: string;
  about: string;
  /** A text for it to read; may be empty. */
  document: string;
  opening: string;
}

export function startServer(
  sample: Sample,
  firstPort: number,
): Promise<{ url: string; close(): Promise<void> }>;
