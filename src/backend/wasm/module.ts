/**
 * One instance of the WASM module: its memory, its exports, and checked views into its heap.
 *
 * The module is built by wasm/build.sh in four variants; which one runs here is decided in `variant.ts`.
 * Addresses are byte offsets into the heap (wasm32), always below 4 GiB.
 */

import { InlayError } from "../../errors.ts";

/** The C ABI's functions; every argument and result is an i32 or f32/f64 number. */
export type WasmExports = Record<string, (...args: number[]) => number>;

const PAGE = 65536;
const MAX_PAGES = 65536;

/** What to instantiate. */
export interface WasmOptions {
  readonly module: WebAssembly.Module;
  /** Shared memory, for the builds with threads. */
  readonly shared: boolean;
  /** An existing shared memory, in a compute worker. */
  readonly memory?: WebAssembly.Memory;
}

export class WasmModule {
  readonly memory: WebAssembly.Memory;
  readonly exports: WasmExports;
  #u8: Uint8Array<ArrayBuffer>;

  private constructor(memory: WebAssembly.Memory, instance: WebAssembly.Instance) {
    this.memory = memory;
    this.exports = instance.exports as unknown as WasmExports;
    this.#u8 = new Uint8Array(memory.buffer as ArrayBuffer);
  }

  static async instantiate(options: WasmOptions): Promise<WasmModule> {
    const memory = options.memory ?? createMemory(options.shared);
    const instance = await WebAssembly.instantiate(options.module, {
      env: {
        memory,
        // Called by malloc when the heap is too small; returning 0 makes malloc return null.
        emscripten_resize_heap: (bytes: number) => {
          const { byteLength } = memory.buffer;
          const missing = Math.ceil(((bytes >>> 0) - byteLength) / PAGE);
          // Growing takes a millisecond, and caches ask for a page after the other.
          return missing <= 0 || grow(memory, missing + byteLength / PAGE / 16) || grow(memory, missing)
            ? 1
            : 0;
        },
        _abort_js: () => {
          throw new InlayError("out-of-memory", `the WASM module aborted; its heap is ${mib(memory)} MiB`, {
            heapBytes: memory.buffer.byteLength,
          });
        },
      },
    });
    const wasm = new WasmModule(memory, instance);
    // Static constructors run once per memory, not once per thread.
    if (!options.memory) wasm.call("__wasm_call_ctors");
    return wasm;
  }

  /** The heap's bytes. Do not keep it: growing the heap replaces it. */
  get u8(): Uint8Array<ArrayBuffer> {
    // A grown unshared memory detaches the old buffer; a grown shared one leaves it short.
    if (this.#u8.byteLength !== this.memory.buffer.byteLength)
      this.#u8 = new Uint8Array(this.memory.buffer as ArrayBuffer);
    return this.#u8;
  }

  /** Calls an export by its C name. */
  call(name: string, ...args: number[]): number {
    const f = this.exports[name];
    if (!f) throw new InlayError("internal", `internal: the WASM module has no function ${name}`);
    return f(...args);
  }

  /** Allocates `bytes`, 16-byte aligned (64 for anything that kernels stream). Throws `out-of-memory`. */
  alloc(bytes: number, what: string, align = 64): number {
    const ptr = this.call("memalign", align, Math.max(bytes, 1)) >>> 0;
    if (ptr === 0)
      throw new InlayError(
        "out-of-memory",
        `the WASM heap has no room for ${(bytes / 2 ** 20).toFixed(1)} MiB of ${what}; it holds ` +
          `${mib(this.memory)} MiB and may grow to 4096 MiB if the system allows; use a smaller model or contextLength`,
        { bytes, heapBytes: this.memory.buffer.byteLength, what },
      );
    return ptr;
  }

  free(ptr: number): void {
    this.call("free", ptr);
  }

  /** View of `length` bytes at `ptr`. Invalid after the next allocation. */
  bytes(ptr: number, length: number): Uint8Array<ArrayBuffer> {
    return this.u8.subarray(ptr, ptr + length);
  }

  /** View of `length` f32 at `ptr`. Invalid after the next allocation. */
  f32(ptr: number, length: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.u8.buffer, ptr, length);
  }

  /** View of `length` u32 at `ptr`. Invalid after the next allocation. */
  u32(ptr: number, length: number): Uint32Array<ArrayBuffer> {
    return new Uint32Array(this.u8.buffer, ptr, length);
  }

  /** View of `length` i32 at `ptr`. Invalid after the next allocation. */
  i32(ptr: number, length: number): Int32Array<ArrayBuffer> {
    return new Int32Array(this.u8.buffer, ptr, length);
  }
}

/** Whether the system had `pages` more. */
function grow(memory: WebAssembly.Memory, pages: number): boolean {
  try {
    memory.grow(Math.ceil(pages));
    return true;
  } catch {
    return false;
  }
}

function mib(memory: WebAssembly.Memory): string {
  return (memory.buffer.byteLength / 2 ** 20).toFixed(0);
}

/** Shared memory must name its maximum; some systems refuse to reserve 4 GiB, so smaller ones are tried. */
function createMemory(shared: boolean): WebAssembly.Memory {
  let lastError: unknown;
  for (const maximum of [MAX_PAGES, MAX_PAGES / 2, MAX_PAGES / 4, MAX_PAGES / 16]) {
    try {
      return new WebAssembly.Memory({ initial: 256, maximum, shared });
    } catch (error) {
      lastError = error;
    }
  }
  throw new InlayError(
    "out-of-memory",
    "the browser refused even a 256 MiB WebAssembly memory",
    {},
    { cause: lastError },
  );
}
