/** Pinned prompts: restoring beside prefilling, stored bytes beside f16, listing many. */

import path from "node:path";
import type { PinBits } from "../src/index.ts";
import { ensureModel } from "./models.ts";
import type { PinnedTimes } from "./page/pinned-job.ts";
import { promptMaker } from "./prompts.ts";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

const MODEL = "smollm2-135m";
const TYPE = "q4_0";
/** More than the model itself has: speed does not depend on what it was trained for. */
const CONTEXT_LENGTH = 32_768;
/** Prompt tokens, and the bits that they are stored at: each takes a prefill of its own. */
const LENGTHS: readonly (readonly [nTokens: number, bits: readonly (PinBits | "auto")[]])[] = [
  [2048, [2, 4, "auto"]],
  [8192, [2, "auto"]],
  [16384, [2, "auto"]],
];
const N_LISTED = 100;
/** Listing must stay below this (issue 5). */
const LISTING_LIMIT_MS = 50;

const restoreId = (length: number) => `pinned-restore/${length / 1024}k/chromium`;
const storedId = (length: number, bits: PinBits | "auto") => `stored-kv/${length / 1024}k/${bits}`;
const LIST_ID = `pinned-list/${N_LISTED}/chromium`;

export const pinned: Section = {
  title: "Pinned prompts",
  about:
    `\`pinned-restore\`: seconds from opening a stored prompt of ${MODEL} (${TYPE}, 2 bits) in a fresh worker to the first token of an answer that is asked for while its pages are still being read (\`wait: false\`), ` +
    "beside the seconds that prefilling it took when it was pinned, once; threads as the page gets them. `stored-kv`: all stored " +
    "bytes of a prompt, text, tokens, sinks and window included, beside its keys and values in f16; `auto`: bits chosen head by head, the default (the weights are random, and 15 of 90 heads get 4 bits). `pinned-list`: " +
    `milliseconds of listing ${N_LISTED} prompts, beside the limit of ${LISTING_LIMIT_MS}.`,
  baseline: "other",
  owns: (id) => /^(pinned-restore|stored-kv|pinned-list)\//.test(id),
  ids: [
    ...LENGTHS.flatMap(([nTokens, bits]) => [restoreId(nTokens), ...bits.map((n) => storedId(nTokens, n))]),
    LIST_ID,
  ],
  leftOut: [],
  needsPeer: false,
  async *run(context, wanted) {
    const browser = await context.browser();
    const modelUrl = `/models/${path.basename(ensureModel(MODEL, TYPE, CONTEXT_LENGTH))}`;
    const rounds = context.repeat ?? 3;
    for (const [nTokens, allBits] of LENGTHS) {
      for (const bits of allBits) {
        const ids = [storedId(nTokens, bits), ...(bits === 2 ? [restoreId(nTokens)] : [])];
        if (!ids.some((id) => wanted.has(id))) continue;
        const times: PinnedTimes = await browser.runPinned({
          modelUrl,
          text: promptMaker(MODEL)(nTokens, 1).text,
          contextLength: nTokens + 128,
          bits: bits === "auto" ? undefined : bits,
          rounds: bits === 2 ? rounds : 1,
        });
        context.log(
          `  ${times.tokens} tokens at ${bits} bits (${times.bits} on average), ${times.attention}: prefilled in ${times.prefillSeconds.toFixed(1)} s, ` +
            `restored in ${times.restoreSeconds.map((s) => s.toFixed(3))} s`,
        );
        if (bits === 2 && wanted.has(restoreId(nTokens)))
          yield limitResult(restoreId(nTokens), "s", times.restoreSeconds, times.prefillSeconds);
        if (wanted.has(storedId(nTokens, bits)))
          yield limitResult(storedId(nTokens, bits), "bytes", [times.byteLength], times.f16Bytes);
      }
    }
    if (wanted.has(LIST_ID)) {
      const times = await browser.runListing(modelUrl, N_LISTED, Math.max(3, rounds));
      yield limitResult(LIST_ID, "ms", times, LISTING_LIMIT_MS);
    }
  },
};
