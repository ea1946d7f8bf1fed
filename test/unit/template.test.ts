/** Chat templates against other implementations: Python's Jinja2 and llama.cpp's published pairs. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import {
  ChatTemplate,
  type Json,
  type RenderOptions,
  type TemplateMessage,
} from "../../src/tokenizer/chat-template.ts";
import { sharedPath } from "../fixtures/shared.ts";

const folder = sharedPath("data", "templates");
const skip = folder === undefined && "no shared data here";

const readJson = <T>(file: string): T => JSON.parse(readFileSync(join(folder!, file), "utf8")) as T;

interface RenderingCase {
  readonly messages: TemplateMessage[];
  readonly tools?: Json[];
  readonly add_generation_prompt: boolean;
  readonly [variable: string]: Json | undefined;
}
interface Renderings {
  readonly cases: Record<string, RenderingCase>;
  readonly templates: Record<
    string,
    {
      readonly file: string;
      readonly bos_token: string;
      readonly eos_token: string;
      readonly expected: Record<string, { rendered?: string; error?: string }>;
    }
  >;
}
interface Vectors {
  readonly messages: TemplateMessage[];
  readonly cases: {
    name: string;
    bos_token: string;
    eos_token: string;
    template: string;
    expected: string;
  }[];
}

/** The clock of the reference renderings. */
const time = new Date(2024, 6, 26, 12, 0).getTime();

describe("real templates, as Python's Jinja2 renders them", { skip }, () => {
  if (folder === undefined) return;
  const { cases, templates } = readJson<Renderings>("expected-renderings.json");
  for (const [name, { file, bos_token, eos_token, expected }] of Object.entries(templates)) {
    const source = readFileSync(join(folder, file), "utf8");
    const template = ChatTemplate.compile(source, { bosToken: bos_token, eosToken: eos_token });
    for (const [caseName, reference] of Object.entries(expected))
      test(`${name}: ${caseName}`, () => {
        const { messages, tools, add_generation_prompt, ...variables } = cases[caseName]!;
        const options: RenderOptions = {
          addGenerationPrompt: add_generation_prompt,
          tools,
          variables: variables as Record<string, Json>,
          time,
        };
        if (reference.error === undefined)
          assert.equal(template.render(messages, options), reference.rendered);
        else
          assert.throws(
            () => template.render(messages, options),
            (error: unknown) => {
              assert.ok(error instanceof InlayError);
              assert.equal(error.code, "template-failed");
              assert.equal(`TemplateError: ${error.details.raised}`, reference.error);
              return true;
            },
          );
      });
  }
});

describe("template and output pairs published by llama.cpp", { skip }, () => {
  if (folder === undefined) return;
  const { messages, cases } = readJson<Vectors>("third-party-vectors.json");
  for (const { name, bos_token, eos_token, template, expected } of cases)
    test(name, () => {
      const compiled = ChatTemplate.compile(template, { bosToken: bos_token, eosToken: eos_token });
      assert.equal(compiled.render(messages, { addGenerationPrompt: true, time }), expected);
    });
});
