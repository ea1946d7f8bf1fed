/** Names of the policies, apart from the policies: the page checks options, the worker runs them. */

/** What a prompt can be read with. */
export const PREFILL_POLICIES = ["dense", "window", "dhsa", "vertical-slash", "sample"] as const;
/** What an answer can be written with. */
export const DECODE_POLICIES = ["dense", "window", "dhsa"] as const;

export type PolicyName = (typeof PREFILL_POLICIES)[number];
