// Asking pinned prompts, and being refused.

import { assert } from "chai";
import { InlayError, type Model, type PinnedPrompt } from "/dist/inlay.js";

type Messages = Parameters<Model["chat"]["completions"]["create"]>[0]["messages"];

/** A greedy answer of 16 tokens. */
export async function ask(model: Model, pinned: PinnedPrompt, messages: Messages) {
  const request = { messages, pinned, temperature: 0, max_tokens: 16 };
  const { choices, usage } = await model.chat.completions.create(request);
  return { text: choices[0]!.message.content, cached: usage.prompt_tokens_details.cached_tokens };
}

/** What a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<InlayError> {
  try {
    await promise;
  } catch (error) {
    assert.instanceOf(error, InlayError, String(error));
    return error as InlayError;
  }
  return assert.fail("it did not reject");
}
