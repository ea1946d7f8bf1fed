/** Every option's default and bounds, and the door where load options become complete. */

import { DECODE_POLICIES, PREFILL_POLICIES } from "./attention/names.ts";
import { InlayError } from "./errors.ts";
import type { SamplingParams } from "./generate/sampling-params.ts";
import {
  checkArray,
  checkKnownNames,
  checkNumber,
  checkObject,
  checkOneOf,
  invalidOption,
  type NumberBounds,
  notSupported,
  oneOf,
} from "./option-checks.ts";

/**
 * Where the model runs. "auto" measures WASM against "hybrid", which is matrices in WASM and attention on the GPU;
 * "webgpu" is both on the GPU.
 */
export type DeviceOption = (typeof DEVICES)[number];
/**
 * How a prompt is attended to. "auto" is dense for short prompts and "dhsa" beyond; "dense" is exact; "window" reads the
 * first and the last tokens; "dhsa" the chunks of the text that matter to each block of queries; "vertical-slash" and
 * "sample" what the newest queries attend to.
 */
export type PrefillAttention = "auto" | (typeof PREFILL_POLICIES)[number];
/** How an answer attends to what is before it. "auto" is "dense" in this version. */
export type DecodeAttention = "auto" | (typeof DECODE_POLICIES)[number];
/**
 * How keys and values are stored. "auto" is what is fastest on the device; "q8", "q4" and "q2" quantize all but the first
 * 32 and the last 128 tokens.
 */
export type KvFormat = (typeof KV_FORMATS)[number];

const DEVICES = ["auto", "wasm", "hybrid", "webgpu"] as const;
const PREFILL_ATTENTION = ["auto", ...PREFILL_POLICIES] as const;
const DECODE_ATTENTION = ["auto", ...DECODE_POLICIES] as const;
const KV_FORMATS = ["auto", "f32", "f16", "q8", "q4", "q2"] as const;

/** Names that the design has and this version has not: refused with the list of what there is. */
const LATER_ATTENTION: readonly string[] = ["squeezed"];

/** How far loading has come. Monotonic, about every 100 ms. */
export interface LoadProgress {
  /** "header": reading metadata; "weights": reading and preparing tensors; "warm-up": self-test and first run. */
  readonly phase: "header" | "weights" | "warm-up";
  /** Bytes so far. */
  readonly loaded: number;
  /** Bytes in all; undefined while unknown. */
  readonly total: number | undefined;
  /** 0 to 1, over all phases. */
  readonly progress: number;
}

/** Options of `loadModel`. */
export interface LoadOptions {
  /**
   * Tokens that prompt and answer may have together, at most what the model was trained for.
   * 1 <= contextLength <= 16777216. @default the smaller of 8192 and the model's own
   */
  contextLength?: number | undefined;
  /** @default "auto" */
  device?: DeviceOption | undefined;
  attention?: {
    /** @default "auto" */
    prefill?: PrefillAttention | undefined;
    /** @default "auto" */
    decode?: DecodeAttention | undefined;
    /** Share of the keys before a query that a sparse method reads; 1 is dense. 0 < budget <= 1. @default 0.25 */
    budget?: number | undefined;
    /**
     * [layer][KV head]: multiplies `budget` for that head, so that heads that look far read more and others less; a head
     * reads at most everything. `inlay eval --head-budgets` makes them. 0 < factor <= 100. @default 1 for all
     */
    headBudgets?: readonly (readonly number[])[] | undefined;
    /**
     * The file of a boundary predictor for "dhsa", trained for this model by tools/boundary-predictor: a URL, a File or
     * Blob, or its bytes. @default chunks are cut without training
     */
    boundaries?: string | URL | Blob | ArrayBuffer | undefined;
  };
  kvCache?: {
    /** @default "auto" */
    format?: KvFormat | undefined;
  };
  /**
   * WASM threads, where the page is cross-origin isolated; device "webgpu" has no use for them and takes one.
   * 1 <= threads <= 64. @default "auto": by the device's cores
   */
  threads?: number | "auto" | undefined;
  /** Where the built files are, if not beside the module. Nothing is ever fetched from a third party by default. */
  assets?: {
    /** The WASM build to use. @default chosen by the device's features, beside the module */
    wasm?: string | URL | undefined;
    /** The engine's worker script. @default beside the module */
    worker?: string | URL | undefined;
  };
  /** Called as loading advances. */
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Aborting it ends loading; the call rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
  /** Prompt tokens per forward call: larger is faster and needs more scratch memory. 1 <= prefillChunk <= 8192. @default 512 */
  prefillChunk?: number | undefined;
  /**
   * The chat template to use instead of the model's: "chatml", or Jinja source.
   * A model without a template has no chat until one is chosen here. @default the model's own
   */
  chatTemplate?: string | undefined;
}

