/** What runs and can be stopped: a load, an answer. One thing at a time. */

import { InlayError } from "inlay";
import { hideError } from "./notices.ts";

/** What the page does when something goes wrong. */
export interface Trouble {
  /** Tells that something failed and why. */
  showError(what: string, cause: unknown): void;
  /** The worker has died, and the model with it. */
  leave(): void;
}

export class Work {
  #current: { readonly controller: AbortController; readonly done: Promise<void> } | undefined;

  constructor(private readonly trouble: Trouble) {}

  get isRunning(): boolean {
    return this.#current !== undefined;
  }

  /** Runs `run` once what ran before has been stopped. Errors are shown after `failed`; being stopped is none. */
  async start(failed: string, run: (signal: AbortSignal) => Promise<void>): Promise<void> {
    while (this.#current) await this.stop();
    const controller = new AbortController();
    hideError();
    const done = run(controller.signal)
      .catch((error: unknown) => {
        if (error instanceof InlayError && error.code === "worker-died") this.trouble.leave();
        if (!controller.signal.aborted) this.trouble.showError(failed, error);
      })
      .finally(() => {
        this.#current = undefined;
      });
    this.#current = { controller, done };
    await done;
  }

  async stop(): Promise<void> {
    this.#current?.controller.abort();
    await this.#current?.done;
  }
}
