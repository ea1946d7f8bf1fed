import { loadModel } from "inlay";

const { document: text, opening } = await (await fetch("/sample/sample.json")).json();
document.querySelector("#question")!.textContent = opening;
const model = await loadModel("/sample/model.gguf");
const stream = await model.chat.completions.create({
  messages: [
    { role: "system", content: text },
    { role: "user", content: opening },
  ],
  temperature: 0,
  stream: true,
});
const output = document.querySelector("output")!;
for await (const { choices } of stream) output.append(choices[0]?.delta.content ?? "");
await model.dispose();
