/** Types of shell.mjs. */

export const ROOT: string;
export const CACHE: string;
export class SetupError extends Error {}
export function say(message: string): void;
