/** From what a request continues to token ids: chat template, tokenizer, BOS. */

import type { Prompt } from "../generate/request.ts";
import { ChatTemplate, chooseTemplate, missingTemplate } from "../tokenizer/chat-template.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export class PromptEncoder {
  /** Compiled at the first chat that needs them: a broken template must not keep raw completions from working. */
  readonly #compiled = new Map<string, ChatTemplate>();

  /** `chosen`: the caller's template, null for the model's own, which are in `ofModel` by name. */
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly chosen: string | null,
    private readonly ofModel: Readonly<Record<string, string>>,
  ) {}

  /** Whether chats can be rendered at all. */
  get hasTemplate(): boolean {
    return chooseTemplate(this.chosen, this.ofModel, false) !== undefined;
  }

  /** The ids that the model is to continue. Throws `template-failed` for a chat that cannot be rendered. */
  encode(prompt: Prompt): Uint32Array {
    switch (prompt.kind) {
      case "ids":
        return prompt.ids;
      case "text":
        return this.#withBos(this.tokenizer.encode(prompt.text, { parseSpecial: prompt.parseSpecial }));
      case "chat":
        return this.#withBos(this.tokenizer.encode(this.#render(prompt), { parseSpecial: true }));
    }
  }

  /** BOS first if the model file asks for it, and once only: many templates print it themselves. */
  #withBos(ids: Uint32Array): Uint32Array {
    const { addBos, bosId } = this.tokenizer;
    if (!addBos || ids[0] === bosId) return ids;
    const withBos = new Uint32Array(ids.length + 1);
    withBos[0] = bosId!;
    withBos.set(ids, 1);
    return withBos;
  }

  #render({ messages, options }: Extract<Prompt, { kind: "chat" }>): string {
    const source = chooseTemplate(this.chosen, this.ofModel, (options.tools?.length ?? 0) > 0);
    if (source === undefined) throw missingTemplate();
    let template = this.#compiled.get(source);
    if (!template) {
      const text = (id: number | undefined) => (id === undefined ? "" : this.tokenizer.tokenText(id));
      const { bosId, eosId } = this.tokenizer;
      template = ChatTemplate.compile(source, { bosToken: text(bosId), eosToken: text(eosId) });
      this.#compiled.set(source, template);
    }
    return template.render(messages, options);
  }
}
