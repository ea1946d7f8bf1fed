/** The list of what runs where, how fast, and how much it takes. */

import { type Availability, availability, type MemoryReport, type ModelInfo } from "inlay";
import { create, element } from "../shared/elements.ts";
import { bytesText, rateText, secondsText, tokensText } from "../shared/format.ts";
import type { Figures } from "./talk.ts";

const list = element("fact-list", HTMLDListElement);
const environment = element("environment", HTMLParagraphElement);

const DEVICES: Readonly<Record<ModelInfo["device"]["kind"], string>> = {
  wasm: "processor (WASM)",
  hybrid: "processor (WASM), attention on the GPU",
  webgpu: "GPU (WebGPU)",
};

type Fact = readonly [name: string, value: string | HTMLElement];

/** What is known about the loaded model and its last answer. */
export interface ModelFacts {
  readonly info: ModelInfo;
  readonly memory: MemoryReport;
  readonly contextTokens: number;
  readonly figures: Figures | undefined;
}

export function showModelFacts({ info, memory, contextTokens, figures }: ModelFacts): void {
  const { device } = info;
  show([
    ["Model", `${info.architecture}, ${info.fileType}, ${info.nLayers} layers`],
    ["Runs on", DEVICES[device.kind]],
    ...(device.gpu === undefined ? [] : [["GPU", device.gpu] as const]),
    ["WASM build", `${device.wasm}, ${device.threads} thread${device.threads === 1 ? "" : "s"}`],
    ["Chosen because", device.reason],
    ["KV cache", device.kvFormat],
    ["Context used", contextMeter(contextTokens, info.contextLength)],
    ...(figures ? answerFacts(figures) : []),
    ["Weights", bytesText(memory.weights)],
    ["KV memory", bytesText(memory.kv)],
    ["Scratch memory", bytesText(memory.scratch)],
    ["WASM heap", bytesText(memory.wasmHeap)],
    ["On the GPU", bytesText(memory.gpu)],
  ]);
}

/** Before a model is loaded: what this browser offers. */
export async function showEnvironment(): Promise<void> {
  const found: Availability = await availability();
  const yesNo = (has: boolean) => (has ? "yes" : "no");
  show([
    ["WASM SIMD", yesNo(found.available)],
    ["Relaxed SIMD", yesNo(found.relaxedSimd)],
    ["Threads", yesNo(found.threads)],
    ["WebGPU", yesNo(found.webgpu)],
  ]);
  environment.textContent = found.hints.join(". ");
}

function answerFacts(figures: Figures): Fact[] {
  const { promptTokens, cachedTokens, answerTokens } = figures;
  return [
    ["Prompt", `${tokensText(promptTokens)}, ${cachedTokens} of them cached`],
    ["Prefill", rateText(figures.prefillPerSecond)],
    ["Answer", tokensText(answerTokens)],
    ["Decode", rateText(figures.decodePerSecond)],
    ["First token after", secondsText(figures.firstTokenSeconds)],
  ];
}

/** One line about an answer: how long, how fast, and why it is not longer. */
export function figuresText(figures: Figures, contextLength: number): string {
  const { promptTokens, answerTokens, decodePerSecond, firstTokenSeconds, finishReason } = figures;
  const parts = [tokensText(answerTokens)];
  if (decodePerSecond !== null) parts.push(rateText(decodePerSecond));
  if (firstTokenSeconds !== null) parts.push(`first after ${secondsText(firstTokenSeconds)}`);
  const isFull = promptTokens + answerTokens >= contextLength;
  if (finishReason === "length") parts.push(isFull ? "the context is full" : "cut at the limit in Settings");
  return parts.join(" · ");
}

function contextMeter(used: number, length: number): HTMLElement {
  const text = `${used.toLocaleString("en")} of ${tokensText(length)}`;
  const meter = document.createElement("meter");
  meter.max = length;
  meter.high = length * 0.9;
  meter.value = used;
  meter.setAttribute("aria-label", `Context used: ${text}`);
  const value = create("span", "metered", text);
  value.append(meter);
  return value;
}

function show(facts: readonly Fact[]): void {
  const rows = facts.flatMap(([name, value]) => {
    const description = create("dd", "");
    description.append(value);
    return [create("dt", "", name), description];
  });
  list.replaceChildren(...rows);
}
