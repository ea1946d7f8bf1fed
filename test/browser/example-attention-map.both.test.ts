// The attention map example in a frame as wide as a small phone, used through its own controls.

import { assert } from "chai";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { isIsolated } from "./harness/index.ts";

const WAIT_MS = 30_000;
/** More tokens than the least budget of 256. */
const TEXT = "The <b>sea</b> was calm, and the small boat with the yellow sail came home. ".repeat(12);

describe(`the attention map example (${isIsolated ? "isolated" : "ordinary"} page)`, () => {
  const frame = document.createElement("iframe");
  const find = <T extends HTMLElement>(id: string) => frame.contentDocument?.getElementById(id) as T;
  const text = (id: string) => find(id)?.textContent?.trim() ?? "";

  async function until(what: string, isTrue: () => boolean): Promise<void> {
    const end = performance.now() + WAIT_MS;
    while (!isTrue()) {
      if (performance.now() > end) throw new Error(`waited for ${what}; the page says: ${text("error")}`);
      await new Promise((wake) => setTimeout(wake, 5));
    }
  }

  async function draw(policy: string, budget: string): Promise<void> {
    find<HTMLSelectElement>("policy").value = policy;
    find<HTMLInputElement>("budget").value = budget;
    find("summary").textContent = "";
    find<HTMLButtonElement>("draw").click();
    await until("the map", () => text("summary") !== "" || text("error") !== "");
  }

  function checkPage(state: string): void {
    const page = frame.contentDocument!;
    const { scrollWidth, clientWidth } = page.documentElement;
    assert.isAtMost(scrollWidth, clientWidth, `${state}: nothing sticks out`);
    for (const control of page.querySelectorAll<HTMLInputElement>("button, input, select, textarea")) {
      const name = control.ariaLabel || (control.labels?.[0] ?? control).textContent;
      assert.isNotEmpty(name?.trim(), `${state}: the name of #${control.id}`);
    }
  }

  before(async () => {
    frame.style.cssText = "width: 360px; height: 640px";
    frame.src = "/examples/attention-map/index.html";
    document.body.append(frame);
    await until("the script to run", () => (find<HTMLTextAreaElement>("text")?.value ?? "") !== "");
    checkPage("choosing");
    const transfer = new DataTransfer();
    const { File: FileOfFrame } = frame.contentWindow as Window & typeof globalThis;
    transfer.items.add(new FileOfFrame([tinyGguf("tiny-llama", { type: "Q8_0" })], "tiny.gguf"));
    const files = find<HTMLInputElement>("files");
    files.files = transfer.files;
    files.dispatchEvent(new Event("change", { bubbles: true }));
    await until("the model", () => find("prompt").checkVisibility());
    find<HTMLTextAreaElement>("text").value = TEXT;
  });
  after(() => frame.remove());

  it("draws what dhsa reads, in figures, pages and words", async () => {
    await draw("dhsa", "25");
    assert.equal(text("error"), "");
    assert.match(
      text("summary"),
      /^[\d,]+ tokens on \d+ pages: dhsa reads \d+\.\d\s% of the pages and keeps \d+\.\d\s%/,
    );
    assert.isTrue(text("words").startsWith("The <b>sea</b> was calm"), "text stays text, and is all there");
    assert.isAbove(frame.contentDocument!.querySelectorAll("#words .joint").length, 0, "chunks end");
    assert.isAbove(find<HTMLCanvasElement>("pages").height, 50);
    for (const format of ["f32", "f16", "q8", "q4", "q2"]) assert.include(text("bytes"), format);
    checkPage("drawn");
  });

  it("shows another head and another block", async () => {
    await draw("window", "10");
    const buttons = frame.contentDocument!.querySelectorAll<HTMLButtonElement>("#heads button");
    assert.isAbove(buttons.length, 1);
    buttons[buttons.length - 1]!.click();
    assert.equal(buttons[buttons.length - 1]!.ariaPressed, "true");
    assert.equal(buttons[0]!.ariaPressed, "false");
    const block = find<HTMLInputElement>("block");
    const most = Number(block.max);
    assert.include(text("block-about"), `block ${most}`);
    assert.include(text("block-about"), `of ${most + 1} pages`);
    const own = () =>
      [...frame.contentDocument!.querySelectorAll("#words span")].findIndex((s) =>
        s.classList.contains("own"),
      );
    assert.equal(own(), most);
    block.value = "1";
    block.dispatchEvent(new Event("input"));
    assert.equal(own(), 1);
    assert.match(
      text("block-about"),
      /block 1 \(tokens 32 to 63\) reads 2 of 2 pages: 0–1\. It keeps 100\.0\s%/,
    );
  });

  it("says what is wrong, and goes on", async () => {
    await draw("dhsa", "0");
    assert.match(text("error"), /budget is 0.*\[invalid-option\]/);
    await draw("dense", "100");
    assert.equal(text("error"), "");
    assert.match(text("summary"), /dense reads 100\.0\s% of the pages and keeps 100\.0\s%/);
  });
});
