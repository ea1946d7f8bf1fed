/** A page that answers questions about documents: each is read once, and answers begin at once from then on. */

import { InlayError, type LoadProgress, loadModel, type Model, type PinBits, type PinProgress } from "inlay";
import { element } from "../chat/elements.ts";
import { bytesText, secondsText, tokensText } from "../chat/format.ts";
import { choiceFromAddress, choiceFromFiles, type ModelChoice } from "../chat/model-source.ts";
import { findSample, type Sample } from "../chat/sample.ts";
import { showDocuments } from "./document-list.ts";
import { Reader } from "./reader.ts";
import * as view from "./view.ts";

let model: Model | undefined;
/** The model that comes with the demo. */
let sample: Sample | undefined;
/** The open document. */
let reader: Reader | undefined;
/** What can be stopped. */
let work: { readonly controller: AbortController; readonly done: Promise<void> } | undefined;

/** Runs `run` once what ran before has been stopped. Errors are shown after `failed`; being stopped is none. */
async function start(failed: string, run: (signal: AbortSignal) => Promise<void>): Promise<void> {
  while (work) await stop();
  const controller = new AbortController();
  view.hideError();
  const done = run(controller.signal)
    .catch((error: unknown) => {
      if (error instanceof InlayError && error.code === "worker-died") leave();
      if (!controller.signal.aborted) view.showError(failed, error);
    })
    .finally(() => {
      work = undefined;
    });
  work = { controller, done };
  await done;
}

async function stop(): Promise<void> {
  work?.controller.abort();
  await work?.done;
}

function leave(): void {
  model = undefined;
  reader = undefined;
  showDocuments([], undefined, actions);
  view.showChooser();
}

/** Where the model came from is kept in the page's address, so that it is loaded again after a reload. */
function remember(address: string | undefined): void {
  const url = new URL(location.href);
  if (address === undefined) url.searchParams.delete("model");
  else url.searchParams.set("model", address);
  history.replaceState(null, "", url);
}

async function load({ source, label }: ModelChoice, address?: string): Promise<void> {
  await start("The model could not be loaded:", async (signal) => {
    view.showWaiting(`Loading ${label}`);
    try {
      await model?.dispose();
      leave();
      view.showWaiting(`Loading ${label}`);
      const onProgress = ({ loaded, total, progress }: LoadProgress) =>
        view.showProgress(progress, total === undefined ? "" : `${bytesText(loaded)} of ${bytesText(total)}`);
      model = await loadModel(source, { signal, onProgress });
    } catch (error) {
      view.showChooser();
      throw error;
    }
    remember(address);
    view.showModel(model.config.name || label);
    element("sample-document", HTMLDivElement).hidden = !sample || address !== String(sample.source);
    await listDocuments();
    view.showDesk();
  });
}

async function listDocuments(): Promise<void> {
  if (model) showDocuments(await model.pinned.list(), reader?.document.id, actions);
}

/** Waits for a document while showing how far it is, and opens it. */
async function take(
  title: string,
  begin: (
    model: Model,
    options: { signal: AbortSignal; onProgress: (p: PinProgress) => void },
  ) => ReturnType<Model["pin"]>,
): Promise<void> {
  if (!model) return;
  const current = model;
  await start("The document could not be opened:", async (signal) => {
    view.showWaiting(title);
    try {
      await reader?.document.close();
      reader = undefined;
      const document = await begin(current, { signal, onProgress: showPinProgress });
      reader = new Reader(current, document);
      await listDocuments();
      view.showDocument(document);
    } catch (error) {
      await listDocuments();
      view.showDesk();
      throw error;
    }
  });
}

const PHASES = {
  prefill: "Reading",
  download: "Fetching",
  cluster: "Sorting",
  store: "Storing",
  restore: "Opening",
} as const;

function showPinProgress({ phase, loaded, total, progress }: PinProgress): void {
  const [done, all] =
    phase === "prefill"
      ? [loaded.toLocaleString("en"), tokensText(total)]
      : phase === "cluster"
        ? [loaded.toLocaleString("en"), `${total} layers`]
        : [bytesText(loaded), bytesText(total)];
  view.showProgress(progress, `${PHASES[phase]}, ${done} of ${all}`);
}

