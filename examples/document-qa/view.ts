/** What the page shows: the choice of a model, waiting, the desk, a document and its answers, errors. */

import { InlayError, type PinnedPrompt } from "inlay";
import { create, element } from "../chat/elements.ts";
import { secondsText, tokensText } from "../chat/format.ts";
import { aboutText } from "./document-list.ts";
import type { AnswerTimes } from "./reader.ts";

const sections = {
  chooser: element("chooser", HTMLElement),
  desk: element("desk", HTMLElement),
  waiting: element("waiting", HTMLElement),
  talk: element("talk", HTMLElement),
};
const modelName = element("model-name", HTMLParagraphElement);
const changeModel = element("change-model", HTMLButtonElement);
const modelFiles = element("model-files", HTMLInputElement);
const documentFiles = element("document-files", HTMLInputElement);
const documents = element("documents", HTMLDetailsElement);
const addDocument = element("add-document", HTMLButtonElement);
const error = element("error", HTMLDivElement);
const status = element("status", HTMLParagraphElement);
const waitingTitle = element("waiting-title", HTMLHeadingElement);
const progress = element("progress", HTMLProgressElement);
const waitingDetail = element("waiting-detail", HTMLParagraphElement);
const cancel = element("cancel", HTMLButtonElement);
const talkTitle = element("talk-title", HTMLHeadingElement);
const talkAbout = element("talk-about", HTMLParagraphElement);
const log = element("log", HTMLDivElement);
const times = element("times", HTMLDListElement);
const questionLabel = element("question-label", HTMLLabelElement);
const question = element("question", HTMLTextAreaElement);
const ask = element("ask", HTMLButtonElement);
const stop = element("stop", HTMLButtonElement);

/** How near to its end the log must be scrolled for it to follow the answer. */
const NEAR_PX = 48;

export function showChooser(): void {
  show("chooser");
  modelName.textContent = "no model yet";
  modelFiles.focus();
}

export function showModel(name: string): void {
  modelName.textContent = name;
}

/** Where documents are added. */
export function showDesk(): void {
  show("desk");
  documents.open = true;
  documentFiles.focus();
}

/** Something that takes a while and can be cancelled. */
export function showWaiting(title: string): void {
  show("waiting");
  waitingTitle.textContent = title;
  waitingDetail.textContent = "";
  progress.value = 0;
  cancel.focus();
  say(title);
}

export function showProgress(share: number, detail: string): void {
  progress.value = share;
  waitingDetail.textContent = detail;
}

/** An opened document, with nothing asked yet. */
export function showDocument({ info }: PinnedPrompt): void {
  show("talk");
  // Where the list stands above the answers, it makes room for them.
  if (!matchMedia("(min-width: 60rem)").matches) documents.open = false;
  talkTitle.textContent = info.id;
  talkAbout.textContent = aboutText(info);
  questionLabel.textContent = info.raw ? "Text to go on with" : "Question";
  ask.textContent = info.raw ? "Continue" : "Ask";
  log.replaceChildren();
  showTimes(info.prefillSeconds, undefined);
  question.focus();
  say(`${info.id} is open`);
}

/** Time to the first token without the pinned document, and with it once there was an answer. */
export function showTimes(prefillSeconds: number, answer: AnswerTimes | undefined): void {
  const rows: [string, string][] = [
    ["First word without the pin", `after ${secondsText(prefillSeconds)}: the time that reading it took`],
  ];
  if (answer) {
    const { firstTokenSeconds, promptTokens, cachedTokens } = answer;
    const read = tokensText(promptTokens - cachedTokens);
    const kept = cachedTokens.toLocaleString("en");
    rows.push(["First word with it", `after ${secondsText(firstTokenSeconds)}: ${read} read, ${kept} kept`]);
  }
  times.replaceChildren(
    ...rows.flatMap(([name, value]) => [create("dt", "", name), create("dd", "", value)]),
  );
}

/** One question on the page, and where its answer goes. */
export interface Turn {
  append(piece: string): void;
  /** Ends it; `note` says how. A question without an answer is given back to the composer. */
  end(note: string): void;
}

export function startAnswer(text: string): Turn {
  const answer = message("models", "Answer", "");
  const body = create("p", "text");
  answer.append(body);
  const asked = message("yours", "You", text);
  log.append(asked, answer);
  log.ariaBusy = "true";
  log.scrollTop = log.scrollHeight;
  question.value = "";
  ask.hidden = true;
  stop.hidden = false;
  question.focus();
  say("Answering");
  let hasBegun = false;
  return {
    append(piece) {
      const shown = hasBegun ? piece : piece.trimStart();
      hasBegun ||= shown !== "";
      follow(() => body.append(shown));
    },
    end(note) {
      body.normalize();
      if (hasBegun) follow(() => answer.append(create("p", "note", note)));
      else {
        asked.remove();
        answer.remove();
        question.value ||= text;
      }
      log.ariaBusy = "false";
      ask.hidden = false;
      stop.hidden = true;
      if (document.activeElement === document.body) question.focus();
      say(`Answer ended: ${note}`);
    },
  };
}

export function typedQuestion(): string {
  return question.value.trim();
}

/** Puts a question into the composer. */
export function suggest(text: string): void {
  question.value = text;
  question.focus();
}

/** `what` in plain words; the SDK's errors say what was found and what to do. */
export function showError(what: string, cause: unknown): void {
  const text = create("p", "", `${what} `);
  text.append(cause instanceof Error ? cause.message : String(cause));
  if (cause instanceof InlayError) text.append(create("br"), create("code", "", cause.code));
  const dismiss = create("button", "", "Dismiss");
  dismiss.type = "button";
  dismiss.addEventListener("click", hideError);
  error.replaceChildren(text, dismiss);
}

export function hideError(): void {
  error.replaceChildren();
}

/** Tells those who listen instead of looking. */
export function say(text: string): void {
  status.textContent = text;
}

function message(className: string, author: string, text: string): HTMLElement {
  const made = create("article", `message ${className}`);
  made.append(create("h3", "", author));
  if (text !== "") made.append(create("p", "text", text));
  return made;
}

/** Changes the log, and keeps its end in sight if it was. */
function follow(change: () => void): void {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
  change();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function show(name: keyof typeof sections): void {
  for (const [key, section] of Object.entries(sections)) section.hidden = key !== name;
  changeModel.hidden = name === "chooser";
  addDocument.hidden = name !== "talk";
}
