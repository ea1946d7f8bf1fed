/** Types of quantize.mjs, for those who need only the quantizers. */

export type { BlockEncoder, Quantizer, TypeName } from "./model.mjs";
export { QUANTIZERS, quantize } from "./model.mjs";
