/** The model that the repository ships: its card tells the truth about the files, and it answers the demo's question. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import type * as Inlay from "../../src/index.node.ts";
import { sampleModel } from "../../tools/demo/sample.mjs";

const BUNDLE = "../../dist/node.mjs";
const { loadModel } = (await import(BUNDLE)) as typeof Inlay;
const FOLDER = fileURLToPath(new URL("../../models/recall", import.meta.url));

test("the card has the size and SHA-256 of every file, each under 10 MB", () => {
  const card = readFileSync(join(FOLDER, "README.md"), "utf8");
  const files = readdirSync(FOLDER).filter((name) => name.endsWith(".gguf"));
  assert.equal(files.length, 3);
  for (const name of files) {
    const bytes = readFileSync(join(FOLDER, name));
    assert.ok(bytes.length < 10_000_000);
    const hash = createHash("sha256").update(bytes).digest("hex");
    assert.ok(card.includes(`| \`${name}\` | ${bytes.length.toLocaleString("en")} | \`${hash}\` |`), name);
  }
});

test("it answers the demo's question about the demo's document", async () => {
  const { path, document, opening } = sampleModel();
  assert.match(document, /the home of Permar is Tarbrook/i);
  const model = await loadModel(path, { device: "wasm" });
  try {
    const { choices, usage } = await model.chat.completions.create({
      messages: [
        { role: "system", content: document },
        { role: "user", content: opening },
      ],
      temperature: 0,
      max_tokens: 48,
    });
    assert.equal(choices[0]!.message.content, "The home of Permar is Tarbrook.");
    assert.ok(usage.prompt_tokens > 3000, `${usage.prompt_tokens} tokens`);
  } finally {
    await model.dispose();
  }
});
