/** What attention over pages loses when they are coded (wasm/kernels/output_error.h). Computed in WASM, wherever the pages are. */

import { internalError } from "../../errors.ts";
import { PAGE_TOKENS } from "../../kv/page.ts";
import type { WasmModule } from "./module.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** The pages of one KV head, and who reads them. */
export interface TrialPages {
  /** (nPages, K then V), f32. */
  readonly exact: Bytes;
  /** The same as they would be read. */
  readonly coded: Bytes;
  /** (nPages): added to a page's scores, ln of how many pages it stands for. */
  readonly bias: Float32Array;
  /** (nPages): position of the page's first token. */
  readonly first: Int32Array;
  /** (nRows, headDim), after RoPE. */
  readonly q: Float32Array;
  /** (nRows): a row sees the tokens at or before its own position, of which there is at least one. */
  readonly positions: Int32Array;
}

/** 32-bit fields of the C struct OutputErrorCall. */
const CALL_FIELDS = 11;

/** Squared lengths, summed over the rows, of the outputs' difference and of the exact outputs. */
export function outputErrors(
  wasm: WasmModule,
  { exact, coded, bias, first, q, positions }: TrialPages,
  headDim: number,
  scale: number,
): { difference: number; energy: number } {
  const nPages = bias.length;
  const nRows = positions.length;
  if (exact.byteLength !== nPages * 8 * PAGE_TOKENS * headDim || coded.byteLength !== exact.byteLength)
    throw internalError(`${exact.byteLength} and ${coded.byteLength} bytes are not ${nPages} f32 pages`);
  const inputs = [exact, coded, ...[bias, first, q, positions].map(bytesOf)];
  const inputBytes = inputs.reduce((sum, { byteLength }) => sum + byteLength, 0);
  const ptr = wasm.alloc(inputBytes + 8 * nRows + 4 * CALL_FIELDS, "pages whose coding is tried");
  try {
    const pointers: number[] = [];
    let at = ptr;
    for (const bytes of inputs) {
      pointers.push(at);
      wasm.bytes(at, bytes.byteLength).set(bytes);
      at += bytes.byteLength;
    }
    const call = at + 8 * nRows;
    wasm.u32(call, CALL_FIELDS).set([...pointers, at, nPages, nRows, headDim]);
    wasm.f32(call + 4 * (CALL_FIELDS - 1), 1)[0] = scale;
    const status = wasm.call("attention_output_errors", call);
    if (status !== 0) throw internalError(`comparing outputs returned ${status}`);
    const sums = { difference: 0, energy: 0 };
    for (const [i, x] of wasm.f32(at, 2 * nRows).entries()) sums[i % 2 === 0 ? "difference" : "energy"] += x;
    return sums;
  } finally {
    wasm.free(ptr);
  }
}

function bytesOf(numbers: Float32Array | Int32Array): Bytes {
  return new Uint8Array(numbers.buffer as ArrayBuffer, numbers.byteOffset, numbers.byteLength);
}
