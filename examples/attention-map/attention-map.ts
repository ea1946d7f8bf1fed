/** A page that draws which parts of a text a model reads: choose a model, type or open a text, draw. */

import { type AttentionMapOptions, InlayError, loadModel, type Model } from "inlay";
import { offerSample, onModelChosen } from "../shared/chooser.ts";
import { element } from "../shared/elements.ts";
import { onClick, onFiles, onSubmit } from "../shared/events.ts";
import type { ModelChoice } from "../shared/model-source.ts";
import { say } from "../shared/notices.ts";
import { hideMap, showMap } from "./result.ts";
import { EXAMPLE_TEXT } from "./text.ts";

const text = element("text", HTMLTextAreaElement);
const policy = element("policy", HTMLSelectElement);
const budget = element("budget", HTMLInputElement);
const draw = element("draw", HTMLButtonElement);
const loadProgress = element("load-progress", HTMLProgressElement);

/** The loaded model. */
let model: Model | undefined;

/** What is being done; the controls wait for it. */
let isBusy = false;

/** Runs one thing at a time; errors are shown after `failed`. */
async function run(doing: string, failed: string, act: () => Promise<void>): Promise<void> {
  if (isBusy) return;
  isBusy = true;
  draw.disabled = true;
  const error = element("error", HTMLDivElement);
  error.replaceChildren();
  say(doing);
  try {
    await act();
  } catch (reason) {
    const message = reason instanceof InlayError ? `${reason.message} [${reason.code}]` : String(reason);
    error.textContent = `${failed} ${message}`;
    say("");
  } finally {
    isBusy = false;
    draw.disabled = false;
  }
}

function load({ source, label }: ModelChoice): Promise<void> {
  return run(`Loading ${label}`, "The model could not be loaded:", async () => {
    loadProgress.hidden = false;
    try {
      await model?.dispose();
      model = undefined;
      model = await loadModel(source, {
        onProgress: ({ progress }) => {
          loadProgress.value = progress;
        },
      });
    } finally {
      loadProgress.hidden = true;
    }
    const { name, contextLength, nLayers, nKvHeads } = model.config;
    element("model-name", HTMLParagraphElement).textContent = name || label;
    element("text-hint", HTMLParagraphElement).textContent =
      `This model has ${nLayers} layers of ${nKvHeads} KV heads and reads at most ` +
      `${contextLength.toLocaleString("en")} tokens; what is longer is cut. Sparse policies read at least 256 keys.`;
    showLoaded(true);
    say("The model is loaded.");
  });
}

function showLoaded(isLoaded: boolean): void {
  element("chooser", HTMLElement).hidden = isLoaded;
  element("prompt", HTMLElement).hidden = !isLoaded;
  element("change-model", HTMLButtonElement).hidden = !isLoaded;
  if (isLoaded) return;
  element("model-name", HTMLParagraphElement).textContent = "no model yet";
  hideMap();
}

/** NaN for what is no number, which the SDK refuses. */
function options(): AttentionMapOptions {
  const name = policy.value as NonNullable<AttentionMapOptions["policy"]>;
  return { policy: name, budget: Number(budget.value || Number.NaN) / 100 };
}

function drawMap(): Promise<void> {
  return run("Reading the text", "The map could not be drawn:", async () => {
    if (!model) return;
    const asked = options();
    const map = await model.attentionMap(await fitting(model, text.value), asked);
    showMap(map, await pageTexts(model, map.tokenIds, map.pageTokens), asked.policy ?? "");
    say("The map is drawn.");
  });
}

/** The text, cut where the model's context or a map's 4096 tokens end. */
async function fitting(reader: Model, whole: string): Promise<string> {
  const most = Math.min(4096, reader.config.contextLength) - 1; // one may be the beginning-of-text token
  const ids = await reader.tokenize(whole);
  return ids.length <= most ? whole : reader.detokenize(ids.subarray(0, most));
}

/** The text of every page. A character whose bytes lie on two pages belongs to the later one. */
async function pageTexts(reader: Model, ids: Uint32Array, pageTokens: number): Promise<string[]> {
  const texts: string[] = [];
  let from = 0;
  for (let end = pageTokens; end - pageTokens < ids.length; end += pageTokens) {
    const upTo = await reader.detokenize(ids.subarray(0, end));
    const to = end < ids.length ? upTo.replace(/\uFFFD+$/, "").length : upTo.length;
    texts.push(upTo.slice(from, to));
    from = to;
  }
  return texts;
}

function changeModel(): Promise<void> {
  return run("", "The model could not be closed:", async () => {
    await model?.dispose();
    model = undefined;
    showLoaded(false);
  });
}

function openText(file: File): Promise<void> {
  return run("Opening the text", "The text could not be opened:", async () => {
    text.value = await file.text();
    say("The text is there.");
  });
}

onModelChosen(load);
onClick("change-model", changeModel);
onSubmit("prompt-form", drawMap);
onFiles("text-file", ([file]) => openText(file));

text.value = EXAMPLE_TEXT;
await offerSample(load);
