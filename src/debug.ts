/**
 * Whether invariants are checked as the engine runs: where `globalThis.INLAY_DEBUG` was true when Inlay was loaded.
 * The tests set it; a page may, to find out why an answer is wrong.
 */
export const isDebug: boolean = (globalThis as { INLAY_DEBUG?: unknown }).INLAY_DEBUG === true;
