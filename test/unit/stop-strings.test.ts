import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import {
  assertStopStrings,
  MAX_STOP_LENGTH,
  MAX_STOP_STRINGS,
  StopMatcher,
} from "../../src/generate/stop-strings.ts";

describe("stop strings that are refused", () => {
  const control = ["\n\n", "User:"];
  test("the control is accepted", () => assert.doesNotThrow(() => assertStopStrings(control)));
  test("so are the largest number and length", () =>
    assert.doesNotThrow(() =>
      assertStopStrings(
        Array.from({ length: MAX_STOP_STRINGS }, (_, i) => `${i}`.padEnd(MAX_STOP_LENGTH, "x")),
      ),
    ));
  const cases: { name: string; stops: string[]; message: string }[] = [
    {
      name: "empty",
      stops: [...control, ""],
      message: "stop: string 2 is empty, and would match everywhere",
    },
    {
      name: "too many",
      stops: Array.from({ length: 17 }, (_, i) => `s${i}`),
      message: "stop: 17 strings given, at most 16 are allowed",
    },
    {
      name: "too long",
      stops: ["x".repeat(257)],
      message: "stop: string 0 has 257 characters, at most 256 are allowed",
    },
    { name: "half a pair", stops: ["a\ud83d"], message: "stop: string 0 contains half a surrogate pair" },
  ];
  for (const c of cases)
    test(c.name, () => {
      for (const attempt of [() => assertStopStrings(c.stops), () => new StopMatcher(c.stops)])
        assert.throws(attempt, (error: unknown) => {
          assert.ok(error instanceof InlayError);
          assert.equal(error.code, "invalid-option");
          assert.equal(error.message, c.message);
          assert.equal(error.details.option, "stop");
          return true;
        });
    });
});

describe("matching", () => {
  test("without stop strings nothing is held and nothing matches", () => {
    const matcher = new StopMatcher([]);
    assert.equal(matcher.scan("anything"), undefined);
    assert.equal(matcher.held, 0);
  });
  test("a state remembers across pieces", () => {
    const matcher = new StopMatcher(["abc"]);
    assert.equal(matcher.scan("xxa"), undefined);
    assert.equal(matcher.held, 1);
    assert.equal(matcher.scan("b"), undefined);
    assert.equal(matcher.held, 2);
    assert.deepEqual(matcher.scan("cd"), { stop: "abc", end: 1 });
  });
  test("the held part shrinks to the longest end that still begins a stop string", () => {
    const matcher = new StopMatcher(["aabaac", "aac"]);
    matcher.scan("aabaa");
    assert.equal(matcher.held, 5);
    matcher.scan("a");
    assert.equal(matcher.held, 2);
  });
  test("the same stop string twice", () => {
    assert.deepEqual(new StopMatcher(["x", "x"]).scan("ax"), { stop: "x", end: 2 });
  });
  test("a million units against the worst pattern", () => {
    const pattern = `${"a".repeat(255)}b`;
    const matcher = new StopMatcher([pattern]);
    assert.equal(matcher.scan("a".repeat(1_000_000)), undefined);
    assert.equal(matcher.held, 255);
    assert.deepEqual(matcher.scan("b"), { stop: pattern, end: 1 });
  });
});
