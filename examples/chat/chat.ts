/** A page to talk with a model that runs on this device: choose one, load it, talk. */

import { InlayError, loadModel, type Model } from "inlay";
import { element } from "./elements.ts";
import { showEnvironment, showModelFacts } from "./facts.ts";
import { bytesText, figuresText } from "./format.ts";
import { addTurn } from "./log.ts";
import { choiceFromAddress, choiceFromFiles, type ModelChoice } from "./model-source.ts";
import { findSample } from "./sample.ts";
import { askAbout, loadOptions, samplingFields, systemPrompt } from "./settings.ts";
import { type Figures, startTalk, type Talk } from "./talk.ts";
import * as view from "./view.ts";

/** The loaded model, where it came from, and the talk with it. */
let loaded: { readonly model: Model; readonly choice: ModelChoice; readonly talk: Talk } | undefined;

/** The load or answer in progress. */
let work: { readonly controller: AbortController; readonly done: Promise<void> } | undefined;

/** Runs `run` once what ran before has been stopped. Errors are shown after `failed`; being stopped is none. */
async function start(failed: string, run: (signal: AbortSignal) => Promise<void>): Promise<void> {
  while (work) await stop();
  const controller = new AbortController();
  const report = (error: unknown) => {
    if (!controller.signal.aborted) view.showError(failed, error);
  };
  const end = () => {
    work = undefined;
  };
  view.hideError();
  const done = run(controller.signal).catch(report).finally(end);
  work = { controller, done };
  await done;
}

async function stop(): Promise<void> {
  work?.controller.abort();
  await work?.done;
}

async function load(choice: ModelChoice, opening = ""): Promise<void> {
  await start("The model could not be loaded:", async (signal) => {
    view.showLoading(choice.label);
    try {
      await loaded?.model.dispose();
      loaded = undefined;
      const onProgress = view.showLoadProgress;
      const model = await loadModel(choice.source, { ...loadOptions(), signal, onProgress });
      loaded = { model, choice, talk: startTalk(model) };
    } catch (error) {
      view.showChooser();
      throw error;
    }
    showTalk(opening);
  });
  await showFacts();
}

function showTalk(opening = ""): void {
  if (!loaded) return;
  const { model, choice, talk } = loaded;
  view.showTalk(model.config.name || choice.label, talk.kind, opening);
}

/** Shows what the model takes. It may be gone by the time it has told. */
async function showFacts(figures?: Figures): Promise<void> {
  const shown = loaded;
  if (!shown) return;
  const { model, talk } = shown;
  try {
    const [memory, contextTokens] = await Promise.all([model.memory(), talk.countTokens()]);
    if (loaded === shown) showModelFacts({ info: model.config, memory, contextTokens, figures });
  } catch (error) {
    if (loaded === shown) view.showError("The model does not tell about itself:", error);
  }
}

async function answer(): Promise<void> {
  const typed = view.typedText();
  const text = loaded?.talk.prepare(typed);
  if (!loaded || work || text === undefined) return;
  const { model, talk } = loaded;
  let figures: Figures | undefined;
  await start("The model could not answer:", async (signal) => {
    const turn = addTurn(talk.kind, text);
    let hasAnswer = false;
    let outcome = "stopped";
    view.startAnswer();
    try {
      figures = await talk.answer(text, {
        system: systemPrompt(),
        sampling: samplingFields(),
        signal,
        onProgress: view.showPrefill,
        onText(piece) {
          hasAnswer ||= piece !== "";
          turn.append(piece);
        },
      });
      outcome = hasAnswer ? figuresText(figures, model.config.contextLength) : "the model ended at once";
    } catch (error) {
      if (!signal.aborted) outcome = hasAnswer ? "broken off" : "no answer";
      if (error instanceof InlayError && error.code === "worker-died") leave();
      throw error;
    } finally {
      if (hasAnswer) turn.end(outcome);
      else {
        turn.remove();
        view.giveBack(typed);
      }
      view.endAnswer(outcome, hasAnswer && talk.kind === "chat");
    }
  });
  await showFacts(figures);
}

async function beginAgain(): Promise<void> {
  await stop();
  if (!loaded) return;
  loaded = { ...loaded, talk: startTalk(loaded.model) };
  showTalk();
  await showFacts();
}

async function changeModel(): Promise<void> {
  await start("The model could not be closed:", async () => {
    await loaded?.model.dispose();
    leave();
  });
}

/** Back to the choice of a model; the present one is gone. */
function leave(): void {
  loaded = undefined;
  view.showChooser();
  void showEnvironment();
}

function takeFiles(files: FileList | null | undefined): void {
  const choice = choiceFromFiles(Array.from(files ?? []));
  if (choice) void load(choice);
}

function onClick(id: string, act: () => Promise<void>): void {
  element(id, HTMLButtonElement).addEventListener("click", () => void act());
}

function onSubmit(id: string, act: () => Promise<void>): void {
  element(id, HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    void act();
  });
}

onSubmit("composer", answer);
onSubmit("address-form", () => load(choiceFromAddress(element("address", HTMLInputElement).value)));
onSubmit("settings-form", async () => {});
onClick("stop", stop);
onClick("cancel-load", stop);
onClick("new-talk", beginAgain);
onClick("change-model", changeModel);
onClick("reload", async () => loaded && load(loaded.choice));

const files = element("files", HTMLInputElement);
files.addEventListener("change", () => {
  takeFiles(files.files);
  files.value = ""; // so that the same file can be chosen again
});

element("message", HTMLTextAreaElement).addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void answer();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") void stop();
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dropping", event.dataTransfer?.types.includes("Files"));
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (relatedTarget === null) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  takeFiles(event.dataTransfer?.files);
});

element("facts", HTMLDetailsElement).open = matchMedia("(min-width: 60rem)").matches;
await showEnvironment();
const sample = await findSample();
if (sample) {
  element("sample", HTMLDivElement).hidden = false;
  element("sample-about", HTMLParagraphElement).textContent =
    `${sample.label}, ${bytesText(sample.byteLength)}. ${sample.about}`;
  onClick("take-sample", () => {
    askAbout(sample.document);
    return load(sample, sample.opening);
  });
}
