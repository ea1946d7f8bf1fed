/** Measured placements, kept in IndexedDB. Where there is none (Node, some private windows) they are measured again. */

import { createStore, get, set, type UseStore } from "idb-keyval";
import type { Placement } from "./placement.ts";

const DATABASE = "inlay-placement";

export async function readPlacement(key: string): Promise<Placement | undefined> {
  const found: unknown = await withStore((store) => get(key, store));
  return isPlacement(found) ? found : undefined;
}

export async function writePlacement(key: string, placement: Placement): Promise<void> {
  await withStore((store) => set(key, placement, store));
}

/** A database that cannot be used costs a second of measuring, not the model. */
async function withStore<T>(f: (store: UseStore) => Promise<T>): Promise<T | undefined> {
  if (typeof indexedDB === "undefined") return undefined;
  try {
    return await f(createStore(DATABASE, "placements"));
  } catch (error) {
    console.warn("Inlay: the measured device placement could not be read or kept", error);
    return undefined;
  }
}

/** Stored bytes are not trusted. */
function isPlacement(value: unknown): value is Placement {
  const { device, reason } = (value ?? {}) as Partial<Placement>;
  return (device === "wasm" || device === "hybrid") && typeof reason === "string";
}
