/**
 * The two ways of using a model: a chat, for models with a chat template, and a story that the model continues, for
 * those without. Both answer piece by piece and remember what was said.
 */

import type { ChatMessage, FinishReason, Model, PromptProgress, SamplingFields } from "inlay";

/** What the page gives to every answer. */
export interface AnswerOptions {
  readonly system: string;
  readonly sampling: SamplingFields;
  readonly signal: AbortSignal;
  onProgress(progress: PromptProgress): void;
  onText(piece: string): void;
}

/** How an answer went. Rates are null where there was nothing to measure. */
export interface Figures {
  readonly finishReason: FinishReason;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly answerTokens: number;
  readonly prefillPerSecond: number | null;
  readonly decodePerSecond: number | null;
  readonly firstTokenSeconds: number | null;
}

export interface Talk {
  readonly kind: "chat" | "story";
  /** What was typed as it will stand in the talk; undefined if there is nothing to answer. */
  prepare(typed: string): string | undefined;
  /** Answers `text`. Rejects with an InlayError or `signal.reason`; what was answered until then is remembered. */
  answer(text: string, options: AnswerOptions): Promise<Figures>;
  /** Tokens that the talk takes so far. */
  countTokens(): Promise<number>;
}

export function startTalk(model: Model): Talk {
  return model.config.hasChatTemplate ? new Chat(model) : new Story(model);
}

class Chat implements Talk {
  readonly kind = "chat";
  #messages: readonly ChatMessage[] = [];

  constructor(private readonly model: Model) {}

  prepare(typed: string): string | undefined {
    return typed.trim() || undefined;
  }

  async answer(text: string, options: AnswerOptions): Promise<Figures> {
    const { system, sampling, signal, onProgress, onText } = options;
    const messages: ChatMessage[] = [
      ...(system === "" ? [] : [{ role: "system", content: system } as const]),
      ...this.#messages.filter(({ role }) => role !== "system"),
      { role: "user", content: text },
    ];
    const stream = await this.model.chat.completions.create(
      { messages, stream: true, stream_options: { include_usage: true }, ...sampling },
      { signal, onProgress },
    );
    let answer = "";
    let finishReason: FinishReason = "stop";
    try {
      for await (const { choices, usage } of stream) {
        const [choice] = choices;
        const piece = choice?.delta.content ?? "";
        answer += piece;
        if (piece !== "") onText(piece);
        finishReason = choice?.finish_reason ?? finishReason;
        if (usage)
          return {
            finishReason,
            promptTokens: usage.prompt_tokens,
            cachedTokens: usage.prompt_tokens_details.cached_tokens,
            answerTokens: usage.completion_tokens,
            prefillPerSecond: usage.extra.prefill_tokens_per_s,
            decodePerSecond: usage.extra.decode_tokens_per_s,
            firstTokenSeconds: usage.extra.time_to_first_token_s,
          };
      }
    } finally {
      if (answer !== "") this.#messages = [...messages, { role: "assistant", content: answer }];
    }
    throw new Error("the answer had no end");
  }

  async countTokens(): Promise<number> {
    return this.#messages.length === 0 ? 0 : this.model.countTokens(this.#messages);
  }
}

class Story implements Talk {
  readonly kind = "story";
  #text = "";

  constructor(private readonly model: Model) {}

  /** Nothing typed is something to answer once there is a story: it goes on. */
  prepare(typed: string): string | undefined {
    const text = typed.trimEnd();
    if (this.#text === "") return text || undefined;
    const needsSpace = /\S$/.test(this.#text) && /^[\p{L}\p{N}]/u.test(text);
    return needsSpace ? ` ${text}` : text;
  }

  async answer(text: string, { sampling, signal, onProgress, onText }: AnswerOptions): Promise<Figures> {
    const prompt = this.#text + text;
    let continuation = "";
    try {
      for await (const event of this.model.complete({ prompt, ...sampling }, { signal, onProgress })) {
        if (event.kind === "text") {
          continuation += event.text;
          onText(event.text);
        } else if (event.kind === "end") {
          const { promptTokens, cachedTokens, completionTokens, ...times } = event.usage;
          return {
            finishReason: event.finishReason,
            promptTokens,
            cachedTokens,
            answerTokens: completionTokens,
            prefillPerSecond: rate(promptTokens - cachedTokens, times.prefillSeconds),
            decodePerSecond: rate(completionTokens - 1, times.decodeSeconds),
            firstTokenSeconds: times.timeToFirstTokenSeconds ?? null,
          };
        }
      }
    } finally {
      if (continuation !== "") this.#text = prompt + continuation;
    }
    throw new Error("the continuation had no end");
  }

  async countTokens(): Promise<number> {
    return (await this.model.tokenize(this.#text, { addSpecial: true })).length;
  }
}

function rate(tokens: number, seconds: number): number | null {
  return tokens > 0 && seconds > 0 ? tokens / seconds : null;
}