/** Load options with every default filled in. */
export interface ResolvedLoadOptions {
  /** "auto" becomes a number once the model's header is read; see `resolveContextLength`. */
  readonly contextLength: number | "auto";
  readonly device: DeviceOption;
  readonly attention: {
    readonly prefill: PrefillAttention;
    readonly decode: DecodeAttention;
    readonly budget: number;
    /** null = 1 for all. */
    readonly headBudgets: readonly (readonly number[])[] | null;
    /** Absolute if it is a URL; null = without training. */
    readonly boundaries: string | Blob | ArrayBuffer | null;
  };
  readonly kvCache: { readonly format: KvFormat };
  readonly threads: number | "auto";
  /** Absolute or relative URLs; null = beside the module. */
  readonly assets: { readonly wasm: string | null; readonly worker: string | null };
  readonly onProgress: (progress: LoadProgress) => void;
  /** null = cannot be aborted. */
  readonly signal: AbortSignal | null;
  readonly prefillChunk: number;
  /** null = the model's own. */
  readonly chatTemplate: string | null;
}

/** The part of the resolved options that the engine needs: plain data that crosses the worker boundary. */
export type EngineOptions = Omit<ResolvedLoadOptions, "assets" | "onProgress" | "signal">;

const DEFAULT_CONTEXT_LENGTH = 8192;

const LOAD_DEFAULTS = {
  contextLength: "auto",
  device: "auto",
  prefill: "auto",
  decode: "auto",
  budget: 0.25,
  format: "auto",
  threads: "auto",
  prefillChunk: 512,
} as const;

const LOAD_BOUNDS = {
  contextLength: { min: 1, max: 1 << 24, isInteger: true },
  budget: { min: 0, aboveMin: true, max: 1 },
  headBudget: { min: 0, aboveMin: true, max: 100 },
  threads: { min: 1, max: 64, isInteger: true },
  prefillChunk: { min: 1, max: 8192, isInteger: true },
} as const satisfies Record<string, NumberBounds>;

/**
 * Sampling when the caller says nothing: llama.cpp's settings, which small GGUF models are used with. (OpenAI's own
 * default, the whole distribution at temperature 1, makes them ramble.)
 */
export const SAMPLING_DEFAULTS = {
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repeatLastN: 64,
} as const satisfies Omit<SamplingParams, "logitBias" | "seed">;

/** Bounds of the sampling options; see `SamplingParams` for what they mean. */
export const SAMPLING_BOUNDS = {
  temperature: { min: 0, max: 2 },
  topK: { min: 0, max: 1 << 21, isInteger: true },
  topP: { min: 0, max: 1 },
  minP: { min: 0, max: 1 },
  repetitionPenalty: { min: 0, aboveMin: true, max: 10 },
  frequencyPenalty: { min: -2, max: 2 },
  presencePenalty: { min: -2, max: 2 },
  repeatLastN: { min: -1, max: 1 << 24, isInteger: true },
  logitBias: { min: -100, max: 100 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, isInteger: true },
  maxTokens: { min: 1, max: 1 << 24, isInteger: true },
  topLogprobs: { min: 0, max: 20, isInteger: true },
} as const satisfies Record<string, NumberBounds>;

/** Completes and checks load options. Throws `invalid-option` naming the option, its value and what is allowed. */
export function resolveLoadOptions(options: LoadOptions = {}): ResolvedLoadOptions {
  const given = checkObject("options", options);
  checkKnownNames("", given, [
    "contextLength",
    "device",
    "attention",
    "kvCache",
    "threads",
    "assets",
    "onProgress",
    "signal",
    "prefillChunk",
    "chatTemplate",
  ]);
  const attention = section(given, "attention", ["prefill", "decode", "budget", "headBudgets", "boundaries"]);
  const kvCache = section(given, "kvCache", ["format"]);
  const assets = section(given, "assets", ["wasm", "worker"]);
  return {
    contextLength: numberOr("contextLength", given.contextLength, LOAD_DEFAULTS.contextLength),
    device: checkOneOf("device", given.device ?? LOAD_DEFAULTS.device, DEVICES),
    attention: {
      prefill: implemented(
        "attention.prefill",
        attention.prefill ?? LOAD_DEFAULTS.prefill,
        PREFILL_ATTENTION,
        LATER_ATTENTION,
      ),
      decode: implemented(
        "attention.decode",
        attention.decode ?? LOAD_DEFAULTS.decode,
        DECODE_ATTENTION,
        LATER_ATTENTION,
      ),
      budget: checkNumber("attention.budget", attention.budget ?? LOAD_DEFAULTS.budget, LOAD_BOUNDS.budget),
      headBudgets:
        attention.headBudgets === undefined
          ? null
          : checkHeadBudgets("attention.headBudgets", attention.headBudgets),
      boundaries: checkBoundaries(attention.boundaries),
    },
    kvCache: {
      format: checkOneOf("kvCache.format", kvCache.format ?? LOAD_DEFAULTS.format, KV_FORMATS),
    },
    threads: numberOr("threads", given.threads, LOAD_DEFAULTS.threads),
    assets: { wasm: checkUrl("assets.wasm", assets.wasm), worker: checkUrl("assets.worker", assets.worker) },
    onProgress: checkCallback("onProgress", given.onProgress),
    signal: checkSignal("signal", given.signal),
    prefillChunk: checkNumber(
      "prefillChunk",
      given.prefillChunk ?? LOAD_DEFAULTS.prefillChunk,
      LOAD_BOUNDS.prefillChunk,
    ),
    chatTemplate: checkChatTemplate(given.chatTemplate),
  };
}

