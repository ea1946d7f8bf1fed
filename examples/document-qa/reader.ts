/**
 * Questions about one pinned document. A model with a chat template has the document as its system prompt and remembers
 * what was asked; one without continues the document by each text, every time from its end.
 */

import type { ChatMessage, Model, PinnedPrompt } from "inlay";

/** How an answer came. */
export interface AnswerTimes {
  readonly firstTokenSeconds: number | null;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly answerTokens: number;
}

export class Reader {
  #messages: readonly ChatMessage[] = [];

  constructor(
    private readonly model: Model,
    readonly document: PinnedPrompt,
  ) {}

  /** Answers piece by piece. Rejects with an InlayError or `signal.reason`. */
  ask(question: string, signal: AbortSignal, onText: (piece: string) => void): Promise<AnswerTimes> {
    return this.document.info.raw
      ? this.#goOn(question, signal, onText)
      : this.#chat(question, signal, onText);
  }

  async #chat(question: string, signal: AbortSignal, onText: (piece: string) => void): Promise<AnswerTimes> {
    const messages: ChatMessage[] = [...this.#messages, { role: "user", content: question }];
    const stream = await this.model.chat.completions.create(
      {
        pinned: this.document,
        messages,
        stream: true,
        stream_options: { include_usage: true },
        max_tokens: MAX_TOKENS,
      },
      { signal },
    );
    let answer = "";
    try {
      for await (const { choices, usage } of stream) {
        const piece = choices[0]?.delta.content ?? "";
        answer += piece;
        if (piece !== "") onText(piece);
        if (usage)
          return {
            firstTokenSeconds: usage.extra.time_to_first_token_s,
            promptTokens: usage.prompt_tokens,
            cachedTokens: usage.prompt_tokens_details.cached_tokens,
            answerTokens: usage.completion_tokens,
          };
      }
    } finally {
      if (answer !== "") this.#messages = [...messages, { role: "assistant", content: answer }];
    }
    throw new Error("the answer had no end");
  }

  async #goOn(text: string, signal: AbortSignal, onText: (piece: string) => void): Promise<AnswerTimes> {
    const request = { pinned: this.document, prompt: text, max_tokens: MAX_TOKENS };
    for await (const event of this.model.complete(request, { signal })) {
      if (event.kind === "text") onText(event.text);
      else if (event.kind === "end") {
        const { promptTokens, cachedTokens, completionTokens, timeToFirstTokenSeconds } = event.usage;
        return {
          firstTokenSeconds: timeToFirstTokenSeconds ?? null,
          promptTokens,
          cachedTokens,
          answerTokens: completionTokens,
        };
      }
    }
    throw new Error("the answer had no end");
  }
}

const MAX_TOKENS = 256;
