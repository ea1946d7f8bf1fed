import { loadModel } from "inlay";

const output = document.querySelector("output")!;
const model = await loadModel("/sample/model.gguf");
for await (const event of model.complete({ prompt: output.value, max_tokens: 100 }))
  if (event.kind === "text") output.append(event.text);
await model.dispose();
