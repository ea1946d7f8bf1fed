/** From a Blob in the page to a model that answers: how long loading takes. */

import path from "node:path";
import { ensureModel } from "./models.ts";
import type { EngineName } from "./page/page.ts";
import { MODEL, TYPES } from "./peer-cells.ts";
import type { Section } from "./section.ts";
import { pairedResult } from "./statistics.ts";

const ROUNDS = 3;
const CONTEXT_LENGTH = 2304;
const RIVALS = ["wllama-2.3.1", "wllama-3.8.1"] as const;

const CELLS = RIVALS.flatMap((rival) =>
  TYPES.map((type) => ({ id: `${rival}/load/${type}/1t`, rival, type })),
);

export const loading: Section = {
  title: "Loading",
  about:
    `Seconds from a Blob of ${MODEL} that the page holds to a loaded model, one thread, ${CONTEXT_LENGTH} tokens of context: start of the ` +
    "worker, fetching and compiling WASM from the local server, reading and repacking the weights. Rounds alternate.",
  baseline: "rival",
  owns: (id) => id.includes("/load/"),
  ids: CELLS.map(({ id }) => id),
  leftOut: [],
  needsPeer: true,
  async *run(context, wanted) {
    const browser = await context.browser();
    for (const type of TYPES) {
      const cells = CELLS.filter((cell) => cell.type === type && wanted.has(cell.id));
      if (cells.length === 0) continue;
      const url = `/models/${path.basename(ensureModel(MODEL, type))}`;
      const seconds = async (name: EngineName) => {
        const engine = await browser.load(name, url, { contextLength: CONTEXT_LENGTH, threads: 1 });
        await engine.dispose();
        return engine.loadSeconds;
      };
      await seconds("inlay/relaxed"); // fetches the file into the page's Blob
      for (const { id, rival } of cells) {
        const inlay: number[] = [];
        const others: number[] = [];
        for (let round = 0; round < (context.repeat ?? ROUNDS); round++) {
          inlay.push(await seconds("inlay/relaxed"));
          others.push(await seconds(rival));
        }
        context.log(
          `    ${id}: ${inlay.map((s) => s.toFixed(2))} beside ${others.map((s) => s.toFixed(2))} s`,
        );
        yield pairedResult(id, "s", inlay, others);
      }
    }
  },
};
