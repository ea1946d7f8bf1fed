/** A loaded model: what `loadModel` resolves to. */

import { PREFILL_POLICIES } from "../attention/names.ts";
import { resolveMessages } from "../chat/messages.ts";
import { resolveChatRequest, resolveCompletionRequest } from "../chat/request.ts";
import { collectCompletion, newCompletionHead } from "../chat/response.ts";
import { openChatCompletionStream } from "../chat/stream.ts";
import type {
  ChatCompletion,
  ChatCompletionRequest,
  ChatCompletionRequestNonStreaming,
  ChatCompletionRequestStreaming,
  ChatCompletionStream,
  ChatMessage,
  CompletionRequest,
} from "../chat/types.ts";
import { InlayError } from "../errors.ts";
import type { AttentionMap, AttentionMapOptions } from "../eval/attention-map.ts";
import type { GenerateEvent } from "../generate/events.ts";
import type { GenerateRequest, Prompt } from "../generate/request.ts";
import { anySignal } from "../gguf/abort.ts";
import { checkKnownNames, checkNumber, checkObject, checkOneOf } from "../option-checks.ts";
import type { EngineClient } from "../rpc/client.ts";
import type { MemoryReport, ModelInfo } from "../rpc/engine-api.ts";
import type { DecodeOptions, EncodeOptions } from "../tokenizer/tokenizer.ts";
import { type PinnedPrompt, PinnedPrompts, type PinOptions, pin } from "./pinned.ts";
import { Session, type SessionOptions } from "./session.ts";

/** How far a prompt has been read. */
export interface PromptProgress {
  readonly phase: "prefill";
  /** Prompt tokens done, those found in the cache included. */
  readonly loaded: number;
  /** Prompt tokens in all. */
  readonly total: number;
  /** 0 to 1. */
  readonly progress: number;
}

/** What every request may be given besides itself. */
export interface RequestOptions {
  /** Aborting it ends the request, which rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
  /** Called while the prompt is read, about once per `prefillChunk` tokens. */
  onProgress?: ((progress: PromptProgress) => void) | undefined;
}

/** `model.chat.completions`, as in OpenAI's client. */
export interface ChatCompletions {
  /** Answers a conversation in one piece. Rejects with an InlayError, or with `signal.reason`. */
  create(request: ChatCompletionRequestNonStreaming, options?: RequestOptions): Promise<ChatCompletion>;
  /** Answers in chunks as they are generated; leaving the loop cancels the rest. */
  create(request: ChatCompletionRequestStreaming, options?: RequestOptions): Promise<ChatCompletionStream>;
  create(
    request: ChatCompletionRequest,
    options?: RequestOptions,
  ): Promise<ChatCompletion | ChatCompletionStream>;
}

/**
 * A model in a worker of its own. Whoever loaded it disposes it. Requests are answered one after another;
 * a prompt that begins like an earlier one is only read from where they differ.
 */
export class Model {
  /** OpenAI's shape: `model.chat.completions.create({ messages })`. */
  readonly chat: { readonly completions: ChatCompletions };
  /** The prompts that are stored for this model. */
  readonly pinned: PinnedPrompts;
  readonly #client: EngineClient;
  #disposed: Promise<void> | undefined;

  /** @internal Models come from `loadModel`. */
  constructor(
    client: EngineClient,
    /** Shapes, context length, and what runs where. */
    readonly config: ModelInfo,
  ) {
    this.#client = client;
    this.pinned = new PinnedPrompts(client);
    const create = (request: ChatCompletionRequest, options?: RequestOptions) => this.#chat(request, options);
    this.chat = { completions: { create: create as ChatCompletions["create"] } };
  }

  /**
   * Continues text or tokens without a chat template: text in pieces, then one end with counts and times.
   * Leaving the loop cancels the rest. Throws `invalid-option`, `context-full`, or `signal.reason`.
   */
  complete(request: CompletionRequest, options: RequestOptions = {}): AsyncGenerator<GenerateEvent, void> {
    return this.generate(resolveCompletionRequest(request), options);
  }

