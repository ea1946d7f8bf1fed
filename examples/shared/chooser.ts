/** The section in which a model is chosen: files, an address, or the sample model. */

import { element } from "./elements.ts";
import { onClick, onFiles, onSubmit } from "./events.ts";
import { bytesText } from "./format.ts";
import { choiceFromAddress, choiceFromFiles, type ModelChoice } from "./model-source.ts";
import { findSample, type Sample } from "./sample.ts";

/** Loads what is chosen as files or by its address. */
export function onModelChosen(load: (choice: ModelChoice) => Promise<void>): void {
  onFiles("model-files", (files) => load(choiceFromFiles(files)));
  onSubmit("address-form", () => load(choiceFromAddress(element("address", HTMLInputElement).value)));
}

/** Offers the sample model where the server has one, and loads it when it is taken. */
export async function offerSample(load: (sample: Sample) => Promise<void>): Promise<Sample | undefined> {
  const sample = await findSample();
  if (!sample) return undefined;
  element("sample", HTMLDivElement).hidden = false;
  element("sample-about", HTMLParagraphElement).textContent =
    `${sample.label}, ${bytesText(sample.byteLength)}. ${sample.about}`;
  onClick("take-sample", () => load(sample));
  return sample;
}
