/** One entry of a GGUF tensor table: what the tensor is and where its bytes lie. */

import type { TensorType } from "./tensor-types.ts";

/** A tensor of a model file, checked: the shape fits the type, and the bytes lie inside the file. */
export interface TensorInfo {
  /** GGUF's own name, verbatim: `blk.0.attn_q.weight`. */
  readonly name: string;
  /** 1 to 4 dimensions, fastest axis first as in the file; none is zero. */
  readonly dims: readonly number[];
  readonly type: TensorType;
  /** First byte, counted from the start of its file. */
  readonly offset: number;
  readonly byteLength: number;
  /** Product of dims[1..]; 1 for vectors. */
  readonly rows: number;
  /** dims[0], a multiple of `type.blockElements`. */
  readonly cols: number;
  /** Which file of a split model holds it; 0 when there is one file. */
  readonly shard: number;
}
