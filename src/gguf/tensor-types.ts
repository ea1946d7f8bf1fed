/** ggml tensor types: numbers as in the file, and how many bytes a block of how many elements takes. */

/** Name, elements per block, bytes per block. */
export interface TensorType {
  readonly name: TensorTypeName;
  readonly id: number;
  readonly blockElements: number;
  readonly blockBytes: number;
}

export type TensorTypeName =
  | "F32"
  | "F16"
  | "BF16"
  | "Q4_0"
  | "Q4_1"
  | "Q5_0"
  | "Q5_1"
  | "Q8_0"
  | "Q2_K"
  | "Q3_K"
  | "Q4_K"
  | "Q5_K"
  | "Q6_K"
  | "IQ4_NL";

const TYPES: readonly TensorType[] = [
  { name: "F32", id: 0, blockElements: 1, blockBytes: 4 },
  { name: "F16", id: 1, blockElements: 1, blockBytes: 2 },
  { name: "Q4_0", id: 2, blockElements: 32, blockBytes: 18 },
  { name: "Q4_1", id: 3, blockElements: 32, blockBytes: 20 },
  { name: "Q5_0", id: 6, blockElements: 32, blockBytes: 22 },
  { name: "Q5_1", id: 7, blockElements: 32, blockBytes: 24 },
  { name: "Q8_0", id: 8, blockElements: 32, blockBytes: 34 },
  { name: "Q2_K", id: 10, blockElements: 256, blockBytes: 84 },
  { name: "Q3_K", id: 11, blockElements: 256, blockBytes: 110 },
  { name: "Q4_K", id: 12, blockElements: 256, blockBytes: 144 },
  { name: "Q5_K", id: 13, blockElements: 256, blockBytes: 176 },
  { name: "Q6_K", id: 14, blockElements: 256, blockBytes: 210 },
  { name: "IQ4_NL", id: 20, blockElements: 32, blockBytes: 18 },
  { name: "BF16", id: 30, blockElements: 1, blockBytes: 2 },
];

const BY_ID = new Map(TYPES.map((t) => [t.id, t]));

/** Types that ggml has, or once had, and Inlay cannot run: for messages only. */
const OTHER_GGML_TYPES: Readonly<Record<number, string>> = {
  4: "Q4_2 (removed from ggml)",
  5: "Q4_3 (removed from ggml)",
  9: "Q8_1",
  15: "Q8_K",
  16: "IQ2_XXS",
  17: "IQ2_XS",
  18: "IQ3_XXS",
  19: "IQ1_S",
  21: "IQ3_S",
  22: "IQ2_S",
  23: "IQ4_XS",
  24: "I8",
  25: "I16",
  26: "I32",
  27: "I64",
  28: "F64",
  29: "IQ1_M",
  31: "Q4_0_4_4 (removed from ggml)",
  32: "Q4_0_4_8 (removed from ggml)",
  33: "Q4_0_8_8 (removed from ggml)",
  34: "TQ1_0",
  35: "TQ2_0",
  39: "MXFP4",
  40: "NVFP4",
};

/** The type with this ggml number, or undefined when Inlay cannot run it. */
export function tensorTypeById(id: number): TensorType | undefined {
  return BY_ID.get(id);
}

/** The type with this name. */
export function tensorType(name: TensorTypeName): TensorType {
  return TYPES.find((t) => t.name === name)!;
}

/** ggml's name for a type that Inlay cannot run, or undefined when the number is unknown to us too. */
export function otherTypeName(id: number): string | undefined {
  return OTHER_GGML_TYPES[id];
}

/** All runnable types, for messages and tests. */
export const TENSOR_TYPES: readonly TensorType[] = TYPES;
