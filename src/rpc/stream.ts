/**
 * The events of one answer, or of pinning a prompt, over a MessagePort. The engine pushes, so no token costs a round trip; the page grants credit
 * as it consumes, so a slow reader holds the engine back instead of filling memory. Leaving the loop, or aborting,
 * sends one "cancel".
 */

import type { FromStream, ToStream } from "./engine-api.ts";
import { fromWire, toWire } from "./wire-error.ts";

/** Events under way at most. */
const WINDOW = 64;

/** Sends `events` over `port` until they end or the other side cancels, which aborts `controller`. Never rejects. */
export async function sendEvents<Event>(
  port: MessagePort,
  events: (signal: AbortSignal) => AsyncGenerator<Event>,
): Promise<void> {
  const controller = new AbortController();
  let credit = WINDOW;
  let wake = () => {};
  port.onmessage = ({ data }: MessageEvent<ToStream>) => {
    if (data.kind === "cancel") controller.abort(new DOMException("The answer was cancelled.", "AbortError"));
    else credit += data.nEvents;
    wake();
  };
  const send = (message: FromStream<Event>) => port.postMessage(message);
  try {
    for await (const event of events(controller.signal)) {
      while (credit === 0 && !controller.signal.aborted) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      controller.signal.throwIfAborted();
      send({ kind: "event", event });
      credit--;
    }
    send({ kind: "done" });
  } catch (error) {
    // A cancelled reader has gone or throws its own reason; it still wants to know that the engine is free.
    send(controller.signal.aborted ? { kind: "done" } : { kind: "error", error: toWire(error) });
  } finally {
    port.close();
  }
}

/**
 * The events of the answer behind `port`. Rejects with `signal.reason` when aborted, with the engine's error, or
 * with what `died` rejects with. Ends only when the engine has let go.
 */
export async function* receiveEvents<Event>(
  port: MessagePort,
  signal: AbortSignal | undefined,
  died: Promise<never>,
): AsyncGenerator<Event, void> {
  const queue: FromStream<Event>[] = [];
  let wake = () => {};
  let isOver = false;
  let failure: { error: unknown } | undefined;
  const tell = (message: ToStream) => port.postMessage(message);
  port.onmessage = ({ data }: MessageEvent<FromStream<Event>>) => {
    queue.push(data);
    wake();
  };
  died.catch((error: unknown) => {
    failure = { error };
    wake();
  });
  const onAbort = () => {
    tell({ kind: "cancel" });
    wake();
  };
  signal?.addEventListener("abort", onAbort);
  const next = async (): Promise<FromStream<Event> | undefined> => {
    while (queue.length === 0) {
      if (failure) throw failure.error;
      if (signal?.aborted) return undefined;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    return signal?.aborted ? undefined : queue.shift();
  };
  try {
    signal?.throwIfAborted();
    for (;;) {
      const message = await next();
      if (!message) throw signal!.reason;
      if (message.kind === "event") {
        yield message.event;
        tell({ kind: "credit", nEvents: 1 });
        continue;
      }
      isOver = true;
      if (message.kind === "error") throw fromWire(message.error);
      return;
    }
  } finally {
    signal?.removeEventListener("abort", onAbort);
    if (!isOver && !failure) {
      tell({ kind: "cancel" });
      await drained(port, queue, died);
    }
    port.close();
  }
}

/** Resolves when the engine has ended the answer. */
async function drained(
  port: MessagePort,
  queue: readonly FromStream<unknown>[],
  died: Promise<never>,
): Promise<void> {
  if (queue.some(({ kind }) => kind !== "event")) return;
  const ended = new Promise<void>((resolve) => {
    port.onmessage = ({ data }: MessageEvent<FromStream<unknown>>) => {
      if (data.kind !== "event") resolve();
    };
  });
  await Promise.race([ended, died.catch(() => {})]);
}
