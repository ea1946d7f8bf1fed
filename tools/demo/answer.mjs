// An answer in the terminal: the built SDK in Node loads the sample model and asks it about the sample document.

const MAX_TOKENS = 48;

const rate = (perSecond) => (perSecond === null ? "–" : `${Math.round(perSecond)} tokens/s`);

/** Prints the question, the answer as it comes, then what ran it and how fast. */
export async function printAnswer(sample, write = (text) => void process.stdout.write(text)) {
  const { loadModel } = await import("../../dist/node.mjs");
  const model = await loadModel(sample.path, { device: "wasm" });
  try {
    const lines = sample.document.split("\n");
    write(`\n${sample.about}\n\nThe document, ${lines.length} lines, begins:\n\n`);
    for (const line of lines.slice(0, 4)) write(`    ${line}\n`);
    write(`    …\n\nQuestion: ${sample.opening}\nAnswer:   `);
    const messages = [
      { role: "system", content: sample.document },
      { role: "user", content: sample.opening },
    ];
    const options = { include_usage: true };
    const request = {
      messages,
      temperature: 0,
      max_tokens: MAX_TOKENS,
      stream: true,
      stream_options: options,
    };
    for await (const { choices, usage } of await model.chat.completions.create(request)) {
      write(choices[0]?.delta.content ?? "");
      if (!usage) continue;
      const { prefill_tokens_per_s, decode_tokens_per_s, time_to_first_token_s } = usage.extra;
      const { kind, wasm, threads } = model.config.device;
      write(
        `\n\n${model.config.name} ${model.config.fileType} on ${kind} (${wasm}, ${threads} thread${threads > 1 ? "s" : ""}): ` +
          `prompt of ${usage.prompt_tokens} tokens, ${rate(prefill_tokens_per_s)}, answer ${rate(decode_tokens_per_s)}, ` +
          `first token after ${Math.round((time_to_first_token_s ?? 0) * 1000)} ms\n`,
      );
    }
  } finally {
    await model.dispose();
  }
}
