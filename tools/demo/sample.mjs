// The sample model of the demo: the one of models/recall, with a document that it answers questions about.

import fs from "node:fs";
import path from "node:path";
import { ROOT } from "../setup/shell.mjs";

const FOLDER = path.join(ROOT, "models/recall");

/** { path, name, about, document, opening }: the file, what to call it, an honest word about it, a text and a question. */
export function sampleModel() {
  return {
    path: path.join(FOLDER, "inlay-recall-q8_0.gguf"),
    name: "inlay-recall",
    about:
      "A very small model that looks facts up in long documents; it is given one of 3,400 tokens and knows nothing else. " +
      "Ask as the example does, about what stands in the system prompt.",
    document: fs.readFileSync(path.join(FOLDER, "sample-document.txt"), "utf8").trim(),
    opening: "Tell me the home of Permar.",
  };
}
