/** What the page shows: the choice of a model, its loading, the talk, errors. Nothing here knows the SDK's calls. */

import { type ErrorCode, InlayError, type LoadProgress, type PromptProgress } from "inlay";
import { element } from "../shared/elements.ts";
import { bytesText, tokensText } from "../shared/format.ts";
import * as notices from "../shared/notices.ts";
import { clearLog } from "./log.ts";
import type { Talk } from "./talk.ts";

const sections = {
  chooser: element("chooser", HTMLElement),
  loading: element("loading", HTMLElement),
  talk: element("talk", HTMLElement),
};
const modelName = element("model-name", HTMLParagraphElement);
const newTalk = element("new-talk", HTMLButtonElement);
const changeModel = element("change-model", HTMLButtonElement);
const reload = element("reload", HTMLButtonElement);
const modelFiles = element("model-files", HTMLInputElement);
const loadingTitle = element("loading-title", HTMLHeadingElement);
const loadProgress = element("load-progress", HTMLProgressElement);
const loadingDetail = element("loading-detail", HTMLParagraphElement);
const cancelLoad = element("cancel-load", HTMLButtonElement);
const storyNote = element("story-note", HTMLParagraphElement);
const prefill = element("prefill", HTMLDivElement);
const prefillText = element("prefill-text", HTMLSpanElement);
const prefillProgress = element("prefill-progress", HTMLProgressElement);
const figures = element("figures", HTMLParagraphElement);
const messageLabel = element("message-label", HTMLLabelElement);
const message = element("message", HTMLTextAreaElement);
const send = element("send", HTMLButtonElement);
const stop = element("stop", HTMLButtonElement);

/** Words that differ between a chat and a story. */
const WORDS = {
  chat: { message: "Message", send: "Send", again: "New chat", hint: "" },
  story: {
    message: "Text to continue",
    send: "Continue",
    again: "New story",
    hint: "leave it empty and the story goes on",
  },
} as const satisfies Record<Talk["kind"], object>;

const PHASES = {
  header: "Reading the header",
  weights: "Reading the weights",
  "warm-up": "Getting ready",
} as const;

/** What to do on this page about errors whose message cannot know it. */
const ADVICE: Partial<Record<ErrorCode, string>> = {
  "invalid-model": "Choose another file, or download this one again.",
  "unsupported-model": "Choose another model.",
  "context-full": "Shorten the text, begin anew, or set a larger context in Settings.",
  "out-of-memory": "Choose a smaller model, or set a smaller context in Settings.",
  "device-unavailable": "Choose another device in Settings.",
  "device-lost": "Load the model again, if need be with the processor as device in Settings.",
  "worker-died": "Load the model again.",
  internal: "This is a fault of Inlay: please report it with this text.",
};

/** What the form calls the options that it sets. */
const SETTINGS = new Map<unknown, string>([
  ["temperature", "Temperature"],
  ["max_tokens", "Longest answer"],
  ["device", "Device"],
  ["threads", "Threads"],
  ["contextLength", "Context"],
]);

function adviceFor({ code, details }: InlayError): string | undefined {
  const setting = code === "invalid-option" ? SETTINGS.get(details.option) : undefined;
  return setting === undefined ? ADVICE[code] : `Change “${setting}” in Settings.`;
}

/** Where the keyboard was when a model was chosen: it returns there if that model does not load. */
let chosenFrom: HTMLElement = modelFiles;

export function showChooser(): void {
  show("chooser");
  modelName.textContent = "no model yet";
  chosenFrom.focus();
}

export function showLoading(label: string): void {
  const { activeElement } = document;
  if (activeElement instanceof HTMLElement && sections.chooser.contains(activeElement))
    chosenFrom = activeElement;
  show("loading");
  modelName.textContent = "loading";
  loadingTitle.textContent = `Loading ${label}`;
  loadingDetail.textContent = "";
  loadProgress.value = 0;
  cancelLoad.focus();
  notices.say(`Loading ${label}`);
}

export function showLoadProgress({ phase, loaded, total, progress }: LoadProgress): void {
  loadProgress.value = progress;
  const isMeasured = phase === "weights" && total !== undefined;
  const amount = isMeasured ? `, ${bytesText(loaded)} of ${bytesText(total)}` : "";
  loadingDetail.textContent = `${PHASES[phase]}${amount}`;
}

/** Shows an empty talk. `opening`: what stands ready to be sent. */
export function showTalk(name: string, kind: Talk["kind"], opening: string): void {
  show("talk");
  modelName.textContent = name;
  storyNote.hidden = kind === "chat";
  messageLabel.textContent = WORDS[kind].message;
  send.textContent = WORDS[kind].send;
  newTalk.textContent = WORDS[kind].again;
  figures.textContent = "";
  message.placeholder = WORDS[kind].hint;
  message.value = opening;
  message.focus();
  clearLog(kind);
  notices.say(`${name} is ready`);
}

export function startAnswer(): void {
  message.value = "";
  figures.textContent = "";
  send.hidden = true;
  stop.hidden = false;
  message.focus();
  notices.say("Answering");
}

/** How far the prompt has been read; shown while there is more to read. */
export function showPrefill({ loaded, total, progress }: PromptProgress): void {
  prefill.hidden = loaded >= total;
  prefillProgress.value = progress;
  prefillText.textContent = `Reading the prompt, ${loaded.toLocaleString("en")} of ${tokensText(total)}`;
}

/** `outcome`: one line about the answer; `isNoted`: it stands in the log already. */
export function endAnswer(outcome: string, isNoted: boolean): void {
  prefill.hidden = true;
  figures.textContent = isNoted ? "" : outcome;
  send.hidden = false;
  const wasOnStop = document.activeElement === stop || document.activeElement === document.body;
  stop.hidden = true;
  if (wasOnStop) message.focus();
  notices.say(`Answer ended: ${outcome}`);
}

export function typedText(): string {
  return message.value;
}

/** Puts a text that was not answered back, unless something else was typed by now. */
export function giveBack(text: string): void {
  message.value ||= text;
}

/** Shows an error with what to do about it on this page. */
export function showError(what: string, cause: unknown): void {
  notices.showError(what, cause, cause instanceof InlayError ? adviceFor(cause) : undefined);
}

function show(name: keyof typeof sections): void {
  for (const [key, section] of Object.entries(sections)) section.hidden = key !== name;
  for (const button of [newTalk, changeModel, reload]) button.hidden = name !== "talk";
}