/**
 * The context length of a model that was trained for `trained` tokens.
 * Throws `invalid-option` if more was asked for than the model has.
 */
export function resolveContextLength(requested: number | "auto", trained: number): number {
  if (requested === "auto") return Math.min(DEFAULT_CONTEXT_LENGTH, trained);
  if (requested <= trained) return requested;
  throw new InlayError(
    "invalid-option",
    `contextLength is ${requested}, but the model was trained for ${trained} tokens; ask for at most ${trained}`,
    { option: "contextLength", value: requested, trained },
  );
}

function section(
  given: Readonly<Record<string, unknown>>,
  name: string,
  known: readonly string[],
): Readonly<Record<string, unknown>> {
  const value = given[name];
  if (value === undefined) return {};
  const object = checkObject(name, value);
  checkKnownNames(`${name}.`, object, known);
  return object;
}

function numberOr(option: "contextLength" | "threads", value: unknown, otherwise: "auto"): number | "auto" {
  if (value === undefined || value === "auto") return otherwise;
  return checkNumber(option, value, LOAD_BOUNDS[option]);
}

/** A name of `allowed`; names of `later` are refused as not being in this version. */
function implemented<T extends string>(
  option: string,
  value: unknown,
  allowed: readonly T[],
  later: readonly string[],
): T {
  if (typeof value === "string" && later.includes(value))
    throw notSupported(option, value, `it has ${oneOf(allowed)}`);
  return checkOneOf(option, value, allowed);
}

/** Where a boundary predictor is. What is in it is checked once the model is open. */
function checkBoundaries(value: unknown): string | Blob | ArrayBuffer | null {
  if (value === undefined) return null;
  if (value instanceof Blob || value instanceof ArrayBuffer) return value;
  if (typeof value === "string" || value instanceof URL) {
    const base = typeof location === "undefined" ? undefined : location.href;
    if (URL.canParse(value, base)) return new URL(value, base).href;
  }
  throw invalidOption("attention.boundaries", value, "a URL, a File or Blob, or an ArrayBuffer");
}

/** Factors by layer and KV head. Whether they fit the model is known once it is open. */
export function checkHeadBudgets(option: string, value: unknown): number[][] {
  return checkArray(option, value).map((heads, layer) =>
    checkArray(`${option}[${layer}]`, heads).map((factor, head) =>
      checkNumber(`${option}[${layer}][${head}]`, factor, LOAD_BOUNDS.headBudget),
    ),
  );
}

function checkUrl(option: string, value: unknown): string | null {
  if (value === undefined) return null;
  if (value instanceof URL) return value.href;
  if (typeof value === "string" && value !== "") return value;
  throw invalidOption(option, value, "a URL or a non-empty string");
}

function checkCallback(option: string, value: unknown): (progress: LoadProgress) => void {
  if (value === undefined) return () => {};
  if (typeof value === "function") return value as (progress: LoadProgress) => void;
  throw invalidOption(option, value, "a function");
}

/** Recognised by what it can do: a signal may come from another realm, where `instanceof` fails. */
function checkSignal(option: string, value: unknown): AbortSignal | null {
  if (value === undefined) return null;
  const { aborted, addEventListener } = checkObject(option, value) as Partial<AbortSignal>;
  if (typeof aborted === "boolean" && typeof addEventListener === "function") return value as AbortSignal;
  throw invalidOption(option, value, "an AbortSignal");
}

function checkChatTemplate(value: unknown): string | null {
  if (value === undefined) return null;
  if (typeof value === "string" && (value === "chatml" || /\{[{%]/.test(value))) return value;
  throw invalidOption("chatTemplate", value, '"chatml" or Jinja source, which contains "{{" or "{%"');
}
