// The chat example as `npm run demo` serves it, in Chromium, by keyboard only: the sample model, an answer, a stop, an
// error; that focus is seen and never lost, that colours have contrast, and that nothing breaks the page's security
// policy. What needs no real keys is in test/browser/example-chat.both.test.ts, for all browsers.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type Page, serveDemo, skip, TIMEOUT_MS } from "../fixtures/demo.ts";

/** Sizes and colours in which everything has to work. */
const LOOKS = [
  { width: 360, height: 640, scheme: "light" },
  { width: 1280, height: 800, scheme: "dark" },
] as const;

describe("the chat example by keyboard", { skip }, () => {
  const { sample, open } = serveDemo(18_180);

  for (const look of LOOKS)
    test(`${look.width} px, ${look.scheme}`, { timeout: 3 * TIMEOUT_MS }, async () => {
      const { page, complaints } = await open("chat", look);
      await page.waitForSelector("#take-sample", { visible: true, timeout: TIMEOUT_MS });
      assert.ok(await page.evaluate(() => crossOriginIsolated));

      const isWide = look.width > 1000;
      await checkOrder(page, ["settings", "facts", "model-files", "address", "", "take-sample"]);
      await checkLooks(page, "choosing");

      // The sample, which is ready to be asked at once.
      await page.keyboard.press("Enter");
      await waitForFocus(page, "message");
      await page.keyboard.press("Enter");
      await waitForWords(page, 20);
      await page.keyboard.press("Escape");
      await page.waitForSelector("#send", { visible: true, timeout: TIMEOUT_MS });
      await waitForFocus(page, "message");
      const told = await textOf(page, "#log");
      assert.ok(told.includes(sample.opening), told);

      await page.keyboard.type("One");
      await page.keyboard.down("Shift");
      await page.keyboard.press("Enter");
      await page.keyboard.up("Shift");
      await page.keyboard.type("two");
      assert.equal(await page.$eval("#message", (e) => (e as HTMLTextAreaElement).value), "One\ntwo");
      await checkLooks(page, "talking");

      // A mistake in the settings, which are reached backwards, and back.
      await page.focus("#settings summary");
      await page.keyboard.press("Enter");
      await page.keyboard.press("Tab");
      await waitForFocus(page, "temperature");
      await page.keyboard.type("9");
      await checkLooks(page, "settings open");
      await page.focus("#message");
      await page.keyboard.press("Enter");
      await page.waitForSelector("#error button", { timeout: TIMEOUT_MS });
      assert.match(await textOf(page, "#error"), /temperature is 9.*invalid-option/s);
      assert.equal(await page.$eval("#message", (e) => (e as HTMLTextAreaElement).value), "One\ntwo");
      await checkLooks(page, "an error");
      await page.focus("#error button");
      await page.keyboard.press("Enter");
      assert.equal(await textOf(page, "#error"), "");

      if (isWide) assert.match(await textOf(page, "#fact-list"), /[\d,]+ of [\d,]+ tokens/);
      assert.deepEqual(complaints, []);
      await page.close();
    });
});

function textOf(page: Page, selector: string): Promise<string> {
  return page.$eval(selector, (e) => e.textContent?.trim() ?? "");
}

async function waitForFocus(page: Page, id: string): Promise<void> {
  await page.waitForFunction((wanted) => document.activeElement?.id === wanted, { timeout: TIMEOUT_MS }, id);
}

async function waitForWords(page: Page, nChars: number): Promise<void> {
  const isThere = (n: number) => (document.querySelector("#log .models")?.textContent ?? "").length >= n;
  await page.waitForFunction(isThere, { timeout: TIMEOUT_MS, polling: 10 }, nChars);
}

/** Tab visits exactly these, in this order: by id, or by that of the fold-out around them. */
async function checkOrder(page: Page, ids: readonly string[]): Promise<void> {
  const visited: string[] = [];
  for (let i = 0; i < ids.length; i++) {
    await page.keyboard.press("Tab");
    visited.push(
      await page.evaluate(() => {
        const { activeElement } = document;
        return activeElement?.id || activeElement?.closest("details")?.id || "";
      }),
    );
    assert.ok(await isFocusSeen(page), `the focus on ${visited.at(-1)} is seen`);
  }
  assert.deepEqual(visited, ids);
}

/** Whether the focused element, or the label that stands for it, has an outline and is on the screen. */
function isFocusSeen(page: Page): Promise<boolean> {
  return page.evaluate(() => {
    const focused = document.activeElement;
    if (!(focused instanceof HTMLElement)) return false;
    const shown = focused.id === "model-files" ? document.querySelector("label[for=model-files]")! : focused;
    const { outlineStyle, outlineWidth } = getComputedStyle(shown);
    const { top, bottom } = shown.getBoundingClientRect();
    return outlineStyle === "solid" && outlineWidth === "3px" && bottom > 0 && top < innerHeight;
  });
}

/** Nothing sticks out at the side, and every visible text has a contrast of at least 4.5 (WCAG 2.2, 1.4.3). */
async function checkLooks(page: Page, state: string): Promise<void> {
  const { overflow, faint } = await page.evaluate(() => {
    const channels = (color: string) => (color.match(/[\d.]+/g) ?? []).map(Number);
    const luminance = (color: string) => {
      const [r, g, b] = channels(color).map((c) => {
        const share = c / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
    };
    const backgroundOf = (element: Element): string => {
      const { backgroundColor } = getComputedStyle(element);
      const isClear = channels(backgroundColor)[3] === 0;
      return isClear && element.parentElement ? backgroundOf(element.parentElement) : backgroundColor;
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found: string[] = [];
    while (texts.nextNode()) {
      const text = texts.currentNode.textContent?.trim() ?? "";
      const parent = texts.currentNode.parentElement!;
      if (text === "" || !parent.checkVisibility()) continue;
      const lights = [luminance(getComputedStyle(parent).color), luminance(backgroundOf(parent))];
      const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
      if (contrast < 4.5) found.push(`${contrast.toFixed(1)}: ${text}`);
    }
    const { scrollWidth, clientWidth } = document.documentElement;
    return { overflow: scrollWidth - clientWidth, faint: found };
  });
  assert.equal(overflow, 0, `${state}: sticks out at the side`);
  assert.deepEqual(faint, [], `${state}: too little contrast`);
}