function pin(name: string, text: string): Promise<void> {
  const bits = Number(element("bits", HTMLSelectElement).value) as PinBits;
  return take(`Reading ${name}`, (current, options) => current.pin(text, { id: name, bits, ...options }));
}

async function takeFile(file: File): Promise<void> {
  if (file.name.endsWith(".inlaykv"))
    await take(`Opening ${file.name}`, (current, options) => current.pinned.import(file, options));
  else await pin(file.name, await file.text());
}

const actions = {
  open: (id: string) => void take(`Opening ${id}`, (current, options) => current.pinned.open(id, options)),
  save: (id: string) =>
    void start("The document could not be saved:", async () => {
      const file = await model?.pinned.export(id);
      if (!file) return;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(file);
      link.download = `${id}.inlaykv`;
      link.click();
      URL.revokeObjectURL(link.href);
    }),
  remove: (id: string) =>
    void start("The document could not be deleted:", async () => {
      await model?.pinned.delete(id);
      if (reader?.document.id === id) {
        reader = undefined;
        view.showDesk();
      }
      await listDocuments();
      view.say(`${id} is deleted`);
    }),
};

async function ask(): Promise<void> {
  const question = view.typedQuestion();
  const current = reader;
  if (!current || work || question === "") return;
  await start("The question could not be answered:", async (signal) => {
    const turn = view.startAnswer(question);
    let note = "stopped";
    try {
      const times = await current.ask(question, signal, turn.append);
      view.showTimes(current.document.info.prefillSeconds, times);
      note = `${tokensText(times.answerTokens)} · first after ${secondsText(times.firstTokenSeconds)}`;
    } catch (error) {
      if (!signal.aborted) note = "broken off";
      throw error;
    } finally {
      turn.end(note);
    }
  });
}

function takeModelFiles(files: readonly File[]): void {
  const choice = choiceFromFiles(files);
  if (choice) void load(choice);
}

/** Files that fell on the page: a model, or a document for the model that is loaded. */
function takeDropped(files: readonly File[]): void {
  const isModel = files.some(({ name }) => /\.gguf$/i.test(name));
  if (isModel || !model) takeModelFiles(files);
  else if (files[0]) void takeFile(files[0]);
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

function onFiles(id: string, act: (files: readonly File[]) => void): void {
  const input = element(id, HTMLInputElement);
  input.addEventListener("change", () => {
    act(Array.from(input.files ?? []));
    input.value = ""; // so that the same file can be chosen again
  });
}

function loadAddress(address: string): Promise<void> {
  return load(choiceFromAddress(address), address);
}

onSubmit("composer", ask);
onSubmit("address-form", () => loadAddress(element("address", HTMLInputElement).value));
onClick("stop", stop);
onClick("cancel", stop);
onClick("add-document", async () => view.showDesk());
onClick("take-story", async () => {
  const response = await fetch("lighthouse.md");
  if (response.ok) await pin("lighthouse.md", await response.text());
  else view.showError("The story could not be fetched:", new Error(`status ${response.status}`));
});
onClick("change-model", () =>
  start("The model could not be closed:", async () => {
    await model?.dispose();
    remember(undefined);
    leave();
  }),
);
onFiles("model-files", takeModelFiles);
onFiles("document-files", ([file]) => file && void takeFile(file));

element("question", HTMLTextAreaElement).addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void ask();
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
  takeDropped(Array.from(event.dataTransfer?.files ?? []));
});

sample = await findSample();
if (sample) {
  const { document: text, opening } = sample;
  onClick("take-sample-document", async () => {
    await pin("sample document", text);
    if (reader) view.suggest(opening);
  });
  element("sample", HTMLDivElement).hidden = false;
  element("sample-about", HTMLParagraphElement).textContent =
    `${sample.label}, ${bytesText(sample.byteLength)}. ${sample.about}`;
  onClick("take-sample", () => load(sample, String(sample.source)));
}
const address = new URL(location.href).searchParams.get("model");
document.body.dataset.ready = "";
if (address !== null) await loadAddress(address);
