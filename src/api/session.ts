/**
 * A conversation that remembers its turns, in the words of the web platform's Prompt API: prompt, promptStreaming,
 * append, clone, contextUsage, contextWindow, destroy.
 *
 * A session is its messages. The engine finds what it already has of them in its caches, so a turn only reads what
 * is new, and a clone shares its origin's pages.
 */

import { resolveMessages } from "../chat/messages.ts";
import { resolveChatRequest } from "../chat/request.ts";
import type { ChatMessage, SamplingFields } from "../chat/types.ts";
import { TaskQueue } from "../engine/task-queue.ts";
import { InlayError } from "../errors.ts";
import { anySignal } from "../gguf/abort.ts";
import { checkObject, invalidOption } from "../option-checks.ts";
import type { EngineClient } from "../rpc/client.ts";
import type { ModelInfo } from "../rpc/engine-api.ts";
import type { RequestOptions } from "./model.ts";
import type { PinnedPrompt } from "./pinned.ts";

/** Options of `model.createSession`: how every turn is sampled, and what the conversation begins with. */
export interface SessionOptions extends SamplingFields {
  /** What the conversation begins with, before `initialPrompts`: an open prompt that was pinned as messages. @default none */
  pinned?: PinnedPrompt | null | undefined;
  /** System prompt, examples, earlier turns. @default none */
  initialPrompts?: readonly ChatMessage[] | undefined;
  /** Ends opening the session; rejects with `signal.reason`. */
  signal?: AbortSignal | undefined;
}

/** A user's message, or several messages. */
export type SessionInput = string | readonly ChatMessage[];

/** What every turn's request has beside its messages. */
type SessionFields = Pick<SessionOptions, keyof SamplingFields | "pinned">;

export class Session {
  /** Positions that the conversation may take. */
  readonly contextWindow: number;
  readonly #client: EngineClient;
  readonly #config: ModelInfo;
  readonly #sampling: SessionFields;
  readonly #queue = new TaskQueue();
  readonly #life = new AbortController();
  #messages: readonly ChatMessage[];
  #contextUsage = 0;

  /** @internal Sessions come from `model.createSession`. */
  static async open(config: ModelInfo, client: EngineClient, options: SessionOptions): Promise<Session> {
    checkObject("options", options);
    const { initialPrompts = [], signal, ...sampling } = options;
    resolveChatRequest({ messages: [{ role: "user", content: "" }], ...sampling });
    if (!Array.isArray(initialPrompts))
      throw invalidOption("initialPrompts", initialPrompts, "an array of messages");
    const session = new Session(config, client, sampling, []);
    if (initialPrompts.length > 0) await session.append(initialPrompts, { signal });
    return session;
  }

  private constructor(
    config: ModelInfo,
    client: EngineClient,
    sampling: SessionFields,
    messages: readonly ChatMessage[],
  ) {
    this.contextWindow = config.contextLength;
    this.#config = config;
    this.#client = client;
    this.#sampling = sampling;
    this.#messages = messages;
    this.#contextUsage = sampling.pinned?.info.tokens ?? 0;
  }

  /** Tokens that the conversation takes so far. */
  get contextUsage(): number {
    return this.#contextUsage;
  }

  /** The conversation so far, oldest message first. */
  get messages(): readonly ChatMessage[] {
    return this.#messages;
  }

  /** Answers in one piece. Rejects with an InlayError or `signal.reason`; the conversation is then as before. */
  async prompt(input: SessionInput, options: RequestOptions = {}): Promise<string> {
    let text = "";
    for await (const piece of this.promptStreaming(input, options)) text += piece;
    return text;
  }

  /**
   * Answers piece by piece. Leaving the loop cancels the answer; the turn is then forgotten, as it is on an error.
   */
  async *promptStreaming(input: SessionInput, options: RequestOptions = {}): AsyncGenerator<string, void> {
    const added = messagesOf(input);
    const signal = anySignal(options.signal, this.#life.signal);
    const leave = await this.#queue.enter(signal);
    try {
      const messages = [...this.#messages, ...added];
      const { generate } = resolveChatRequest({ ...this.#sampling, messages });
      let answer = "";
      for await (const event of this.#client.generate(generate, signal)) {
        if (event.kind === "prefill") {
          const { loaded, total } = event;
          options.onProgress?.({ phase: "prefill", loaded, total, progress: loaded / total });
        } else if (event.kind === "text") {
          answer += event.text;
          if (event.text !== "") yield event.text;
        } else {
          this.#messages = [...messages, { role: "assistant", content: answer }];
          this.#contextUsage = event.usage.promptTokens + event.usage.completionTokens;
        }
      }
    } finally {
      leave();
    }
  }

  /** Adds messages without asking for an answer, and reads them, so that the next answer starts sooner. */
  async append(input: SessionInput, options: RequestOptions = {}): Promise<void> {
    const added = messagesOf(input);
    const signal = anySignal(options.signal, this.#life.signal);
    const leave = await this.#queue.enter(signal);
    try {
      const messages = [...this.#messages, ...added];
      const prompt = {
        kind: "chat",
        messages: resolveMessages(messages),
        options: { addGenerationPrompt: false },
        pinned: this.#sampling.pinned?.key,
      } as const;
      for await (const event of this.#client.prefill(prompt, signal)) {
        if (event.kind !== "prefill") continue;
        const { loaded, total } = event;
        this.#contextUsage = total;
        options.onProgress?.({ phase: "prefill", loaded, total, progress: loaded / total });
      }
      this.#messages = messages;
    } finally {
      leave();
    }
  }

  /** A second session with the same turns; from here on the two go their own ways and share what they have in common. */
  async clone(): Promise<Session> {
    this.#life.signal.throwIfAborted();
    const clone = new Session(this.#config, this.#client, this.#sampling, this.#messages);
    clone.#contextUsage = this.#contextUsage;
    return clone;
  }

  /** Ends the session and an answer in progress; later calls reject with `disposed`. Idempotent. */
  destroy(): void {
    this.#life.abort(new InlayError("disposed", "the session was destroyed"));
  }

  [Symbol.dispose](): void {
    this.destroy();
  }
}

function messagesOf(input: SessionInput): ChatMessage[] {
  if (typeof input === "string") return [{ role: "user", content: input }];
  if (Array.isArray(input)) return [...input];
  throw invalidOption("input", input, "a string or an array of messages");
}
