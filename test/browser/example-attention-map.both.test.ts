// The attention map example in a frame as wide as a small phone, used through its own controls.

import { assert } from "chai";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { ExamplePage } from "./harness/example-page.ts";
import { isIsolated } from "./harness/index.ts";

/** More tokens than the least budget of 256. */
const TEXT = "The <b>sea</b> was calm, and the small boat with the yellow sail came home. ".repeat(12);

describe(`the attention map example (${isIsolated ? "isolated" : "ordinary"} page)`, () => {
  let page: ExamplePage;

  async function draw(policy: string, budget: string): Promise<void> {
    page.set("policy", policy);
    page.set("budget", budget);
    page.element("summary").textContent = "";
    page.click("draw");
    await page.until("the map", () => page.text("summary") !== "" || page.text("error") !== "");
  }

  before(async () => {
    page = new ExamplePage("attention-map");
    await page.until(
      "the script to run",
      () => (page.element<HTMLTextAreaElement>("text")?.value ?? "") !== "",
    );
    page.check("choosing");
    page.choose("model-files", tinyGguf("tiny-llama", { type: "Q8_0" }), "tiny.gguf");
    await page.until("the model", () => page.isShown("prompt"));
    page.set("text", TEXT);
  });
  after(() => page.close());

  it("draws what dhsa reads, in figures, pages and words", async () => {
    await draw("dhsa", "25");
    assert.equal(page.text("error"), "");
    assert.match(
      page.text("summary"),
      /^[\d,]+ tokens on \d+ pages: dhsa reads \d+\.\d\s% of the pages and keeps \d+\.\d\s%/,
    );
    assert.isTrue(
      page.text("words").startsWith("The <b>sea</b> was calm"),
      "text stays text, and is all there",
    );
    assert.isAbove(page.all("#words .joint").length, 0, "chunks end");
    assert.isAbove(page.element<HTMLCanvasElement>("pages").height, 50);
    for (const format of ["f32", "f16", "q8", "q4", "q2"]) assert.include(page.text("bytes"), format);
    page.check("drawn");
  });

  it("shows another head and another block", async () => {
    await draw("window", "10");
    const buttons = page.all<HTMLButtonElement>("#heads button");
    assert.isAbove(buttons.length, 1);
    buttons[buttons.length - 1]!.click();
    assert.equal(buttons[buttons.length - 1]!.ariaPressed, "true");
    assert.equal(buttons[0]!.ariaPressed, "false");
    const block = page.element<HTMLInputElement>("block");
    const most = Number(block.max);
    assert.include(page.text("block-about"), `block ${most}`);
    assert.include(page.text("block-about"), `of ${most + 1} pages`);
    const own = () => page.all("#words span").findIndex((s) => s.classList.contains("own"));
    assert.equal(own(), most);
    block.value = "1";
    block.dispatchEvent(new Event("input"));
    assert.equal(own(), 1);
    assert.match(
      page.text("block-about"),
      /block 1 \(tokens 32 to 63\) reads 2 of 2 pages: 0–1\. It keeps 100\.0\s%/,
    );
  });

  it("says what is wrong, and goes on", async () => {
    await draw("dhsa", "0");
    assert.match(page.text("error"), /budget is 0.*\[invalid-option\]/);
    await draw("dense", "100");
    assert.equal(page.text("error"), "");
    assert.match(page.text("summary"), /dense reads 100\.0\s% of the pages and keeps 100\.0\s%/);
  });
});
