// The chat example in a frame, used through its own controls: a chat, a story, stopping, errors, names of controls.
// What needs real keys is in test/unit/example-chat.test.ts.

import { assert } from "chai";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { ExamplePage } from "./harness/example-page.ts";
import { browser, isIsolated } from "./harness/index.ts";

class ChatPage extends ExamplePage {
  static async open(): Promise<ChatPage> {
    const page = new ChatPage("chat");
    await page.until("the script to run", () => page.text("fact-list") !== "");
    return page;
  }

  async load(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    this.choose("model-files", bytes, "tiny.gguf");
    await this.until("the talk", () => this.isShown("talk"));
  }

  /** Sends a text; does not wait for the answer. */
  send(text: string): void {
    this.set("message", text);
    this.click("send");
  }

  async answered(): Promise<void> {
    await this.until("the answer to end", () => this.isShown("send"));
  }
}

/** A model whose file has no chat template: the key is misspelt. */
function withoutTemplate(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const key = "tokenizer.chat_template";
  const at = new TextDecoder("latin1").decode(bytes).indexOf(key);
  bytes.set(new TextEncoder().encode(key.replace("chat", "chit")), at);
  return bytes;
}

describe(`the chat example (${isIsolated ? "isolated" : "ordinary"} page)`, () => {
  let page: ChatPage;
  beforeEach(async () => {
    page = await ChatPage.open();
  });
  afterEach(() => page.close());

  it("chats: an answer in pieces, and what ran it how fast", async () => {
    await page.load(tinyGguf("tiny-llama", { type: "Q8_0" }));
    assert.isFalse(page.isShown("story-note"));
    page.set("max-tokens", "40");
    let nGrowths = 0;
    new MutationObserver(() => nGrowths++).observe(page.element("log"), { childList: true, subtree: true });
    page.send("<b>hello</b>");
    await page.answered();
    assert.isAbove(nGrowths, 3, "the answer came in pieces");
    const [question, answer] = page.all("#log .message .text");
    assert.equal(question?.textContent, "<b>hello</b>", "text stays text");
    assert.isNotEmpty(answer?.textContent);
    assert.match(page.text("log"), /\d+ tokens? · .*first after/);
    await page.until("the figures", () => page.text("fact-list").includes("Decode"));
    for (const fact of ["Runs on", "WASM build", "Context used", "Prefill", "Weights"])
      assert.include(page.text("fact-list"), fact);
    if (isIsolated && browser !== "webkit" && navigator.hardwareConcurrency > 1)
      assert.match(page.text("fact-list"), /-threads/);
  });

  it("remembers a chat, and begins a new one", async () => {
    await page.load(tinyGguf("tiny-llama", { type: "Q8_0" }));
    page.set("max-tokens", "8");
    page.send("one");
    await page.answered();
    page.send("two");
    await page.answered();
    assert.lengthOf(page.all("#log .message"), 4);
    await page.until("cached tokens", () => /[1-9]\d* of them cached/.test(page.text("fact-list")));
    page.click("new-talk");
    await page.until("an empty log", () => page.text("log") === "");
  });

  it("continues a story where there is no chat template", async () => {
    await page.load(withoutTemplate(tinyGguf("tiny-llama", { type: "Q8_0" })));
    assert.isTrue(page.isShown("story-note"));
    page.set("max-tokens", "8");
    page.send("Once");
    await page.answered();
    const first = page.text("log");
    assert.isTrue(first.startsWith("Once") && first.length > "Once".length, first);
    page.send("");
    await page.answered();
    assert.isTrue(page.text("log").startsWith(first) && page.text("log").length > first.length);
  });

  it("stops an answer and goes on", async () => {
    await page.load(tinyGguf("tiny-llama", { type: "Q8_0" }));
    page.set("max-tokens", "400");
    page.send("hello");
    await page.until("words", () => (page.document.querySelector(".models .text")?.textContent ?? "") !== "");
    page.click("stop");
    await page.answered();
    assert.include(page.text("log"), "stopped");
    assert.equal(page.text("error"), "");
    page.set("max-tokens", "4");
    page.send("again");
    await page.answered();
    assert.lengthOf(page.all("#log .message"), 4);
  });

  it("cancels a load without an error", async () => {
    page.choose("model-files", tinyGguf(), "tiny.gguf");
    assert.isTrue(page.isShown("loading"));
    page.click("cancel-load");
    await page.until("the choice of models", () => page.isShown("chooser"));
    assert.equal(page.text("error"), "");
    await page.load(tinyGguf());
  });

  it("says what is wrong, and stays usable", async () => {
    page.choose("model-files", "this is no model", "letter.txt");
    await page.until("the error", () => page.text("error") !== "");
    assert.include(page.text("error"), "letter.txt");
    assert.include(page.text("error"), "invalid-model");
    assert.isTrue(page.isShown("chooser"));

    await page.load(tinyGguf("tiny-llama", { type: "Q8_0" }));
    assert.equal(page.text("error"), "", "the error is gone");
    page.set("temperature", "9");
    page.send("hello");
    await page.until("the error", () => page.text("error").includes("temperature"));
    assert.equal(page.element<HTMLTextAreaElement>("message").value, "hello", "the text is given back");
    page.set("temperature", "");
    page.set("max-tokens", "4");
    page.send("hello");
    await page.answered();
    assert.equal(page.text("error"), "");
    assert.lengthOf(page.all("#log .message"), 2);
  });

  it("names every control, in the order of the page, within 360 px", async () => {
    page.check("choosing");
    await page.load(tinyGguf("tiny-llama", { type: "Q8_0" }));
    page.set("max-tokens", "60");
    page.send("a".repeat(200));
    await page.answered();
    page.check("talking");
    for (const fold of page.all<HTMLDetailsElement>("details")) fold.open = true;
    page.check("settings open");
    assert.equal(page.element("log").role, "log");
    assert.equal(page.element("error").role, "alert");
    assert.equal(page.element("status").role, "status");
  });
});
