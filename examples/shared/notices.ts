/** What the page says about itself: errors in their box, and what happens to those who listen instead of looking. */

import { InlayError } from "inlay";
import { create, element } from "./elements.ts";

const error = element("error", HTMLDivElement);
const status = element("status", HTMLParagraphElement);

/** `what` in plain words; the SDK's errors say what was found and what to do. `advice`: what to do on this page. */
export function showError(what: string, cause: unknown, advice?: string): void {
  const text = create("p", "", `${what} `);
  text.append(cause instanceof Error ? cause.message : String(cause));
  if (advice !== undefined) text.append(create("br"), create("strong", "", advice));
  if (cause instanceof InlayError) text.append(create("br"), create("code", "", cause.code));
  const dismiss = create("button", "", "Dismiss");
  dismiss.type = "button";
  dismiss.addEventListener("click", hideError);
  error.replaceChildren(text, dismiss);
}

export function hideError(): void {
  error.replaceChildren();
}

/** For screen readers. */
export function say(text: string): void {
  status.textContent = text;
}
