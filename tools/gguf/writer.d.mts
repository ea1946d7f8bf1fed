import type { Header, KeyValue, TensorEntry } from "./model.mjs";

export function writeHeader(
  metadata: readonly KeyValue[],
  tensors: readonly TensorEntry[],
  options?: { alignment?: number; version?: number },
): Header;
