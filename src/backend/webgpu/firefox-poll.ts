/**
 * Keeps Firefox's GPU queue awake while a buffer map is pending.
 *
 * Firefox looks for finished GPU work from a 100 ms timer (bug 1870699, "Don't poll WebGPU from a timer"), and
 * besides only when something is submitted. A read-back per layer would cost 100 ms per layer. An empty
 * submit makes it look; submitting again until the map completes makes the wait follow the work. Each turn waits
 * for an error scope, the cheapest round trip to the GPU process (0.1 ms); `setTimeout` would be clamped to
 * 4 ms. Later turns are spaced out, so that long work is not slowed by the asking.
 *
 * Dispatch of a trivial kernel, copy of 16 KiB, `mapAsync`; medians of 15 in ms; Firefox ESR 153 and Chromium 156,
 * headless, software adapters, 2 cores; a page and a dedicated worker give the same:
 *
 *                                          Firefox    Chromium
 *     plain await of mapAsync                100        2.6
 *     one empty submit after mapAsync      0.9, at times 100
 *     empty submits, setTimeout(0)           4.4        4.3
 *     empty submits, MessageChannel          1.0        1.9
 *     empty submits, error scope             0.9        2.1
 *     onSubmittedWorkDone, any number        100        2.6
 *
 * Whether a browser needs this is measured, not read from its name. Delete this file once `needsWaking` is false
 * in every supported Firefox.
 */

import { BufferUse, MAP_MODE_READ } from "./usage.ts";

/** A map of an idle device that takes longer than this waited for a timer. */
const SLOW_MAP_MS = 40;

/** Until then every turn follows the last at once; later ones wait for an eighth of the time that has passed. */
const EAGER_MS = 10;

/** Measures whether a pending map waits for a timer. The first map may hit the timer by luck, the second cannot. */
export async function needsWaking(device: GPUDevice): Promise<boolean> {
  const label = "inlay map probe";
  const probe = device.createBuffer({ label, size: 4, usage: BufferUse.readBack });
  try {
    let elapsed = 0;
    for (let i = 0; i < 2; i++) {
      const start = performance.now();
      device.queue.submit([]);
      await probe.mapAsync(MAP_MODE_READ);
      probe.unmap();
      elapsed = performance.now() - start;
    }
    return elapsed > SLOW_MAP_MS;
  } finally {
    probe.destroy();
  }
}

/** Submits nothing, again and again, until `pending` settles. Never rejects. */
export async function keepAwake(device: GPUDevice, pending: Promise<unknown>): Promise<void> {
  let isPending = true;
  const stop = () => {
    isPending = false;
  };
  pending.then(stop, stop);
  const start = performance.now();
  while (isPending) {
    device.queue.submit([]);
    const elapsed = performance.now() - start;
    if (elapsed < EAGER_MS) {
      device.pushErrorScope("validation");
      await device.popErrorScope().catch(stop); // rejects when the device is lost, as `pending` will
    } else {
      await new Promise((resolve) => setTimeout(resolve, elapsed / 8));
    }
  }
}
