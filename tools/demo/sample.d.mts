/** Types of sample.mjs, for the tests. */

import type { Sample } from "./server.d.mts";

export function sampleModel(): Sample;
