/** Python with the recipes' packages, or why this machine cannot have them. */
export function ensurePython(): Promise<
  { python: string; reason?: undefined } | { python?: undefined; reason: string }
>;
