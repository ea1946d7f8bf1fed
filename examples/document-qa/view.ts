/** What the page shows: the choice of a model, waiting, the desk, a document and its answers. */

import type { PinnedPrompt } from "inlay";
import { create, element } from "../shared/elements.ts";
import { secondsText, tokensText } from "../shared/format.ts";
import { addMessages, log, type Turn } from "../shared/messages.ts";
import { say } from "../shared/notices.ts";
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
const waitingTitle = element("waiting-title", HTMLHeadingElement);
const progress = element("progress", HTMLProgressElement);
const waitingDetail = element("waiting-detail", HTMLParagraphElement);
const cancel = element("cancel", HTMLButtonElement);
const talkTitle = element("talk-title", HTMLHeadingElement);
const talkAbout = element("talk-about", HTMLParagraphElement);
const times = element("times", HTMLDListElement);
const questionLabel = element("question-label", HTMLLabelElement);
const question = element("question", HTMLTextAreaElement);
const ask = element("ask", HTMLButtonElement);
const stop = element("stop", HTMLButtonElement);

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

/** Shows a question, and where its answer goes. A question without an answer is given back to the composer. */
export function startAnswer(text: string): Pick<Turn, "append" | "end"> {
  const turn = addMessages(text, "Answer");
  question.value = "";
  ask.hidden = true;
  stop.hidden = false;
  question.focus();
  say("Answering");
  let hasBegun = false;
  return {
    append(piece) {
      hasBegun ||= piece.trim() !== "";
      turn.append(piece);
    },
    end(note) {
      if (hasBegun) turn.end(note);
      else {
        turn.remove();
        question.value ||= text;
      }
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

function show(name: keyof typeof sections): void {
  for (const [key, section] of Object.entries(sections)) section.hidden = key !== name;
  changeModel.hidden = name === "chooser";
  addDocument.hidden = name !== "talk";
}
