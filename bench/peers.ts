/**
 * Inlay beside its rivals, in one page, on the same file and the same token ids.
 *
 * Engines take turns, round by round and in alternating order, so that what slows the machine for a while slows all of them;
 * ratios are formed within rounds. Every engine is warmed up at the same work before it is timed.
 */

import path from "node:path";
import type { BenchBrowser, PageEngine } from "./browser.ts";
import { ensureModel } from "./models.ts";
import type { EngineName } from "./page/page.ts";
import { isLeftOut, LEFT_OUT, MODEL, PEER_CELLS, type PeerCell, type Work, workName } from "./peer-cells.ts";
import { promptMaker } from "./prompts.ts";
import type { BenchContext, Section } from "./section.ts";
import { pairedResult } from "./statistics.ts";

/** Room for the longest context and the tokens decoded there. */
const CONTEXT_LENGTH = 2304;
/** Tokens that one round decodes. */
const DECODE_TOKENS = 32;
const ROUNDS = 5;
/** Of work in which a rival takes ten seconds and more. */
const LONG_ROUNDS = 3;
/** The slow rival takes part in the first rounds only, and decodes fewer tokens. */
const SLOW = { name: "wllama-3.8.1", rounds: 2, decodeTokens: 16 } as const;
/** Tokens that an engine is warmed up with: enough for the browser to have compiled its loops well. */
const WARM_UP_TOKENS = 64;

const ABOUT = `Model: the shape of ${MODEL}, KV cache in each engine's default format (Inlay f32, wllama f16), ${CONTEXT_LENGTH} tokens of context.
*prefill*: a new prompt of so many tokens, nothing cached. *decode*: ${DECODE_TOKENS} tokens, one by one, after so many tokens of context (*short*: 16);
wllama 3.8.1 takes part in ${SLOW.rounds} rounds of ${SLOW.decodeTokens}. Inlay's times are its own \`usage\` and include sampling and detokenization; of wllama 2.3.1 only
calls of \`decode()\` are timed, without sampling; wllama 3.8.1's are the \`timings\` of the llama.cpp server inside it. *relaxed* and *plain* are Inlay's builds with and without
relaxed SIMD; the rivals have one build each.`;

const makePrompt = promptMaker(MODEL);

/** Tokens per second of one round of `work`. `seed`: prompts to be prefilled must be new every time. */
async function rate(engine: PageEngine, work: Work, seed: number): Promise<number> {
  if (work.phase === "prefill") return work.nTokens / (await engine.prefill(makePrompt(work.nTokens, seed)));
  const nTokens = engine.name === SLOW.name ? SLOW.decodeTokens : DECODE_TOKENS;
  return nTokens / (await engine.decode(makePrompt(work.nTokens, 0), nTokens));
}

/** The rates of every engine, round by round. */
async function rounds(engines: readonly PageEngine[], work: Work, context: BenchContext) {
  const rates = new Map<EngineName, number[]>(engines.map(({ name }) => [name, []]));
  // The first decode of a round builds the context up, which is not timed but takes its time.
  if (work.phase === "decode")
    for (const engine of engines) await engine.decode(makePrompt(work.nTokens, 0), 2);
  const isLong = work.nTokens > (work.phase === "prefill" ? 128 : 512);
  const nRounds = context.repeat ?? (isLong ? LONG_ROUNDS : ROUNDS);
  for (let round = 0; round < nRounds; round++) {
    const turn = round % 2 === 0 ? engines : [...engines].reverse();
    for (const engine of turn)
      if (engine.name !== SLOW.name || round < SLOW.rounds)
        rates.get(engine.name)!.push(await rate(engine, work, work.nTokens + round));
    const shown = engines.map(({ name }) => `${name} ${rates.get(name)![round]?.toFixed(1) ?? "–"}`);
    context.log(`    ${workName(work)} round ${round + 1}: ${shown.join("  ")}`);
  }
  return rates;
}

/** Loads the engines that `cells`, all of one type and number of threads, need, and warms them up. */
async function loadEngines(browser: BenchBrowser, cells: readonly PeerCell[], context: BenchContext) {
  const { type, threads } = cells[0]!;
  const url = `/models/${path.basename(ensureModel(MODEL, type))}`;
  const engines: PageEngine[] = [];
  for (const name of new Set<EngineName>(cells.flatMap(({ engine, peer }) => [engine, peer]))) {
    const engine = await browser.load(name, url, { contextLength: CONTEXT_LENGTH, threads });
    const isSlow = name === SLOW.name;
    await engine.decode(makePrompt(isSlow ? 8 : WARM_UP_TOKENS, 1000), isSlow ? 4 : DECODE_TOKENS);
    context.log(`    ${name}: ${engine.about}`);
    engines.push(engine);
  }
  return engines;
}

function groupBy<T, K>(items: readonly T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
}

export const peers: Section = {
  title: "Beside other engines",
  about: ABOUT,
  baseline: "rival",
  owns: (id) => id.startsWith("wllama-") && /\/(prefill|decode)\//.test(id),
  leftOut: LEFT_OUT,
  ids: PEER_CELLS.filter((cell) => !isLeftOut(cell)).map(({ id }) => id),
  needsPeer: true,
  async *run(context, wanted) {
    const cells = PEER_CELLS.filter(({ id }) => wanted.has(id));
    const groups = groupBy(cells, ({ type, threads }) => `${type}, ${threads} thread(s)`);
    for (const [name, group] of groups) {
      context.log(`  ${MODEL} ${name}`);
      const engines = await loadEngines(await context.browser(), group, context);
      for (const [work, ofWork] of groupBy(group, (cell) => cell.work)) {
        const names = new Set<EngineName>(ofWork.flatMap(({ engine, peer }) => [engine, peer]));
        const rates = await rounds(
          engines.filter((engine) => names.has(engine.name)),
          work,
          context,
        );
        for (const { id, engine, peer } of ofWork) {
          const baselines = rates.get(peer)!;
          yield pairedResult(id, "tokens/s", rates.get(engine)!.slice(0, baselines.length), baselines);
        }
      }
      // After an error the browser is closed, and everything with it.
      for (const engine of engines) await engine.dispose();
    }
  },
};
