// The document example in a frame, used through its own controls: pin, ask, reload, ask again without prefill, delete.

import { assert } from "chai";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { ExamplePage } from "./harness/example-page.ts";
import { isIsolated } from "./harness/index.ts";

const BYTES = tinyGguf("tiny-llama", { type: "Q8_0", seed: 12 });
const DOCUMENT = "The ferry leaves at nine. It needs an hour. ".repeat(6);

class DocumentPage extends ExamplePage {
  static async open(query = ""): Promise<DocumentPage> {
    const page = new DocumentPage("document-qa", query);
    await page.until("the script to run", () => page.document.body?.dataset.ready !== undefined);
    return page;
  }

  async loadModel(): Promise<void> {
    this.choose("model-files", BYTES, "tiny.gguf");
    await this.until("the desk", () => this.isShown("desk"));
  }

  async pin(name: string, text = DOCUMENT): Promise<void> {
    this.choose("document-files", text, name);
    await this.until("the document", () => this.isShown("talk"));
  }

  /** Names of the listed documents. */
  get documents(): string[] {
    return this.all("#document-list .open").map((e) => e.textContent ?? "");
  }

  documentButton(name: string): HTMLButtonElement {
    return this.document.querySelector(`#document-list [aria-label="${name}"]`) as HTMLButtonElement;
  }

  /** The answer's text. */
  async ask(question: string): Promise<string> {
    this.set("question", question);
    this.click("ask");
    await this.until("the answer", () => this.isShown("ask"));
    return this.document.querySelector("#log .models:last-child .text")?.textContent ?? "";
  }

  /** Takes everything off the list, for the tests after. */
  async clear(): Promise<void> {
    for (const name of this.documents) {
      this.documentButton(`Delete ${name}`).click();
      await this.until("a shorter list", () => !this.documents.includes(name));
    }
  }
}

describe(`the document example (${isIsolated ? "isolated" : "ordinary"} page)`, function () {
  this.timeout(60_000);
  let page: DocumentPage;
  beforeEach(async () => {
    page = await DocumentPage.open();
  });
  afterEach(() => page.close());

  it("reads a document once; after a reload it is open again without prefill", async () => {
    await page.loadModel();
    assert.isTrue(page.isShown("no-documents"));
    await page.pin("ferry.md");
    assert.equal(page.text("talk-title"), "ferry.md");
    assert.deepEqual(page.documents, ["ferry.md"]);
    assert.match(page.text("document-list"), /\d+ tokens · [\d.]+ \w+ · [\d.]+ bits · just now/);
    assert.match(page.text("times"), /^First word without the pinafter \d/);
    assert.isNotEmpty(await page.ask("When does the ferry leave?"));
    const kept = /First word with itafter [\d.]+ s: \d+ tokens? read, (\d+) kept/;
    assert.match(page.text("times"), kept);
    const [, before] = kept.exec(page.text("times"))!;

    page.close();
    page = await DocumentPage.open();
    await page.loadModel();
    assert.deepEqual(page.documents, ["ferry.md"]);
    page.documentButton("ferry.md").click();
    const seen = new Set<string>();
    await page.until("the document", () => {
      seen.add(page.text("waiting-detail").split(",")[0]!);
      return page.isShown("talk");
    });
    assert.isFalse(seen.has("Reading"), [...seen].join());
    assert.equal(page.documentButton("ferry.md").getAttribute("aria-current"), "true");
    assert.isNotEmpty(await page.ask("How long does it take?"));
    assert.equal(kept.exec(page.text("times"))?.[1], before);
    assert.match(page.text("log"), /\d+ tokens? · first after/);
    await page.clear();
    assert.isTrue(page.isShown("desk"), "the open document was deleted");
    assert.isTrue(page.isShown("no-documents"));
  });

  it("takes the story that comes with it at another precision, and several documents", async () => {
    await page.loadModel();
    page.set("bits", "2");
    page.click("take-story");
    await page.until("the story", () => page.isShown("talk"));
    assert.match(page.text("document-list"), /[\d.]+ bits/);
    page.click("add-document");
    await page.pin("second.txt");
    assert.sameMembers(page.documents, ["lighthouse.md", "second.txt"]);
    await page.clear();
  });

  it("cancels reading, and says what is too long", async () => {
    await page.loadModel();
    page.choose("document-files", DOCUMENT, "cancelled.txt");
    await page.until("the progress", () => page.isShown("waiting"));
    page.click("cancel");
    await page.until("the desk", () => page.isShown("desk"));
    assert.equal(page.text("error"), "");
    assert.deepEqual(page.documents, []);
    page.choose("document-files", DOCUMENT.repeat(20), "long.txt");
    await page.until("the error", () => page.text("error") !== "");
    assert.match(page.text("error"), /The document could not be opened: .*tokens.*context-full/);
    assert.isTrue(page.isShown("desk"));
  });

  it("loads the model of its address again", async () => {
    page.close();
    page = await DocumentPage.open("?model=/no/such/model.gguf");
    await page.until("the error", () => page.text("error") !== "");
    assert.match(page.text("error"), /The model could not be loaded: .*model\.gguf/s);
    assert.isTrue(page.isShown("chooser"));
  });

  it("names every control, in the order of the page, within 360 px", async () => {
    page.check("choosing");
    await page.loadModel();
    page.check("the desk");
    await page.pin(`${"long-name-".repeat(12)}.md`);
    await page.ask("a".repeat(100));
    page.check("talking");
    assert.equal(page.element("log").role, "log");
    assert.equal(page.element("error").role, "alert");
    assert.equal(page.element("status").role, "status");
    await page.clear();
  });
});
