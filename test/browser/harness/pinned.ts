// Asking pinned prompts, being refused, and looking at what is stored.

import { assert } from "chai";
import { createStore, keys, values } from "idb-keyval";
import { InlayError, type Model, type PinnedPrompt } from "/dist/inlay.js";
import { browser, skip } from "./index.ts";

/** What is stored: of each prompt an entry, and its records. */
export const prompts = createStore("inlay-prompts", "manifests");
export const pages = createStore("inlay-pages", "records");

/** Records that no prompt names. */
export async function orphans(): Promise<string[]> {
  const named = (await values<{ pages: string }>(prompts)).map((entry) => entry.pages);
  return (await keys<string>(pages)).filter((key) => !named.some((name) => key.startsWith(`${name}/`)));
}

/** From before to after a suite's tests: every worker that the page starts, to be killed as a closed tab's is. */
export function watchWorkers(): readonly Worker[] {
  const workers: Worker[] = [];
  const BrowserWorker = globalThis.Worker;
  before(() => {
    globalThis.Worker = class extends BrowserWorker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args);
        workers.push(this);
      }
    };
  });
  after(() => {
    globalThis.Worker = BrowserWorker;
  });
  return workers;
}

/**
 * WebKitGTK now and then keeps the transaction of a worker that was killed, and with it the store, until the site's tabs
 * are closed (seen after 20 to 200 kills). The store then says so (prompt-store.test.ts); these tests cannot go on.
 */
export function skipKilling(context: Mocha.Context): void {
  if (browser === "webkit")
    skip(context, "WebKitGTK may keep a killed worker's IndexedDB transaction for ever");
}

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