  /** @internal The events of a request that is already resolved. */
  async *generate(
    request: GenerateRequest,
    options: RequestOptions = {},
  ): AsyncGenerator<GenerateEvent, void> {
    const { signal, onProgress } = options;
    for await (const event of this.#client.generate(request, signal)) {
      if (event.kind === "prefill") {
        const { loaded, total } = event;
        onProgress?.({ phase: "prefill", loaded, total, progress: loaded / total });
      }
      yield event;
    }
  }

  /** @internal The ids that the model would continue, template and BOS included. */
  async promptIds(prompt: Prompt): Promise<Uint32Array> {
    return this.#client.call((engine) => engine.promptIds(prompt));
  }

  /**
   * Prefills text (as a system message, where the model has a chat template) or messages once, stores their keys and
   * values under `id`, and opens them. If just that is stored already, it is only opened; anything else under the id is
   * replaced. Rejects with `storage-quota`, `storage-failed`, `context-full`, `template-failed`, or `signal.reason`.
   */
  async pin(textOrMessages: string | readonly ChatMessage[], options: PinOptions): Promise<PinnedPrompt> {
    return pin(this.#client, this.config.hasChatTemplate, textOrMessages, options);
  }

  /** Opens a conversation that remembers its turns. */
  async createSession(options: SessionOptions = {}): Promise<Session> {
    return Session.open(this.config, this.#client, options);
  }

  /** The ids of plain text; no BOS unless `addSpecial`. */
  async tokenize(text: string, options: EncodeOptions = {}): Promise<Uint32Array> {
    if (typeof text !== "string")
      throw new InlayError("invalid-option", `text is a ${typeof text}; it must be a string`);
    return this.#client.call((engine) => engine.tokenize(text, options));
  }

  /** The text of ids. Throws `invalid-option` for an id outside the vocabulary. */
  async detokenize(ids: ArrayLike<number>, options: DecodeOptions = {}): Promise<string> {
    const list = Uint32Array.from(ids);
    return this.#client.call((engine) => engine.detokenize(list, options));
  }

  /** Tokens that a conversation takes as a prompt, the opening of the answer included. */
  async countTokens(messages: readonly ChatMessage[]): Promise<number> {
    const options = { addGenerationPrompt: true };
    const ids = await this.promptIds({ kind: "chat", messages: resolveMessages(messages), options });
    return ids.length;
  }

  /**
   * Reads a text with a policy, apart from all conversations, and tells which pages of 32 tokens each block of 32
   * queries read, and how much of the model's attention lies on them: for looking at, not for answering.
   * Throws `invalid-option` for more tokens than the context or 4096, and for what the device cannot do.
   */
  async attentionMap(text: string, options: AttentionMapOptions = {}): Promise<AttentionMap> {
    if (typeof text !== "string")
      throw new InlayError("invalid-option", `text is a ${typeof text}; it must be a string`);
    checkKnownNames("", checkObject("options", options), ["policy", "budget"]);
    const { policy = "dhsa", budget = 0.25 } = options;
    checkOneOf("policy", policy, PREFILL_POLICIES);
    checkNumber("budget", budget, { min: 0, aboveMin: true, max: 1 });
    return this.#client.call((engine) => engine.attentionMap(text, { policy, budget }));
  }

  /** Bytes in use now. */
  async memory(): Promise<MemoryReport> {
    return this.#client.call((engine) => engine.memory());
  }

  /** Ends requests in progress, frees everything and stops the worker. Idempotent; later calls reject with `disposed`. */
  dispose(): Promise<void> {
    this.#disposed ??= this.#dispose();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #dispose(): Promise<void> {
    try {
      await this.#client.call((engine) => engine.dispose());
    } catch {
      // A worker that has died has nothing left to free.
    } finally {
      this.#client.terminate();
    }
  }

  async #chat(
    request: ChatCompletionRequest,
    options: RequestOptions = {},
  ): Promise<ChatCompletion | ChatCompletionStream> {
    const resolved = resolveChatRequest(request);
    const head = newCompletionHead(resolved.model ?? this.config.name);
    if (!resolved.stream) return collectCompletion(this.generate(resolved.generate, options), head);
    const controller = new AbortController();
    const signal = anySignal(options.signal, controller.signal);
    const events = this.generate(resolved.generate, { ...options, signal });
    return openChatCompletionStream(events, head, resolved.includeUsage, (reason) =>
      controller.abort(reason),
    );
  }
}
