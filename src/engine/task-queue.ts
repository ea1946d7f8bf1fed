/** One task at a time, in order of arrival. */

import { abortable } from "../gguf/abort.ts";

export class TaskQueue {
  /** Resolves when everything that entered before has left. */
  #last: Promise<void> = Promise.resolve();
  #closed: Error | undefined;

  /**
   * Waits for its turn; the result ends the turn and must be called. Rejects with the signal's reason, which gives
   * the turn up, or with the error that the queue was closed with.
   */
  async enter(signal?: AbortSignal): Promise<() => void> {
    if (this.#closed) throw this.#closed;
    const before = this.#last;
    let leave = () => {};
    this.#last = new Promise<void>((resolve) => {
      leave = resolve;
    });
    try {
      await abortable(before, signal);
    } catch (error) {
      // Whoever is behind us waits for those before us.
      before.then(leave);
      throw error;
    }
    if (this.#closed) {
      leave();
      throw this.#closed;
    }
    return leave;
  }

  /** Refuses everything that has not had its turn yet; resolves when the task that has it is done. */
  async close(error: Error): Promise<void> {
    this.#closed = error;
    await this.#last;
  }
}
