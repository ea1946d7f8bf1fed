// docs/api.md and the README name what the source has: public names, options, fields, error codes, commands. And what
// they link to is there.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { describe, test } from "node:test";
import { TENSOR_TYPES } from "../../src/gguf/tensor-types.ts";
import { ARCHITECTURES } from "../../src/model/config.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const read = (file: string) => readFileSync(join(ROOT, file), "utf8");

/** Every match of the pattern's group in the part of a source file between two texts. */
function namesIn(file: string, from: string, to: string, pattern: RegExp): string[] {
  const source = read(file);
  const start = source.indexOf(from);
  const end = source.indexOf(to, start);
  assert.ok(start >= 0 && end > start, `${file} has no part from ${from} to ${to}`);
  const names = [...source.slice(start, end).matchAll(pattern)].map((match) => match[1]!);
  assert.ok(names.length > 0, `nothing in ${file} matches ${pattern}`);
  return names;
}

const api = read("docs/api.md");

/** The words of the code spans and code blocks of docs/api.md. */
const documented = new Set([...api.matchAll(/`+[^`]+`+/g)].flatMap(([code]) => code.match(/[\w-]+/g) ?? []));

function assertDocumented(names: readonly string[]): void {
  const missing = names.filter((name) => !documented.has(name));
  assert.deepEqual(missing, [], "docs/api.md does not name these");
}

const FIELD = /^ {2,4}(?:readonly )?(\w+)\??:/gm;

describe("docs/api.md names", () => {
  test("every error code", () =>
    assertDocumented(namesIn("src/errors.ts", "export type ErrorCode", ";\n", /\| "([\w-]+)"/g)));

  test("every public name", () => {
    const index = read("src/index.ts") + read("src/public-names.ts");
    const names = [...index.matchAll(/export (?:type )?\{([^}]*)\}/g)].flatMap(([, list]) =>
      list!.split(",").map((name) => name.replace(/\btype\b/, "").trim()),
    );
    assert.ok(names.includes("loadModel"), index);
    assertDocumented(names.filter((name) => name !== "" && !name.startsWith("TextContent")));
  });

  test("every load option, where it is nested too", () => {
    const names = namesIn("src/options.ts", "export interface LoadOptions", "\n}", FIELD);
    const sections = ["attention", "kvCache", "assets"];
    const parents: Record<string, string> = {
      prefill: "attention",
      decode: "attention",
      budget: "attention",
      headBudgets: "attention",
      boundaries: "attention",
      format: "kvCache",
      wasm: "assets",
      worker: "assets",
    };
    for (const name of names.filter((name) => !sections.includes(name))) {
      const path = parents[name] === undefined ? name : `${parents[name]}.${name}`;
      assert.ok(api.includes(`| \`${path}\` `), `docs/api.md has no row for ${path}`);
    }
  });

  test("every name that an option can have", () => {
    for (const list of ["DEVICES", "PREFILL_ATTENTION", "KV_FORMATS"])
      assertDocumented(namesIn("src/options.ts", `const ${list} =`, "]", /"([\w-]+)"/g));
  });

  test("every field of a request", () => {
    for (const list of ["SAMPLING_FIELDS", "CHAT_FIELDS", "IGNORED_FIELDS"])
      assertDocumented(namesIn("src/chat/request.ts", `const ${list} =`, "]", /"(\w+)"/g));
    assertDocumented(namesIn("src/chat/request.ts", "const UNSUPPORTED_FIELDS", "]);", /\["(\w+)"/g));
  });

  test("every field of what comes back", () => {
    const parts: [file: string, name: string][] = [
      ["src/options.ts", "LoadProgress"],
      ["src/rpc/engine-api.ts", "ModelInfo"],
      ["src/rpc/engine-api.ts", "DeviceInfo"],
      ["src/rpc/engine-api.ts", "MemoryReport"],
      ["src/generate/events.ts", "GenerateUsage"],
      ["src/chat/types.ts", "CompletionUsage"],
      ["src/api/availability.ts", "Availability"],
      ["src/api/model.ts", "PromptProgress"],
      ["src/api/model.ts", "RequestOptions"],
      ["src/api/pinned.ts", "PinProgress"],
      ["src/api/pinned.ts", "OpenPinnedOptions"],
      ["src/api/pinned.ts", "PinOptions"],
      ["src/api/pinned.ts", "ExportPinnedOptions"],
      ["src/api/pinned.ts", "ImportPinnedOptions"],
      ["src/storage/prompt-store.ts", "PinnedInfo"],
    ];
    for (const [file, name] of parts)
      assertDocumented(namesIn(file, `export interface ${name}`, "\n}", FIELD).filter((n) => n !== "extra"));
  });

  test("every method of a model and a session", () => {
    const METHOD = /^ {2}(?:async )?(?:get )?\*?([a-z]\w+)[(<]/gm;
    const isPublic = (name: string) => !["constructor", "generate", "promptIds"].includes(name);
    for (const [file, name] of [
      ["src/api/model.ts", "Model"],
      ["src/api/session.ts", "Session"],
      ["src/api/pinned.ts", "PinnedPrompts"],
      ["src/api/pinned.ts", "PinnedPrompt"],
    ] as const)
      assertDocumented(namesIn(file, `export class ${name}`, "\n}", METHOD).filter(isPublic));
  });

  test("every command and its options", () => {
    assertDocumented(namesIn("src/cli/main.ts", "const COMMANDS", "};", /^ {2}(\w+):/gm));
    for (const file of ["run", "pin", "bench", "eval-quality", "model-argument"])
      assertDocumented(
        namesIn(`src/cli/${file}.ts`, "OPTIONS = {", "}", /^ {2}"?([\w-]+)"?:/gm).map((name) => `--${name}`),
      );
  });
});

describe("README.md", () => {
  const readme = read("README.md");

  test("names every architecture and tensor type", () => {
    for (const name of [...ARCHITECTURES, ...TENSOR_TYPES.map(({ name }) => name)])
      assert.match(readme, new RegExp(`\\b${name}\\b`));
  });

  test("names only commands that there are", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    for (const [, name] of readme.matchAll(/npm run ([\w:]+)/g)) assert.ok(name! in scripts, name);
  });
});

for (const file of ["README.md", "docs/api.md", "docs/decisions.md", "docs/setup.md"])
  test(`the links of ${file} lead somewhere`, () => {
    const text = read(file);
    for (const [, target] of text.matchAll(/\]\(([^)]+)\)/g)) {
      const [path, anchor] = target!.split("#");
      // Pages elsewhere, and what `npm run bench` writes.
      if (/^\w+:|bench\/REPORT\.md$/.test(path!)) continue;
      const other = path === "" ? join(ROOT, file) : join(ROOT, dirname(file), path!);
      assert.ok(existsSync(other), `${target} is not there`);
      if (anchor === undefined) continue;
      const headings = [...readFileSync(other, "utf8").matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
        heading!
          .toLowerCase()
          .replace(/[^\w -]/g, "")
          .replaceAll(" ", "-"),
      );
      assert.ok(headings.includes(anchor), `${other} has no heading ${anchor}`);
    }
  });
