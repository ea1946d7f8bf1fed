// An example in a frame as wide as a small phone, used through its own controls.

import { assert } from "chai";

const WAIT_MS = 30_000;

export class ExamplePage {
  private readonly frame = document.createElement("iframe");

  /** Begins to load an example; `query` as in its address, with the "?". Wait for its script with `until`. */
  constructor(example: string, query = "") {
    this.frame.style.cssText = "width: 360px; height: 640px";
    this.frame.src = `/examples/${example}/index.html${query}`;
    document.body.append(this.frame);
  }

  get document(): Document {
    return this.frame.contentDocument!;
  }

  element<T extends HTMLElement>(id: string): T {
    return this.document.getElementById(id) as T;
  }

  all<T extends HTMLElement>(selector: string): T[] {
    return [...this.document.querySelectorAll<T>(selector)];
  }

  text(id: string): string {
    return this.document.getElementById(id)?.textContent?.trim() ?? "";
  }

  isShown(id: string): boolean {
    return this.element(id).checkVisibility();
  }

  async until(what: string, isTrue: () => boolean): Promise<void> {
    const end = performance.now() + WAIT_MS;
    while (!isTrue()) {
      if (performance.now() > end)
        throw new Error(`waited for ${what}; the page says: ${this.text("error")} ${this.text("status")}`);
      await new Promise((wake) => setTimeout(wake, 5));
    }
  }

  set(id: string, value: string): void {
    this.element<HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement>(id).value = value;
  }

  click(id: string): void {
    this.element<HTMLButtonElement>(id).click();
  }

  /** Chooses a file in a file input. */
  choose(id: string, content: BlobPart, name: string): void {
    const transfer = new DataTransfer();
    // A file of the frame's own kind, as people's choices are.
    const { File: FileOfFrame } = this.frame.contentWindow as Window & typeof globalThis;
    transfer.items.add(new FileOfFrame([content], name));
    const input = this.element<HTMLInputElement>(id);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  /** Nothing sticks out at the side; ids are unique; every control has a name, and its place in the order of the page. */
  check(state: string): void {
    const ids = this.all("[id]").map(({ id }) => id);
    assert.lengthOf(new Set(ids), ids.length, `${state}: ids are unique`);
    for (const control of this.all("button, input, select, textarea"))
      assert.isNotEmpty(nameOf(control), `${state}: the name of #${control.id}`);
    assert.lengthOf(this.all("[tabindex]:not([tabindex='0'])"), 0, `${state}: no order of its own`);
    const { scrollWidth, clientWidth } = this.document.documentElement;
    assert.isAtMost(scrollWidth, clientWidth, `${state}: nothing sticks out`);
  }

  close(): void {
    this.frame.remove();
  }
}

/** A control's name as screen readers compute it, as far as the examples use it. */
function nameOf(control: HTMLElement): string {
  if (control.ariaLabel) return control.ariaLabel;
  const labels = control instanceof HTMLButtonElement ? undefined : (control as HTMLInputElement).labels;
  return (labels?.[0] ?? control).textContent?.trim() ?? "";
}
