/** Runs the table in a dedicated worker and posts its rows, or what went wrong. */

import { runTable, type TableRow } from "./webgpu-attention-cases.ts";

export type FromWorker = { rows: TableRow[] } | { error: string };

const post = (message: FromWorker): void => postMessage(message);

runTable().then(
  (rows) => post({ rows }),
  (error) => post({ error: error instanceof Error ? `${error.message}\n${error.stack}` : String(error) }),
);
