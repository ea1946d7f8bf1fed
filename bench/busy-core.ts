/** A machine that is busy with something else: are two threads still no slower than one? */

import { spawn } from "node:child_process";
import { once } from "node:events";
import os from "node:os";
import path from "node:path";
import { ensureModel } from "./models.ts";
import { MODEL } from "./peer-cells.ts";
import { promptMaker } from "./prompts.ts";
import type { Section } from "./section.ts";
import { pairedResult } from "./statistics.ts";

const ROUNDS = 7;
const DECODE_TOKENS = 32;
const PROMPT_TOKENS = 128;
const TYPE = "q4_0";

/** All cores but one, and at least one. */
const N_BUSY = Math.max(1, os.availableParallelism() - 1);

const IDS = {
  decode: `threads/busy-core/decode/${TYPE}`,
  prefill: `threads/busy-core/prefill/${TYPE}`,
} as const;

/** Processes that do nothing but occupy a core each, until `stop`. */
function occupyCores(n: number): { stop(): Promise<void> } {
  const children = Array.from({ length: n }, () =>
    // It ends with this process, whatever happens to it.
    spawn(
      process.execPath,
      [
        "-e",
        "process.on('disconnect', () => process.exit()); setInterval(() => { const end = Date.now() + 20; while (Date.now() < end); }, 0);",
      ],
      {
        stdio: ["ignore", "ignore", "inherit", "ipc"],
      },
    ),
  );
  return {
    async stop() {
      await Promise.all(
        children.map((child) => {
          const ended = once(child, "exit");
          child.kill();
          return ended;
        }),
      );
    },
  };
}

export const busyCore: Section = {
  title: "Two threads on a busy machine",
  about:
    `Inlay with 2 threads (the first number) beside Inlay with 1 thread, ${MODEL} ${TYPE}, in tokens/s, while another process keeps ` +
    "every core but one busy. A ratio of at least 1 is wanted: a second thread must never be a loss.",
  baseline: "1 thread",
  owns: (id) => id.startsWith("threads/"),
  ids: Object.values(IDS),
  leftOut: [],
  needsPeer: false,
  async *run(context, wanted) {
    const browser = await context.browser();
    const makePrompt = promptMaker(MODEL);
    const url = `/models/${path.basename(ensureModel(MODEL, TYPE))}`;
    const load = (threads: number) => browser.load("inlay/relaxed", url, { contextLength: 1024, threads });
    const engines = [await load(2), await load(1)];
    for (const engine of engines) await engine.decode(makePrompt(64, 1000), DECODE_TOKENS);
    const busy = occupyCores(N_BUSY);
    try {
      for (const phase of ["decode", "prefill"] as const) {
        if (!wanted.has(IDS[phase])) continue;
        const rates: [number[], number[]] = [[], []];
        for (let round = 0; round < (context.repeat ?? ROUNDS); round++) {
          for (const which of round % 2 === 0 ? [0, 1] : [1, 0]) {
            const engine = engines[which]!;
            const rate =
              phase === "decode"
                ? DECODE_TOKENS / (await engine.decode(makePrompt(16, 0), DECODE_TOKENS))
                : PROMPT_TOKENS / (await engine.prefill(makePrompt(PROMPT_TOKENS, 1 + round)));
            rates[which]!.push(rate);
          }
          const [two, one] = rates.map((values) => values[round]!.toFixed(1));
          context.log(`    ${phase} round ${round + 1}: 2 threads ${two}, 1 thread ${one}`);
        }
        yield pairedResult(IDS[phase], "tokens/s", ...rates);
      }
    } finally {
      await busy.stop();
    }
    for (const engine of engines) await engine.dispose();
  },
};
