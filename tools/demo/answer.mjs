// An answer in the terminal: the built SDK in Node loads the sample model and continues a sentence.

const MAX_TOKENS = 120;

/** A fixed one, so that the first answer that people see is the same for all. */
const SEED = 7;

const rate = (tokens, seconds) => (seconds > 0 ? `${Math.round(tokens / seconds)} tokens/s` : "–");

/** Prints the continuation as it comes, then what ran it and how fast. */
export async function printAnswer(sample, write = (text) => void process.stdout.write(text)) {
  const { loadModel } = await import("../../dist/node.mjs");
  const model = await loadModel(sample.path, { device: "wasm" });
  try {
    write(`\n${sample.about}\nWhat stands before the bar is ours, what follows is the model's:\n\n`);
    write(`${sample.opening} │`);
    const request = { prompt: sample.opening, max_tokens: MAX_TOKENS, temperature: 0.7, seed: SEED };
    for await (const event of model.complete(request)) {
      if (event.kind === "text") write(event.text);
      if (event.kind !== "end") continue;
      const { usage } = event;
      const { kind, wasm, threads } = model.config.device;
      write(
        `\n\n${model.config.name} ${model.config.fileType} on ${kind} (${wasm}, ${threads} thread${threads > 1 ? "s" : ""}): ` +
          `prompt ${rate(usage.promptTokens - usage.cachedTokens, usage.prefillSeconds)}, ` +
          `answer ${rate(usage.completionTokens - 1, usage.decodeSeconds)}, ` +
          `first token after ${Math.round((usage.timeToFirstTokenSeconds ?? 0) * 1000)} ms\n`,
      );
    }
  } finally {
    await model.dispose();
  }
}
