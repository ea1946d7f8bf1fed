/**
 * The engine: one loaded model, its device, its tokenizer, and the requests that it answers one after another.
 * It knows nothing of workers; src/rpc/ puts it behind one.
 */

import type { BoundaryScore } from "../attention/boundaries.ts";
import { WasmModule } from "../backend/wasm/module.ts";
import { PageConverter } from "../backend/wasm/page-converter.ts";
import { ThreadPool } from "../backend/wasm/threads.ts";
import { chooseWasm, type WasmChoice } from "../backend/wasm/variant.ts";
import { InlayError } from "../errors.ts";
import {
  type AttentionMap,
  type AttentionMapOptions,
  MAP_MAX_TOKENS,
  mapAttention,
} from "../eval/attention-map.ts";
import type { GenerateEvent } from "../generate/events.ts";
import { type GenerateContext, generate, prefillOnly } from "../generate/generate.ts";
import type { GenerateRequest, Prompt } from "../generate/request.ts";
import { anySignal } from "../gguf/abort.ts";
import { Fingerprinter } from "../gguf/fingerprint.ts";
import { type ModelFile, openModelFile } from "../gguf/model-file.ts";
import { type ByteSource, openSources } from "../gguf/source.ts";
import type { Host } from "../host/host.ts";
import { isQuantized } from "../kv/quantize.ts";
import { readBoundaryPredictor } from "../model/boundary-file.ts";
import { type ModelConfig, readModelConfig } from "../model/config.ts";
import { attentionShape, type Transformer } from "../model/forward.ts";
import { ropeSpec } from "../model/rope.ts";
import { type TensorInventory, takeInventory } from "../model/tensor-names.ts";
import { loadWeights } from "../model/weights.ts";
import { type EngineOptions, type LoadProgress, resolveContextLength } from "../options.ts";
import { BitsChooser } from "../prompts/choose-bits.ts";
import type { ModelIdentity, PromptShape } from "../prompts/manifest.ts";
import type { Turn } from "../prompts/pin-host.ts";
import { PinnedPrompts } from "../prompts/pinned-prompts.ts";
import { Squeezer } from "../prompts/squeeze.ts";
import type { MemoryReport, ModelInfo } from "../rpc/engine-api.ts";
import { insecurePage } from "../storage/digest.ts";
import type { PromptStore } from "../storage/prompt-store.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../tokenizer/vocabulary.ts";
import { type AttentionPlans, attentionPlans } from "./attention-plans.ts";
import { type DevicePair, openDevice } from "./device-pair.ts";
import { ProgressReporter } from "./progress.ts";
import { PromptEncoder } from "./prompts.ts";
import { type ReloadWeights, weightReloader } from "./reload.ts";
import { type Sequence, SequenceStore } from "./sequences.ts";
import { TaskQueue } from "./task-queue.ts";
import { Checkpoint } from "./yielding.ts";

