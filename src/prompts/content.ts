/** What was pinned, and how a request continues it. */

import { InlayError } from "../errors.ts";
import type { Prompt } from "../generate/request.ts";
import type { ChatMessages } from "../tokenizer/chat-template.ts";
import { damaged, type PromptManifest } from "./manifest.ts";

/** The pinned text or messages. */
export type PinnedContent =
  | { readonly kind: "chat"; readonly messages: ChatMessages }
  | { readonly kind: "text"; readonly text: string };

/** What is prefilled for it. `time`: that its chat template is told, in milliseconds since 1970. */
export function pinnedPrompt(content: PinnedContent, time: number): Prompt {
  if (content.kind === "text") return { kind: "text", text: content.text, parseSpecial: true };
  return { kind: "chat", messages: content.messages, options: { addGenerationPrompt: false, time } };
}

/** `content` after that of the pinned prompt `id`. Throws `invalid-option` for text after messages or the reverse. */
export function joinContent(id: string, base: PinnedContent, content: PinnedContent): PinnedContent {
  if (base.kind === "text" && content.kind === "text")
    return { kind: "text", text: base.text + content.text };
  if (base.kind === "chat" && content.kind === "chat")
    return { kind: "chat", messages: [...base.messages, ...content.messages] };
  throw new InlayError(
    "invalid-option",
    base.kind === "text"
      ? `the prompt ${JSON.stringify(id)} was pinned as raw text; pin raw text on it, or messages by themselves`
      : `the prompt ${JSON.stringify(id)} was pinned as messages; pin messages on it, or raw text by itself`,
    { option: "on", id },
  );
}

/**
 * The whole prompt of a request after what was pinned as `ids`, with the time that the pinned part was told: a date in it must stay
 * what it was. Throws `invalid-option` for text after messages or the reverse.
 */
export function continuePinned(
  { id, renderedAt }: Pick<PromptManifest, "id" | "renderedAt">,
  content: PinnedContent,
  ids: Uint32Array,
  prompt: Prompt,
): Prompt {
  if (prompt.kind === "ids") {
    const whole = new Uint32Array(ids.length + prompt.ids.length);
    whole.set(ids);
    whole.set(prompt.ids, ids.length);
    return { kind: "ids", ids: whole };
  }
  if (content.kind === "text" && prompt.kind === "text")
    return { ...prompt, text: content.text + prompt.text, parseSpecial: true };
  if (content.kind === "chat" && prompt.kind === "chat")
    return {
      ...prompt,
      messages: [...content.messages, ...prompt.messages],
      options: { ...prompt.options, time: renderedAt },
    };
  throw new InlayError(
    "invalid-option",
    content.kind === "text"
      ? `the prompt ${JSON.stringify(id)} was pinned as raw text; continue it with complete, or pin messages for chats`
      : `the prompt ${JSON.stringify(id)} was pinned as messages; continue it with a chat, or pin it with raw: true`,
    { option: "pinned", id },
  );
}

/**
 * Throws `invalid-option` unless `whole` begins with the pinned ids: a template or the tokenizer made something else of
 * the pinned part than it did when that stood alone.
 */
export function assertContinues(
  id: string,
  ids: Uint32Array,
  whole: Uint32Array,
  decode: (ids: Uint32Array) => string,
): void {
  const at = ids.findIndex((token, i) => token !== whole[i]);
  if (at < 0) return;
  const around = (list: Uint32Array) => JSON.stringify(decode(list.slice(at, at + 8)));
  throw new InlayError(
    "invalid-option",
    `this request does not begin as the pinned prompt ${JSON.stringify(id)} does: they part at token ${at} of its ` +
      `${ids.length}, where it goes on with ${around(ids)} and the request with ${around(whole)}. The chat template (or ` +
      "the tokenizer) writes the pinned part differently when something follows; pin it so that it ends where a message or line ends",
    { option: "pinned", id, at, pinnedTokens: ids.length },
  );
}

/** Throws `cache-mismatch` where the tokens of a prompt from elsewhere are not those of its text. */
export function assertTokens(id: string, ids: Uint32Array, ofText: Uint32Array): void {
  if (ids.length === ofText.length && ids.every((token, i) => token === ofText[i])) return;
  throw new InlayError(
    "cache-mismatch",
    `the tokens of the pinned prompt ${JSON.stringify(id)} are not those of its text with this model's tokenizer and chat ` +
      "template: pin the prompt again",
    { id, tokens: ids.length, tokensOfText: ofText.length },
  );
}

/** Token ids as bytes of their record: little-endian, as every machine that runs WebAssembly in practice is. */
export function encodeTokens(ids: Uint32Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(ids.slice().buffer);
}

export function decodeTokens(bytes: Uint8Array<ArrayBuffer>): Uint32Array {
  return new Uint32Array(bytes.slice().buffer);
}

/** Content as bytes of its record. */
export function encodeContent(content: PinnedContent): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(JSON.stringify(content));
}

/** Content from its record, whose checksum was right. Throws `storage-failed` for what is none. */
export function decodeContent(bytes: Uint8Array): PinnedContent {
  let content: Partial<PinnedContent> | null;
  try {
    content = JSON.parse(new TextDecoder().decode(bytes)) as Partial<PinnedContent> | null;
  } catch {
    throw damaged("the pinned prompt's text is not JSON");
  }
  if (content?.kind === "chat" && Array.isArray(content.messages)) return content as PinnedContent;
  if (content?.kind === "text" && typeof content.text === "string") return content as PinnedContent;
  throw damaged("the pinned prompt's text is neither messages nor text");
}
