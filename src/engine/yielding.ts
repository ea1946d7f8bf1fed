/** Letting other messages in: a worker that computes without pause never hears of a cancellation. */

import { abortable } from "../gguf/abort.ts";

/** Computing for at most this long without a pause keeps an abort's latency below a frame or two. */
const PAUSE_EVERY_MS = 16;

/** Pauses a long computation now and then, and ends it when its signal is aborted. */
export class Checkpoint {
  #last = performance.now();

  constructor(private readonly signal: AbortSignal | undefined) {}

  /** Call it often. Throws `signal.reason` once aborted. */
  async pass(): Promise<void> {
    if (performance.now() - this.#last >= PAUSE_EVERY_MS) {
      await nextTask();
      this.#last = performance.now();
    }
    this.signal?.throwIfAborted();
  }

  /** Settles as `promise` does, or rejects with `signal.reason` as soon as that aborts. */
  async wait<T>(promise: Promise<T>): Promise<T> {
    const result = await abortable(promise, this.signal);
    this.#last = performance.now(); // waiting let messages in
    return result;
  }
}

let resume: (() => void)[] = [];
let channel: MessageChannel | undefined;

/** Resolves in a new task, after messages that have arrived are handled. setTimeout would wait 4 ms and more. */
export function nextTask(): Promise<void> {
  const { setImmediate } = globalThis as { setImmediate?: (f: () => void) => void }; // Node
  if (setImmediate) return new Promise((resolve) => setImmediate(resolve));
  if (!channel) {
    channel = new MessageChannel();
    channel.port1.onmessage = () => {
      const waiting = resume;
      resume = [];
      for (const f of waiting) f();
    };
  }
  return new Promise((resolve) => {
    resume.push(resolve);
    channel!.port2.postMessage(null);
  });
}
