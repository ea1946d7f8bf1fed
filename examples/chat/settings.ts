/** The settings form → options of the SDK. An empty field means the SDK's default. */

import type { DeviceOption, LoadOptions, SamplingFields } from "inlay";
import { element } from "../shared/elements.ts";

const temperature = element("temperature", HTMLInputElement);
const maxTokens = element("max-tokens", HTMLInputElement);
const system = element("system", HTMLTextAreaElement);
const device = element("device", HTMLSelectElement);
const threads = element("threads", HTMLInputElement);
const contextLength = element("context-length", HTMLInputElement);

/** NaN for what is no number, which the SDK refuses with the option's name. */
function numberOf({ value, validity }: HTMLInputElement): number | undefined {
  return value === "" && !validity.badInput ? undefined : Number(value || Number.NaN);
}

export function samplingFields(): SamplingFields {
  return { temperature: numberOf(temperature), max_tokens: numberOf(maxTokens) };
}

export function systemPrompt(): string {
  return system.value.trim();
}

/** Settings under which the sample model answers questions about a text: the text as instructions, no chance. */
export function askAbout(text: string): void {
  system.value = text;
  temperature.value = "0";
}

export function loadOptions(): LoadOptions {
  return {
    device: device.value as DeviceOption,
    threads: numberOf(threads),
    contextLength: numberOf(contextLength),
  };
}
