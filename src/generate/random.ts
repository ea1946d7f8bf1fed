/**
 * The seeded random numbers of the sampler: the same seed gives the same numbers in every JavaScript engine.
 *
 * Generator: xoshiro128** (Blackman & Vigna 2018, arXiv:1805.01407, "Scrambled linear pseudorandom number
 * generators"), 32-bit arithmetic only, period 2^128 - 1. Its four words come from the seed through
 * splitmix64 (Steele, Lea & Flood 2014), as its authors advise. Nothing here is meant for secrets.
 */

/** Largest seed: seeds are whole numbers that a double holds exactly. */
export const MAX_SEED = Number.MAX_SAFE_INTEGER;

const U64 = (1n << 64n) - 1n;

/** One splitmix64 step: [next state, output], both 64 bits. */
export function splitmix64(state: bigint): [state: bigint, output: bigint] {
  const next = (state + 0x9e3779b97f4a7c15n) & U64;
  let z = next;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & U64;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & U64;
  return [next, z ^ (z >> 31n)];
}

/** One xoshiro128** step: changes the four words of `state` and returns an integer in [0, 2^32). */
export function xoshiro128ss(state: Uint32Array): number {
  let [a, b, c, d] = state as unknown as [number, number, number, number];
  const scrambled = Math.imul(rotateLeft(Math.imul(b, 5), 7), 9);
  const shifted = b << 9;
  c ^= a;
  d ^= b;
  b ^= c;
  a ^= d;
  c ^= shifted;
  d = rotateLeft(d, 11);
  state[0] = a;
  state[1] = b;
  state[2] = c;
  state[3] = d;
  return scrambled >>> 0;
}

function rotateLeft(x: number, by: number): number {
  return (x << by) | (x >>> (32 - by));
}

/** A stream of uniform random numbers that depends on nothing but `seed`. */
export class Random {
  readonly #state = new Uint32Array(4);

  /** `seed`: an integer in [0, MAX_SEED]. */
  constructor(readonly seed: number) {
    let state = BigInt(seed);
    for (let word = 0; word < 4; word += 2) {
      const [next, output] = splitmix64(state);
      state = next;
      this.#state[word] = Number(output & 0xffffffffn);
      this.#state[word + 1] = Number(output >> 32n);
    }
  }

  /** The next number, uniform in [0, 1), a multiple of 2^-53. */
  next(): number {
    const high = xoshiro128ss(this.#state) >>> 5;
    const low = xoshiro128ss(this.#state) >>> 6;
    return (high * 0x4000000 + low) / 0x20000000000000;
  }
}

/** A seed nobody chose: 53 bits from the platform's cryptographic generator. */
export function randomSeed(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
  return (high >>> 11) * 0x100000000 + low;
}
