/** A prompt pinned on another one: only what follows is prefilled, and each is whole by itself. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import type { LoadOptions } from "../../src/options.ts";
import type { PinBits } from "../../src/prompts/coding.ts";
import type { PinEvent } from "../../src/prompts/pin-events.ts";
import { MemoryPromptStore } from "../../src/storage/memory-prompt-store.ts";
import type { PromptStore } from "../../src/storage/prompt-store.ts";
import { PRESETS } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import {
  answer,
  CHAT,
  GO_ON,
  inlayError,
  load,
  never,
  nextProbability,
  open,
  opened,
  pin,
  QUESTION,
} from "../fixtures/pinned-prompt.ts";

const gpu = await nodeGpu();
const BYTES = tinyGguf({ ...PRESETS["tiny-llama"], contextLength: 4096 }, { type: "Q8_0", seed: 4 });
const loadLong = (store: PromptStore, options: LoadOptions = {}) => load(store, options, BYTES);

/** Words [from, to), none like its neighbour, each ending where a token does. */
function words(from: number, to: number): string {
  return Array.from({ length: to - from }, (_, i) => `${((from + i) * 7919) % 1000}\n`).join("");
}
const FIRST = { kind: "text", text: words(0, 80) } as const;
const SECOND = { kind: "text", text: words(80, 130) } as const;
const BOTH = { kind: "text", text: FIRST.text + SECOND.text } as const;

/** Pins and keeps what was told of the prefill. */
async function pinOn(engine: Engine, on: string, content: typeof SECOND, bits?: PinBits) {
  const prefill: number[] = [];
  async function* watched(): AsyncGenerator<PinEvent, void> {
    for await (const event of engine.pinned.pin({ id: "both", content, bits, encrypt: false, on }, never)) {
      if (event.kind === "progress" && event.phase === "prefill") prefill.push(event.loaded);
      yield event;
    }
  }
  return { ...(await opened(watched())), prefill };
}

