/**
 * What crosses between the page and the engine's worker: one interface that comlink exposes, and the plain data it
 * takes and returns. Client (src/rpc/client.ts) and server (src/rpc/server.ts) import only this.
 */

import type { AttentionMap, AttentionMapOptions } from "../eval/attention-map.ts";
import type { GenerateRequest, Prompt } from "../generate/request.ts";
import type { HubFile } from "../gguf/source.ts";
import type { EngineOptions, LoadProgress } from "../options.ts";
import type { PinRequest } from "../prompts/pin-request.ts";
import type { PinnedInfo } from "../storage/prompt-store.ts";
import type { DecodeOptions, EncodeOptions } from "../tokenizer/tokenizer.ts";

/** A model source as it crosses. Streams and ports are transferred, the rest is cloned. */
export type WireSource =
  | { readonly kind: "url"; readonly url: string }
  | { readonly kind: "hub"; readonly file: HubFile }
  | { readonly kind: "blobs"; readonly blobs: readonly Blob[] }
  | { readonly kind: "stream"; readonly stream: ReadableStream<Uint8Array> }
  /** Chunks over a port, on demand: bytes in memory, and streams where they cannot be transferred (WebKit). */
  | {
      readonly kind: "port";
      readonly port: MessagePort;
      readonly name: string;
      readonly size: number | undefined;
    }
  /** Node only: paths of the files of one model. */
  | { readonly kind: "paths"; readonly paths: readonly string[] };

/** What a loaded model tells about itself. */
export interface ModelInfo {
  readonly architecture: string;
  readonly name: string;
  /** llama.cpp's name for the mix of tensor types: "Q4_K_M". */
  readonly fileType: string;
  readonly nLayers: number;
  readonly dModel: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly dFfn: number;
  readonly vocabSize: number;
  /** Positions that the model was trained for. */
  readonly trainedContextLength: number;
  /** Positions that this loaded model has. */
  readonly contextLength: number;
  /** The model file (or the caller) gives a chat template. */
  readonly hasChatTemplate: boolean;
  /** What runs where. */
  readonly device: DeviceInfo;
}

export interface DeviceInfo {
  readonly kind: "wasm" | "hybrid" | "webgpu";
  /** The WASM build in use: "relaxed-threads". */
  readonly wasm: string;
  readonly threads: number;
  /** The GPU's name, when one is used. */
  readonly gpu: string | undefined;
  readonly kvFormat: string;
  /** Why this device: what was asked for, or what "auto" measured. */
  readonly reason: string;
}

/** Bytes in use. */
export interface MemoryReport {
  readonly weights: number;
  readonly kv: number;
  readonly scratch: number;
  /** Size of the WASM heap, free space included. */
  readonly wasmHeap: number;
  /** Bytes on the GPU. */
  readonly gpu: number;
}

/** Messages on the port of one stream of events: of an answer, or of pinning a prompt. The worker never sends more events than it was given credit for. */
export type ToStream = { readonly kind: "credit"; readonly nEvents: number } | { readonly kind: "cancel" };
export type FromStream<Event> =
  | { readonly kind: "event"; readonly event: Event }
  | { readonly kind: "done" }
  | { readonly kind: "error"; readonly error: WireError };

/** An error as plain data. */
export interface WireError {
  /** Set for InlayErrors. */
  readonly code: string | undefined;
  readonly name: string;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
  readonly stack: string | undefined;
  readonly cause: WireError | undefined;
}

/** The engine as the page sees it. One engine holds one model. */
export interface EngineApi {
  /** Loads the model. `call` names the load for `cancel`. Progress is told about every 100 ms. */
  load(
    call: number,
    source: WireSource,
    options: EngineOptions,
    wasmBase: string | null,
    onProgress: (progress: LoadProgress) => void,
  ): Promise<ModelInfo>;
  /** Ends the load with this number; it rejects. */
  cancel(call: number): void;
  /** Starts an answer; its events go over `port`, which is transferred. */
  generate(request: GenerateRequest, port: MessagePort): void;
  /** Runs a prompt into the cache without answering; progress goes over `port`. */
  prefill(prompt: Prompt, port: MessagePort): void;
  /** Prefills and stores a prompt, or opens it if it is stored; events go over `port`. */
  pin(request: PinRequest, port: MessagePort): void;
  /** Opens a stored prompt; events go over `port`. `waits`: it is told of when it is all there, else its pages follow. */
  openPinned(id: string, waits: boolean, port: MessagePort): void;
  /** Stores and opens an `.inlaykv` file; a text is the absolute URL of one. Events go over `port`. */
  importPinned(source: Blob | string, encrypt: boolean, port: MessagePort): void;
  closePinned(key: string): Promise<void>;
  listPinned(): Promise<PinnedInfo[]>;
  deletePinned(id: string): Promise<boolean>;
  /** An `.inlaykv` file, which is never encrypted: `decrypt` says that this is meant. */
  exportPinned(id: string, decrypt: boolean): Promise<Blob>;
  /** The ids that the model would continue, template and BOS included. */
  promptIds(prompt: Prompt): Uint32Array;
  /** The ids of plain text, as `Tokenizer.encode`. */
  tokenize(text: string, options: EncodeOptions): Uint32Array;
  detokenize(ids: Uint32Array, options: DecodeOptions): string;
  /** Which pages each block of a text reads. */
  attentionMap(text: string, options: AttentionMapOptions): Promise<AttentionMap>;
  memory(): MemoryReport;
  dispose(): Promise<void>;
}
