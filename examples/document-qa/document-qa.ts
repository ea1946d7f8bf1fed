/** A page that answers questions about documents: each is read once, and answers begin at once from then on. */

import {
  InlayError,
  type LoadProgress,
  loadModel,
  type Model,
  type PinBits,
  type PinnedPrompt,
  type PinProgress,
} from "inlay";
import { offerSample, onModelChosen } from "../shared/chooser.ts";
import { element } from "../shared/elements.ts";
import { type Files, onClick, onDrop, onEnter, onEscape, onFiles, onSubmit } from "../shared/events.ts";
import { bytesText, secondsText, tokensText } from "../shared/format.ts";
import { choiceFromAddress, choiceFromFiles, type ModelChoice } from "../shared/model-source.ts";
import { say, showError } from "../shared/notices.ts";
import type { Sample } from "../shared/sample.ts";
import { Work } from "../shared/work.ts";
import { showDocuments } from "./document-list.ts";
import { Reader } from "./reader.ts";
import * as view from "./view.ts";

let model: Model | undefined;
/** The model that comes with the demo. */
let sample: Sample | undefined;
/** The open document. */
let reader: Reader | undefined;
/** What can be stopped. */
const work = new Work({ showError, leave });
const stop = () => work.stop();

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

async function load({ source, label, address }: ModelChoice): Promise<void> {
  await work.start("The model could not be loaded:", async (signal) => {
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
    element("sample-document", HTMLDivElement).hidden = !sample || address !== sample.address;
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
  await work.start("The document could not be opened:", async (signal) => {
    view.showWaiting(title);
    try {
      await reader?.document.close();
      reader = undefined;
      const document = await begin(current, { signal, onProgress: showPinProgress });
      reader = new Reader(current, document);
      document.loaded.catch((error: unknown) => giveUp(document, error));
      await listDocuments();
      view.showDocument(document);
    } catch (error) {
      await listDocuments();
      view.showDesk();
      throw error;
    }
  });
}

/** What turned out to be unreadable while it could be asked already. One that was closed is no news. */
function giveUp(document: PinnedPrompt, error: unknown): void {
  if (reader?.document !== document || (error instanceof InlayError && error.code === "disposed")) return;
  reader = undefined;
  view.showDesk();
  showError("The document could not be opened:", error);
  void listDocuments();
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
  const { value } = element("bits", HTMLSelectElement);
  const bits = value === "" ? undefined : (Number(value) as PinBits);
  return take(`Reading ${name}`, (current, options) => current.pin(text, { id: name, bits, ...options }));
}

async function takeFile(file: File): Promise<void> {
  if (file.name.endsWith(".inlaykv"))
    await take(`Opening ${file.name}`, (current, options) => current.pinned.import(file, options));
  else await pin(file.name, await file.text());
}

const actions = {
  /** Questions need not wait until all of it is read. */
  open: (id: string) =>
    void take(`Opening ${id}`, (current, options) => current.pinned.open(id, { wait: false, ...options })),
  save: (id: string) =>
    void work.start("The document could not be saved:", async () => {
      const file = await model?.pinned.export(id);
      if (!file) return;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(file);
      link.download = `${id}.inlaykv`;
      link.click();
      URL.revokeObjectURL(link.href);
    }),
  remove: (id: string) =>
    void work.start("The document could not be deleted:", async () => {
      await model?.pinned.delete(id);
      if (reader?.document.id === id) {
        reader = undefined;
        view.showDesk();
      }
      await listDocuments();
      say(`${id} is deleted`);
    }),
};

async function ask(): Promise<void> {
  const question = view.typedQuestion();
  const current = reader;
  if (!current || work.isRunning || question === "") return;
  await work.start("The question could not be answered:", async (signal) => {
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

/** Files that fell on the page: a model, or a document for the model that is loaded. */
async function takeDropped(files: Files): Promise<void> {
  const isModel = files.some(({ name }) => /\.gguf$/i.test(name));
  if (isModel || !model) await load(choiceFromFiles(files));
  else await takeFile(files[0]);
}

onModelChosen(load);
onDrop(takeDropped);
onFiles("document-files", ([file]) => takeFile(file));
onSubmit("composer", ask);
onEnter("question", ask);
onClick("stop", stop);
onClick("cancel", stop);
onEscape(stop);
onClick("add-document", async () => view.showDesk());
onClick("take-story", async () => {
  const response = await fetch("lighthouse.md");
  if (response.ok) await pin("lighthouse.md", await response.text());
  else showError("The story could not be fetched:", new Error(`status ${response.status}`));
});
onClick("change-model", () =>
  work.start("The model could not be closed:", async () => {
    await model?.dispose();
    remember(undefined);
    leave();
  }),
);

sample = await offerSample(load);
if (sample) {
  const { document: text, opening } = sample;
  onClick("take-sample-document", async () => {
    await pin("sample document", text);
    if (reader) view.suggest(opening);
  });
}
const address = new URL(location.href).searchParams.get("model");
document.body.dataset.ready = "";
if (address !== null) await load(choiceFromAddress(address));
