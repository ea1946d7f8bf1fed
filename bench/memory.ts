/** How much memory a page's renderer process takes for a long prompt. */

import path from "node:path";
import { startBrowser } from "./browser.ts";
import { ensureModel } from "./models.ts";
import { promptMaker } from "./prompts.ts";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

const MODEL = "smollm2-135m";
const TYPE = "q4_0";
const PROMPT = 32_760;
const CONTEXT = 32_768;

/** MB of the renderer that the issue allows. */
const LIMITS = { f16: 1200, q4: 700 } as const;
const FORMATS = Object.keys(LIMITS) as (keyof typeof LIMITS)[];

export const memory: Section = {
  title: "Memory",
  about:
    `The most resident memory (\`VmHWM\`, shared libraries of some 150 MB included) that Chromium's renderer process had while ${MODEL}'s shape (${TYPE}, ` +
    `random weights) read ${PROMPT} tokens and wrote one, two threads, beside the limit that we set. The prompt is read with \`window\` at the least ` +
    "budget, since dense or dhsa attention of 32K tokens would take many minutes on two cores; keys are remembered as for `dhsa`, so the " +
    "same is held in the end as with it. Its own Chromium, in which nothing else runs.",
  baseline: "limit",
  owns: (id) => id.startsWith("memory/"),
  ids: FORMATS.map((format) => `memory/32k/${format}`),
  leftOut: [
    { what: "memory of a GPU process", reason: "the only GPUs here are software, whose memory is the CPU's" },
  ],
  needsPeer: false,
  async *run({ log }, wanted) {
    const file = ensureModel(MODEL, TYPE, CONTEXT);
    for (const format of FORMATS) {
      const id = `memory/32k/${format}`;
      if (!wanted.has(id)) continue;
      const browser = await startBrowser();
      try {
        const engine = await browser.load("inlay/relaxed", `/models/${path.basename(file)}`, {
          ...{ contextLength: CONTEXT, threads: 2, kvCache: { format } },
          attention: { prefill: "window", decode: "dhsa", budget: 0.001 },
        });
        const loaded = browser.rendererPeakBytes();
        const seconds = await engine.prefill(promptMaker(MODEL)(PROMPT, 1));
        const peak = browser.rendererPeakBytes();
        log(
          `  ${id}: ${mb(loaded)} MB once loaded, ${mb(peak)} MB at most; ${engine.about}; ` +
            `${(PROMPT / seconds).toFixed(0)} tokens/s`,
        );
        yield limitResult(id, "MB", [peak / 1e6], LIMITS[format]);
      } finally {
        await browser.close();
      }
    }
  },
};

const mb = (bytes: number) => (bytes / 1e6).toFixed(0);
