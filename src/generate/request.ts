/** What the engine is asked to generate: complete, validated, plain data that crosses the worker boundary. */

import type { ChatMessages, RenderOptions } from "../tokenizer/chat-template.ts";
import type { SamplingParams } from "./sampling-params.ts";

/** What the answer continues. */
export type Prompt = PromptText & {
  /** Key of an open pinned prompt that comes first; see src/prompts/pinned-prompts.ts. */
  readonly pinned?: string | undefined;
};

type PromptText =
  | { readonly kind: "ids"; readonly ids: Uint32Array }
  | {
      readonly kind: "text";
      readonly text: string;
      /** true: the text of a special token (`<|im_end|>`) is that token; false: it is ordinary characters. */
      readonly parseSpecial: boolean;
    }
  /** Messages, which the model's chat template makes text of. */
  | { readonly kind: "chat"; readonly messages: ChatMessages; readonly options: RenderOptions };

/** One answer to generate. */
export interface GenerateRequest {
  /** Text gets a BOS token if the model file asks for one and the text does not begin with it; ids are used as given. */
  readonly prompt: Prompt;
  readonly sampling: SamplingParams;
  /** 0 to 16 strings that end the answer and are not part of it. */
  readonly stop: readonly string[];
  /** Most tokens to generate, at least 1; undefined = until the context is full. */
  readonly maxTokens: number | undefined;
  /** Alternatives to report with each token, 0 to 20; undefined = no log-probabilities. */
  readonly topLogprobs: number | undefined;
  /** true: end tokens do not end the answer. @default false */
  readonly ignoreEnd?: boolean | undefined;
}
