/** The comparisons with rivals: which cells there are, and which are left out. */

import type { EngineName } from "./page/page.ts";

export const MODEL = "smollm2-135m";
export const TYPES = ["q4_0", "q8_0"] as const;
const PEERS = ["wllama-2.3.1", "wllama-3.8.1"] as const;
const BUILDS = ["relaxed", "plain"] as const;

/** Tokens of context at which decoding is called short. */
const SHORT = 16;

/** What is timed, on how many tokens of prompt or context. */
const WORK = [
  { phase: "prefill", nTokens: 128 },
  { phase: "decode", nTokens: SHORT },
  { phase: "prefill", nTokens: 512 },
  { phase: "decode", nTokens: 512 },
  { phase: "decode", nTokens: 2048 },
] as const;

export type PeerName = (typeof PEERS)[number];
export type ModelType = (typeof TYPES)[number];
export type Work = (typeof WORK)[number];

export interface PeerCell {
  readonly id: string;
  readonly peer: PeerName;
  readonly work: Work;
  readonly type: ModelType;
  readonly threads: 1 | 2;
  /** Inlay's engine; the rivals have one build each. */
  readonly engine: EngineName & `inlay/${string}`;
}

const lengthName = ({ phase, nTokens }: Work) =>
  phase === "decode" && nTokens === SHORT ? "short" : String(nTokens);

/** "decode/512": what is timed, as ids say it. */
export const workName = (work: Work) => `${work.phase}/${lengthName(work)}`;

/** Every cell, in the order in which the report shows them. */
export const PEER_CELLS: readonly PeerCell[] = PEERS.flatMap((peer) =>
  TYPES.flatMap((type) =>
    ([1, 2] as const).flatMap((threads) =>
      WORK.flatMap((work) =>
        BUILDS.map((build) => ({
          id: `${peer}/${workName(work)}/${type}/${threads}t/${build}`,
          ...{ peer, work, type, threads, engine: `inlay/${build}` as const },
        })),
      ),
    ),
  ),
);

/** The slow rival runs short work, and one longer context. */
export function isLeftOut({ peer, work, type }: PeerCell): boolean {
  const isShort = work.nTokens <= 128;
  return peer === "wllama-3.8.1" && !isShort && !(workName(work) === "decode/512" && type === "q4_0");
}

/** What `isLeftOut` leaves out, for people. */
export const LEFT_OUT = [
  {
    what: "`wllama-3.8.1`: prefill of 512 tokens, decoding at 2048, and decoding at 512 on q8_0",
    reason: "it has no SIMD kernels and runs about 10 tokens/s; these take minutes a round",
  },
  {
    what: "native llama.cpp",
    reason: "it is not among the packages that set-up installs; `limits.md` of the design has its numbers",
  },
];