describe("a prompt pinned on another", () => {
  for (const bits of [16, 8, 4, 2] as const)
    test(`prefills only what follows, and is stored whole: ${bits} bits`, async () => {
      const store = new MemoryPromptStore();
      const engine = await loadLong(store);
      const base = await pin(engine, FIRST, { id: "first", bits });
      const before = await answer(engine, base.key, GO_ON);
      const both = await pinOn(engine, base.key, SECOND, bits);
      assert.equal(both.prefill[0], base.info.tokens, "counting begins after the first prompt");
      assert.equal(both.prefill.at(-1), both.info.tokens);
      assert.ok(both.info.tokens > base.info.tokens + 100);
      assert.ok(both.info.prefillSeconds > base.info.prefillSeconds);
      const expected = await answer(engine, both.key, GO_ON);
      assert.equal(expected.cached, both.info.tokens);
      assert.equal(await engine.pinned.delete("first"), true);
      await engine.dispose();

      const reloaded = await loadLong(store);
      assert.deepEqual(
        (await reloaded.pinned.list()).map(({ id }) => id),
        ["both"],
      );
      assert.deepEqual(await answer(reloaded, (await open(reloaded, "both")).key, GO_ON), expected);
      await reloaded.dispose();

      // The same from scratch, and the first one again by itself.
      const alone = await loadLong(new MemoryPromptStore());
      const whole = await pin(alone, BOTH, { bits });
      assert.equal(whole.info.tokens, both.info.tokens);
      const { ids } = await answer(alone, whole.key, GO_ON);
      // Quantized, the second document read the first one's pages coded, and from scratch as they were.
      const same = bits === 16 ? 16 : 1;
      assert.deepEqual(expected.ids.slice(0, same), ids.slice(0, same));
      await alone.dispose();
      const first = await loadLong(new MemoryPromptStore());
      assert.deepEqual(await answer(first, (await pin(first, FIRST, { bits })).key, GO_ON), before);
      await first.dispose();
    });

  for (const [from, to] of [
    [16, 2],
    [4, 4],
  ] as const)
    test(`leaves the other as it was: ${to} bits on ${from}`, async () => {
      const engine = await loadLong(new MemoryPromptStore());
      // Of whole pages, to which the longer prompt's cache can go back.
      const texts = Array.from(
        { length: 64 },
        (_, i) => ({ kind: "text", text: `${FIRST.text}${"x".repeat(i)}\n` }) as const,
      );
      const tokens = ({ text }: { text: string }) =>
        engine.promptIds({ kind: "text", text, parseSpecial: true }).length;
      const first = texts.find((content) => tokens(content) % 32 === 0)!;
      const base = await pin(engine, first, { id: "first", bits: from });
      const kv = engine.memory().kv;
      const both = await pinOn(engine, base.key, SECOND, to);
      const grown = engine.memory().kv;
      assert.ok(grown < 2.2 * kv, `${kv} and then ${grown} bytes: pages are shared`);
      assert.ok((await nextProbability(engine, both.key)) > 0);
      await engine.pinned.close(both.key);
      const alone = await loadLong(new MemoryPromptStore());
      const { key } = await pin(alone, first, { bits: from });
      // To the last bit: nor does the longer prompt's idle sequence answer for the shorter one.
      assert.equal(await nextProbability(engine, base.key), await nextProbability(alone, key));
      await alone.dispose();
      await engine.dispose();
    });

  for (const device of ["hybrid", "webgpu"] as const)
    test(`leaves the other as it was on ${device}`, { skip: gpu.skip }, async () => {
      const store = new MemoryPromptStore();
      const engine = await loadLong(store, { device });
      const base = await pin(engine, FIRST, { id: "first", bits: 4 });
      const both = await pinOn(engine, base.key, SECOND);
      assert.ok(both.info.bits < base.info.bits, "as the first one, with more of it coded");
      const expected = await answer(engine, both.key, GO_ON);
      await engine.pinned.close(both.key);
      const first = await answer(engine, base.key, GO_ON);
      await engine.dispose();
      const reloaded = await loadLong(store, { device });
      assert.deepEqual((await answer(reloaded, (await open(reloaded, "both")).key, GO_ON)).ids, expected.ids);
      const again = await loadLong(store, { device });
      assert.deepEqual((await answer(again, (await open(again, "first")).key, GO_ON)).ids, first.ids);
      await again.dispose();
      await reloaded.dispose();
    });

  test("of messages continues messages", async () => {
    const engine = await load(new MemoryPromptStore());
    const base = await pin(engine, CHAT, { id: "first" });
    const more = {
      kind: "chat",
      messages: [
        { role: "user", content: "And this?" },
        { role: "assistant", content: "This too." },
      ],
    } as const;
    const both = await opened(
      engine.pinned.pin({ id: "both", content: more, bits: 16, encrypt: true, on: base.key }, never),
    );
    const { ids, cached } = await answer(engine, both.key, QUESTION);
    assert.equal(cached, both.info.tokens);
    const alone = await load(new MemoryPromptStore());
    const whole = await pin(alone, { kind: "chat", messages: [...CHAT.messages, ...more.messages] });
    assert.deepEqual((await answer(alone, whole.key, QUESTION)).ids, ids);
    await alone.dispose();
    // Under the id of the one that it is on, it takes that one's place.
    const instead = await opened(
      engine.pinned.pin({ id: "first", content: more, bits: 16, encrypt: false, on: base.key }, never),
    );
    assert.equal(instead.info.tokens, both.info.tokens);
    assert.equal((await answer(engine, base.key, QUESTION)).cached >= base.info.tokens, true);
    assert.equal((await engine.pinned.list()).length, 2);
    await engine.dispose();
  });

  test("that is stored already is opened without a prefill", async () => {
    const store = new MemoryPromptStore();
    const engine = await loadLong(store);
    const base = await pin(engine, FIRST, { id: "first" });
    await pinOn(engine, base.key, SECOND, 16);
    await engine.dispose();
    const reloaded = await loadLong(store);
    const again = await open(reloaded, "first");
    assert.deepEqual((await pinOn(reloaded, again.key, SECOND, 16)).phases, ["restore"]);
    await reloaded.dispose();
  });

  test("that cannot be is refused: other bits, another kind, another beginning, one that was closed", async () => {
    const engine = await loadLong(new MemoryPromptStore());
    const base = await pin(engine, FIRST, { id: "first", bits: 4 });
    const kv = engine.memory().kv;
    const on = (content: Parameters<typeof pin>[1], bits?: PinBits) =>
      opened(engine.pinned.pin({ id: "both", content: content!, bits, encrypt: false, on: base.key }, never));
    await assert.rejects(
      on(SECOND, 2),
      inlayError("invalid-option", /bits is 2, and .*"first".* has 4 bits/),
    );
    await assert.rejects(on(SECOND, 16), inlayError("invalid-option", /bits is 16/));
    await assert.rejects(
      on(CHAT),
      inlayError("invalid-option", /"first" was pinned as raw text; pin raw text on it/),
    );
    const nothing = { kind: "text", text: "" } as const;
    await assert.rejects(
      on(nothing),
      inlayError("invalid-option", /nothing is to be pinned on the prompt "first"/),
    );
    assert.equal(engine.memory().kv, kv);
    await engine.pinned.close(base.key);
    await assert.rejects(on(SECOND), inlayError("disposed", /closed or deleted/));
    assert.equal(engine.memory().kv, 0);
    await engine.dispose();
  });

  test("that is aborted leaves the other as it was and nothing else", async () => {
    for (const phase of ["prefill", "store"]) {
      const store = new MemoryPromptStore();
      const engine = await loadLong(store);
      const base = await pin(engine, FIRST, { id: "first", bits: 16 });
      const expected = await answer(engine, base.key, GO_ON);
      const kv = engine.memory().kv;
      for await (const event of engine.pinned.pin(
        { id: "both", content: SECOND, bits: 2, encrypt: false, on: base.key },
        never,
      ))
        if (event.kind === "progress" && event.phase === phase) break;
      assert.equal(engine.memory().kv, kv, phase);
      assert.deepEqual(
        (await engine.pinned.list()).map(({ id }) => id),
        ["first"],
      );
      assert.deepEqual((await answer(engine, base.key, GO_ON)).ids, expected.ids);
      await engine.dispose();
    }
  });
});
