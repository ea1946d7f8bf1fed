/**
 * Buffer usages and map modes by number, as the WebGPU specification fixes them. In Node the constants are not
 * global unless the host puts them there, and a library should not need its host to change `globalThis`.
 */

const MAP_READ = 0x01;
const COPY_SRC = 0x04;
const COPY_DST = 0x08;
const UNIFORM = 0x40;
const STORAGE = 0x80;

/** What Inlay uses buffers for. */
export const BufferUse = {
  /** Written by kernels and by copies, and copied from. */
  storage: STORAGE | COPY_SRC | COPY_DST,
  uniform: UNIFORM | COPY_DST,
  /** Mapped by the host. */
  readBack: MAP_READ | COPY_DST,
} as const;

/** `GPUMapMode.READ`. */
export const MAP_MODE_READ = 0x01;
