/** A page to talk with a model that runs on this device: choose one, load it, talk. */

import { loadModel, type Model } from "inlay";
import { offerSample, onModelChosen } from "../shared/chooser.ts";
import { element } from "../shared/elements.ts";
import { onClick, onDrop, onEnter, onEscape, onSubmit } from "../shared/events.ts";
import { choiceFromFiles, type ModelChoice } from "../shared/model-source.ts";
import { Work } from "../shared/work.ts";
import { figuresText, showEnvironment, showModelFacts } from "./facts.ts";
import { addTurn } from "./log.ts";
import { askAbout, loadOptions, samplingFields, systemPrompt } from "./settings.ts";
import { type Figures, startTalk, type Talk } from "./talk.ts";
import * as view from "./view.ts";

/** The loaded model, where it came from, and the talk with it. */
let loaded: { readonly model: Model; readonly choice: ModelChoice; readonly talk: Talk } | undefined;

/** The load or answer in progress. */
const work = new Work({ showError: view.showError, leave });
const stop = () => work.stop();

async function load(choice: ModelChoice, opening = ""): Promise<void> {
  await work.start("The model could not be loaded:", async (signal) => {
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
  if (!loaded || work.isRunning || text === undefined) return;
  const { model, talk } = loaded;
  let figures: Figures | undefined;
  await work.start("The model could not answer:", async (signal) => {
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
  await work.start("The model could not be closed:", async () => {
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

onModelChosen(load);
onDrop((files) => load(choiceFromFiles(files)));
onSubmit("composer", answer);
onEnter("message", answer);
onSubmit("settings-form", async () => {});
onClick("stop", stop);
onClick("cancel-load", stop);
onEscape(stop);
onClick("new-talk", beginAgain);
onClick("change-model", changeModel);
onClick("reload", async () => loaded && load(loaded.choice));

element("facts", HTMLDetailsElement).open = matchMedia("(min-width: 60rem)").matches;
await showEnvironment();
await offerSample((sample) => {
  askAbout(sample.document);
  return load(sample, sample.opening);
});