/** Where the engine loads from and runs. */
export interface EngineSetup {
  readonly host: Host;
  readonly sources: readonly ByteSource[];
  readonly options: EngineOptions;
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export class Engine {
  readonly info: ModelInfo;
  readonly tokenizer: Tokenizer;
  readonly pinned: PinnedPrompts;
  /** Replaced when its device was lost. */
  #model: Transformer;
  readonly #parts: EngineParts;
  readonly #sequences: SequenceStore;
  readonly #plan: AttentionPlans;
  readonly #queue = new TaskQueue();
  /** Aborted by `dispose`. */
  readonly #life = new AbortController();

  /**
   * Loads a model. Rejects with an InlayError that says what is wrong with the file, the options or the device,
   * or with the signal's reason; nothing is kept then.
   */
  static async load(setup: EngineSetup): Promise<Engine> {
    const { host, sources, options, signal } = setup;
    const progress = new ProgressReporter(setup.onProgress ?? (() => {}));
    const cleanups: (() => void)[] = [];
    let file: ModelFile | undefined;
    try {
      progress.update("header", 0, undefined);
      file = await openModelFile(sources, signal);
      const config = readModelConfig(file.metadata, file.tensors);
      const inventory = takeInventory(config, file.tensors);
      const contextLength = resolveContextLength(options.contextLength, config.contextLength);

      // On device "webgpu" only the tokenizer runs in WASM.
      const choice = await chooseWasm(options.device === "webgpu" ? 1 : options.threads, host);
      const module = await host.compileWasm(choice.variant);
      signal?.throwIfAborted();
      const wasm = await WasmModule.instantiate({ module, shared: choice.nThreads > 1 });
      const pool =
        choice.nThreads > 1 ? await ThreadPool.start(host, wasm, module, choice.nThreads) : undefined;
      cleanups.push(() => pool?.dispose());

      const tokenizer = Tokenizer.create(
        wasm,
        vocabularyFromMetadata({ get: (key) => file!.metadata.get(key)?.value }),
      );
      cleanups.push(() => tokenizer.dispose());
      const prompts = new PromptEncoder(tokenizer, options.chatTemplate, config.chatTemplates);

      const device = await openDevice({
        host,
        wasm,
        scratchWasm: () => WasmModule.instantiate({ module, shared: choice.nThreads > 1 }),
        tensorTypes: new Set(Array.from(inventory.used.values(), ({ type }) => type)),
        config,
        contextLength,
        options,
      });
      cleanups.push(() => device.dispose());
      const { boundaries } = options.attention;
      const boundaryScore =
        boundaries === null
          ? undefined
          : await readBoundaryPredictor(openSources(boundaries), config, signal);
      const plan = attentionPlans(config, contextLength, options, device, boundaryScore);
      const fingerprinter = new Fingerprinter(file);
      const model = await loadTransformer(fingerprinter.sampled(), inventory, config, device, progress);
      const fingerprint = await fingerprinter.finish();
      signal?.throwIfAborted();
      progress.update("warm-up", 0, 1);
      progress.finish();
      return new Engine({
        config,
        contextLength,
        options,
        wasm,
        choice,
        pool,
        tokenizer,
        prompts,
        device,
        plan,
        boundaryScore,
        reloadWeights: weightReloader(sources, inventory, config),
        model,
        fingerprint,
        openPromptStore: () => host.openPromptStore(),
      });
    } catch (error) {
      for (const cleanup of cleanups.reverse()) cleanup();
      throw error;
    } finally {
      await file?.close();
    }
  }

  private constructor(parts: EngineParts) {
    const { contextLength, tokenizer, model, config, wasm } = parts;
    const pages = new PageConverter(wasm, config.headDim);
    this.#parts = parts;
    this.tokenizer = tokenizer;
    this.#model = model;
    this.info = describe(parts);
    this.#sequences = new SequenceStore(() => this.#model.attention.createCache(), 2 * contextLength);
    this.#plan = parts.plan;
    this.pinned = new PinnedPrompts({
      openStore: parts.openPromptStore,
      identify: () => identify(parts),
      shape: promptShape(parts),
      plan: parts.plan.prefill,
      rope: model.rope,
      pages,
      squeezer: new Squeezer(attentionShape(config), config.attentionScale, wasm, pages),
      bitsChooser: new BitsChooser(attentionShape(config), config.attentionScale, wasm, pages),
      contextLength,
      encode: (prompt) => parts.prompts.encode(prompt),
      decode: (ids) => tokenizer.decode(ids, { special: true }),
      enter: (signal) => this.#enter(signal),
    });
  }

  /** The events of one answer. Requests wait for each other, in order of arrival. */
  async *generate(request: GenerateRequest, signal?: AbortSignal): AsyncGenerator<GenerateEvent, void> {
    const startedAt = performance.now();
    const promptIds = this.promptIds(request.prompt);
    const turn = await this.#enter(signal);
    try {
      const pinned = await this.#revive(request.prompt, promptIds.length, turn);
      const job = {
        promptIds,
        pinned,
        sampling: request.sampling,
        stop: request.stop,
        maxTokens: request.maxTokens,
        topLogprobs: request.topLogprobs,
        ignoreEnd: request.ignoreEnd ?? false,
        startedAt,
      };
      yield* generate(turn.context, job, turn.checkpoint);
    } finally {
      turn.leave();
    }
  }

  /** Runs a prompt into the cache, so that an answer to what begins like it starts sooner. Yields its progress. */
  async *prefill(prompt: Prompt, signal?: AbortSignal): AsyncGenerator<GenerateEvent, void> {
    const promptIds = this.promptIds(prompt);
    const turn = await this.#enter(signal);
    try {
      const pinned = await this.#revive(prompt, promptIds.length, turn);
      yield* prefillOnly(turn.context, promptIds, pinned, turn.checkpoint);
    } finally {
      turn.leave();
    }
  }

  /** The ids that the model would continue, the pinned ones first. Throws `template-failed`, `disposed`, `invalid-option`. */
  promptIds(prompt: Prompt): Uint32Array {
    this.#life.signal.throwIfAborted();
    if (prompt.pinned !== undefined) return this.pinned.encode(prompt.pinned, prompt);
    return this.#parts.prompts.encode(prompt);
  }

  /** Which pages each block of a text's tokens reads. Throws `invalid-option`, `context-full`. */
  async attentionMap(
    text: string,
    { policy = "dhsa", budget = 0.25 }: AttentionMapOptions,
  ): Promise<AttentionMap> {
    const { config, contextLength, device, options, boundaryScore } = this.#parts;
    const ids = this.promptIds({ kind: "text", text, parseSpecial: false });
    const most = Math.min(contextLength, MAP_MAX_TOKENS);
    if (ids.length === 0 || ids.length > most)
      throw new InlayError(
        "invalid-option",
        `the text has ${ids.length} tokens; an attention map is made of 1 to ${most}`,
        { tokens: ids.length, most },
      );
    const { headBudgets } = options.attention;
    const attention = { prefill: policy, decode: "dense", budget, headBudgets } as const;
    const { prefill } = attentionPlans(config, contextLength, { attention }, device, boundaryScore);
    const ended = this.#life.signal;
    const release = await this.#queue.enter(ended);
    try {
      return await mapAttention(this.#model, ids, prefill, options.prefillChunk, new Checkpoint(ended));
    } finally {
      release();
    }
  }

  /** Bytes in use. */
  memory(): MemoryReport {
    const { wasm, device } = this.#parts;
    const linear = device.ops.memory();
    const attention = device.attention.memory();
    return {
      weights: linear.weights,
      kv: attention.kv,
      scratch: linear.scratch + attention.scratch,
      wasmHeap: wasm.memory.buffer.byteLength,
      gpu: device.gpuBytes(),
    };
  }

  /** Frees the model once the answer in progress has ended, which it does with `disposed`. Idempotent. */
  async dispose(): Promise<void> {
    if (this.#life.signal.aborted) return;
    const disposed = new InlayError("disposed", "the model was disposed");
    this.#life.abort(disposed);
    await this.#queue.close(disposed);
    await this.pinned.dispose();
    this.#sequences.clear();
    const { device, tokenizer, pool } = this.#parts;
    device.dispose();
    tokenizer.dispose();
    pool?.dispose();
  }

  /** Waits for its turn in the queue. */
  async #enter(signal: AbortSignal | undefined): Promise<Turn> {
    const ended = anySignal(signal, this.#life.signal);
    const leave = await this.#queue.enter(ended);
    return { context: this.#context(ended), checkpoint: new Checkpoint(ended), signal: ended, leave };
  }

  /** The pinned prompt that a request of `nTokens` goes on. */
  async #revive({ pinned }: Prompt, nTokens: number, turn: Turn): Promise<Sequence | undefined> {
    return pinned === undefined ? undefined : this.pinned.revive(pinned, nTokens, turn);
  }

  #context(ended: AbortSignal): GenerateContext {
    const { contextLength, options, tokenizer, device } = this.#parts;
    return {
      model: this.#model,
      tokenizer,
      sequences: this.#sequences,
      plan: this.#plan,
      contextLength,
      prefillChunk: options.prefillChunk,
      device: device.kind,
      recover: () => this.#recover(ended),
    };
  }

  /** Opens a lost device again. Rejects with `device-lost` if it cannot, or with the signal's reason. */
  async #recover(signal: AbortSignal): Promise<Transformer> {
    const { device, reloadWeights } = this.#parts;
    this.#sequences.clear();
    let { weights } = this.#model;
    try {
      await device.recover(async (ops) => {
        weights = await reloadWeights(ops, signal);
      });
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    }
    const { ops, attention } = device;
    this.#model = { ...this.#model, weights, ops, attention };
    return this.#model;
  }
}

/** Everything a loaded engine is made of. */
interface EngineParts {
  readonly config: ModelConfig;
  readonly contextLength: number;
  readonly options: EngineOptions;
  readonly wasm: WasmModule;
  readonly choice: WasmChoice;
  readonly pool: ThreadPool | undefined;
  readonly tokenizer: Tokenizer;
  readonly prompts: PromptEncoder;
  readonly device: DevicePair;
  readonly plan: AttentionPlans;
  readonly boundaryScore: BoundaryScore | undefined;
  readonly reloadWeights: ReloadWeights;
  readonly model: Transformer;
  /** Undefined where there is no WebCrypto. */
  readonly fingerprint: string | undefined;
  readonly openPromptStore: () => PromptStore;
}

/** How the device keeps pages. A cache that quantizes writes them in f32. */
function promptShape({ config, device }: EngineParts): PromptShape {
  const { nLayers, nKvHeads, headDim } = config;
  const { kvFormat } = device;
  const coding = isQuantized(kvFormat)
    ? { format: "f32" as const, cold: kvFormat, wide: null }
    : { format: kvFormat, cold: null, wide: null };
  return { nLayers, nKvHeads, headDim, ...coding };
}

/** Which model this is, for pinned prompts. */
function identify({ config, fingerprint }: EngineParts): ModelIdentity {
  if (fingerprint !== undefined) return { name: config.name, fileType: config.fileType, fingerprint };
  throw insecurePage();
}

async function loadTransformer(
  file: ModelFile,
  inventory: TensorInventory,
  config: ModelConfig,
  device: DevicePair,
  progress: ProgressReporter,
): Promise<Transformer> {
  let total = 0;
  for (const tensor of inventory.used.values()) total += tensor.byteLength;
  progress.update("weights", 0, total);
  const { ops, attention } = device;
  const { weights, ropeFactors } = await loadWeights(file, inventory, config, ops, (loaded) =>
    progress.update("weights", loaded, total),
  );
  return { config, weights, rope: ropeSpec(config.rope, ropeFactors), ops, attention };
}

function describe(parts: EngineParts): ModelInfo {
  const { config, contextLength, choice, prompts, device } = parts;
  const { architecture, name, fileType, nLayers, dModel, nHeads, nKvHeads, headDim, dFfn, vocabSize } =
    config;
  return {
    architecture,
    name,
    fileType,
    nLayers,
    dModel,
    nHeads,
    nKvHeads,
    headDim,
    dFfn,
    vocabSize,
    trainedContextLength: config.contextLength,
    contextLength,
    hasChatTemplate: prompts.hasTemplate,
    device: {
      kind: device.kind,
      wasm: choice.variant,
      threads: choice.nThreads,
      gpu: device.gpuName,
      kvFormat: device.kvFormat,
      reason: device.reason,
    },
  };
}
