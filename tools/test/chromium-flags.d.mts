/** Types of chromium-flags.mjs. */

export const CHROMIUM_FLAGS: string[];
