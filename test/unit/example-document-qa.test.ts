// The document example as `npm run demo` serves it, in Chromium: the sample model reads its document, answers a question
// about it rightly, and after a reload of the page again, without reading it anew.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type Page, serveDemo, skip, TIMEOUT_MS } from "../fixtures/demo.ts";

/** From models/recall/sample-document.txt. */
const ANSWER = "Tarbrook";

describe("the document example with the sample model", { skip }, () => {
  const { sample, open } = serveDemo(18_280);

  test("answers rightly before and after a reload", { timeout: 3 * TIMEOUT_MS }, async () => {
    assert.ok(sample.document.includes(`the home of Permar is ${ANSWER}`), "the document has the fact");
    const { page, complaints } = await open("document-qa", { width: 360, height: 640, scheme: "light" });
    await click(page, "#take-sample");
    await click(page, "#take-sample-document");
    assert.match(await answered(page, sample.opening), new RegExp(ANSWER));

    await page.reload();
    await click(page, "#document-list .open");
    await page.waitForSelector("#question", { visible: true, timeout: TIMEOUT_MS });
    await page.type("#question", sample.opening);
    assert.match(await answered(page, sample.opening), new RegExp(ANSWER));
    assert.deepEqual(complaints, []);
    await page.close();
  });
});

async function click(page: Page, selector: string): Promise<void> {
  await page.waitForSelector(selector, { visible: true, timeout: TIMEOUT_MS });
  await page.click(selector);
}

/** Sends the question that stands in the composer; the log once the answer has ended. */
async function answered(page: Page, question: string): Promise<string> {
  const isTyped = (text: string) => document.querySelector<HTMLTextAreaElement>("#question")?.value === text;
  await page.waitForFunction(isTyped, { timeout: TIMEOUT_MS }, question);
  await page.focus("#question");
  await page.keyboard.press("Enter");
  const hasEnded = () => /first after/.test(document.querySelector("#log")?.textContent ?? "");
  await page.waitForFunction(hasEnded, { timeout: TIMEOUT_MS });
  return page.$eval("#log", (e) => e.textContent ?? "");
}
